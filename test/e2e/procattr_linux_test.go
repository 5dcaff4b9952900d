package e2e

import "syscall"

// attributes of the processes that tests start: a group of their own, so that whatever they start ends with them, and
// the kernel kills one whose test process is gone, however it went.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
