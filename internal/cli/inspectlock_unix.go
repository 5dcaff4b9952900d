//go:build unix

package cli

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// lockForReading makes sure that no process serves the directory of a lock file, and that none begins to until the lock
// is closed. Unlike the lock of one who writes, it neither makes nor opens the file for writing.
func lockForReading(name string) (io.Closer, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(nil), nil // whoever serves a directory makes the file and leaves it
	}
	if err != nil {
		return nil, err
	}
	err = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_RDLCK, Whence: io.SeekStart})
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		err = errInUse
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
