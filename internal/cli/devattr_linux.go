package cli

import "syscall"

// childAttributes keep a member out of the terminal's process group, so that Ctrl-C reaches this process alone, which
// then stops the members in good order; and let the kernel kill the member should this process die without doing so.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
