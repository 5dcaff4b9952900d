//go:build unix && !linux

package cli

import "syscall"

// childAttributes keep a member out of the terminal's process group, so that Ctrl-C reaches this process alone, which
// then stops the members in good order.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
