package raftlog

import (
	"errors"
	"syscall"
	"time"
)

// roomPause is how long the writer waits between two attempts on a full disk.
const roomPause = 100 * time.Millisecond

// IsNoRoom reports whether an error says that a disk, or the share of it that this process may have, is full.
func IsNoRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// withRoom does f again and again while the disk is full. So f must be something that may be done twice, also in part, with
// every byte written anew; that a sync failed is no obstacle then, since what it left clean is dirtied again. The error is
// f's last one, if it was another or the log is being closed. Only the writer calls it.
func (l *Log) withRoom(f func() error) error {
	err := f()
	if !IsNoRoom(err) {
		return err
	}
	l.opt.OnFull(err)
	defer l.opt.OnFull(nil)
	for IsNoRoom(err) && !l.isClosing() {
		time.Sleep(roomPause)
		err = f()
	}
	return err
}

func (l *Log) isClosing() bool {
	l.queue.Lock()
	defer l.queue.Unlock()
	return l.queue.closing
}
