//go:build !unix

package cli

import (
	"errors"
	"syscall"
)

func setReuse(_ syscall.RawConn, port, address bool) error {
	if port || address {
		return errors.New("--socket-reuse-port and --socket-reuse-address are not supported on this system; leave them out")
	}
	return nil
}
