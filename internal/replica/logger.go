package replica

import (
	"context"
	"fmt"
	"log/slog"
)

// raftLogger writes what raft says of itself into the member's log. Raft's information is detail here: the loop says
// what matters in its own words.
type raftLogger struct{ l *slog.Logger }

func (r raftLogger) log(level slog.Level, text func() string) {
	if r.l.Enabled(context.Background(), level) {
		r.l.Log(context.Background(), level, text(), "from", "raft")
	}
}

func (r raftLogger) plain(level slog.Level, v []any) {
	r.log(level, func() string { return fmt.Sprint(v...) })
}

func (r raftLogger) format(level slog.Level, f string, v []any) {
	r.log(level, func() string { return fmt.Sprintf(f, v...) })
}

func (r raftLogger) Debug(v ...any)              { r.plain(slog.LevelDebug-4, v) }
func (r raftLogger) Debugf(f string, v ...any)   { r.format(slog.LevelDebug-4, f, v) }
func (r raftLogger) Info(v ...any)               { r.plain(slog.LevelDebug, v) }
func (r raftLogger) Infof(f string, v ...any)    { r.format(slog.LevelDebug, f, v) }
func (r raftLogger) Warning(v ...any)            { r.plain(slog.LevelWarn, v) }
func (r raftLogger) Warningf(f string, v ...any) { r.format(slog.LevelWarn, f, v) }
func (r raftLogger) Error(v ...any)              { r.plain(slog.LevelError, v) }
func (r raftLogger) Errorf(f string, v ...any)   { r.format(slog.LevelError, f, v) }
func (r raftLogger) Fatal(v ...any)              { r.Panic(v...) }
func (r raftLogger) Fatalf(f string, v ...any)   { r.Panicf(f, v...) }
func (r raftLogger) Panic(v ...any)              { panic("raft: " + fmt.Sprint(v...)) }
func (r raftLogger) Panicf(f string, v ...any)   { panic("raft: " + fmt.Sprintf(f, v...)) }
