//go:build !unix

package cli

import (
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// lockForReading takes the lock as a member would, for want of one that changes nothing.
func lockForReading(name string) (io.Closer, error) {
	l, err := vfs.Default.Lock(name)
	if err != nil {
		return nil, errInUse
	}
	return l, nil
}
