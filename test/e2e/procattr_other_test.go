//go:build unix && !linux

package e2e

import "syscall"

// attributes of the processes that tests start: a group of their own, so that whatever they start ends with them.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
