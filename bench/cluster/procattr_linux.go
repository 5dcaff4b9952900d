package cluster

import "syscall"

// procAttr lets members die with the program that started them.
func procAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
