//go:build unix

package cli

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// setReuse sets what --socket-reuse-port and --socket-reuse-address ask for, before the socket is bound.
func setReuse(conn syscall.RawConn, port, address bool) error {
	var err error
	set := func(option int) {
		if e := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1) }); e != nil {
			err = e
		}
	}
	if port {
		set(unix.SO_REUSEPORT)
	}
	if address && err == nil {
		set(unix.SO_REUSEADDR)
	}
	return err
}
