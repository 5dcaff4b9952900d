package raftlog

import (
	"context"
	"errors"
	"log/slog"
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
	var since time.Time
	for {
		err := f()
		if !IsNoRoom(err) {
			if !since.IsZero() {
				l.opt.OnFull(false)
			}
			if err == nil && !since.IsZero() {
				l.log.LogAttrs(context.Background(), slog.LevelInfo, "there is room for the raft log again",
					slog.String("dir", l.dir), slog.Duration("waited", time.Since(since)))
			}
			return err
		}
		if since.IsZero() {
			since = time.Now()
			l.opt.OnFull(true)
			l.log.LogAttrs(context.Background(), slog.LevelError, "no room for the raft log: this member writes nothing until there is",
				slog.String("dir", l.dir), slog.Any("error", err))
		}
		if l.isClosing() {
			l.opt.OnFull(false)
			return err
		}
		time.Sleep(roomPause)
	}
}

func (l *Log) isClosing() bool {
	l.queue.Lock()
	defer l.queue.Unlock()
	return l.queue.closing
}
