package raftlog

import (
	"errors"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// roomPause is how long the writer waits between two attempts on a full disk.
const roomPause = 100 * time.Millisecond

// IsNoRoom reports whether an error says that a disk, or the share of it that this process may have, is full.
func IsNoRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// withRoom does f again and again while the disk is full. So f must be something that may be done twice, also in part, with
// every byte written anew; that a sync failed is no obstacle then, since what it left clean is dirtied again. The error is
// f's last one, if it was another or the log is being closed. Only the writer calls it, and Open, which does not wait.
//
// All that the writer does to the disk goes through here: so a log whose Close has given up (abandoned) touches it no more.
func (l *Log) withRoom(f func() error) error {
	if l.abandoned.Load() {
		return ErrHung
	}
	err := f()
	if l.abandoned.Load() {
		return ErrHung
	}
	if !IsNoRoom(err) || l.filler == nil {
		return err
	}
	l.opt.OnFull(err)
	defer l.opt.OnFull(nil)
	for IsNoRoom(err) && !l.isClosing() {
		time.Sleep(roomPause)
		err = f()
	}
	if l.abandoned.Load() {
		return ErrHung
	}
	return err
}

// syncNames makes the names in the log's folder durable. Where there was no room for that, the folder is changed before it is
// synced again, by a name that comes and goes: so nothing that a failed sync left behind can pass for durable.
func (l *Log) syncNames() error {
	again := false
	return l.withRoom(func() error {
		if again {
			path := l.fs.PathJoin(l.dir, bigName) // which Open removes, and nobody uses now
			f, err := l.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
			if err != nil {
				return err
			}
			if err := errors.Join(f.Close(), l.fs.Remove(path)); err != nil {
				return err
			}
		}
		again = true
		return syncDir(l.fs, l.dir)
	})
}

func (l *Log) isClosing() bool {
	l.queue.Lock()
	defer l.queue.Unlock()
	return l.queue.closing
}
