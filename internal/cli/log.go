package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"github.com/trivet-kv/trivet/internal/config"
)

// logHandler writes lines in the form of etcd's: {"level","ts","caller","msg",…} or, for people, the same in columns.
type logHandler struct {
	level   slog.Level
	console bool
	fields  slog.Handler // writes the attributes, and nothing else, as one JSON object into buf
	*logOutput
}

// logTime is the form of times in the log.
const logTime = "2006-01-02T15:04:05.000000Z0700"

// logOutput is shared by all handlers derived from one.
type logOutput struct {
	mu  sync.Mutex
	w   io.Writer
	buf bytes.Buffer // what fields wrote for the record at hand
}

func newLogHandler(w io.Writer, level slog.Level, console bool) *logHandler {
	out := &logOutput{w: w}
	fields := slog.NewJSONHandler(&out.buf, &slog.HandlerOptions{Level: slog.Level(-128), ReplaceAttr: replaceAttr})
	return &logHandler{level: level, console: console, fields: fields, logOutput: out}
}

// replaceAttr drops slog's own attributes, which Handle writes, and writes durations and times as etcd does: 1.5s, and as ts.
func replaceAttr(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 {
		switch a.Key {
		case slog.LevelKey, slog.MessageKey, slog.TimeKey:
			return slog.Attr{}
		}
	}
	switch a.Value.Kind() {
	case slog.KindDuration:
		a.Value = slog.StringValue(a.Value.Duration().String())
	case slog.KindTime:
		a.Value = slog.StringValue(a.Value.Time().UTC().Format(logTime))
	}
	return a
}

// Enabled implements slog.Handler.
func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(a []slog.Attr) slog.Handler {
	n := *h
	n.fields = h.fields.WithAttrs(a)
	return &n
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	n := *h
	n.fields = h.fields.WithGroup(name)
	return &n
}

// Handle implements slog.Handler. One record is one write.
func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Reset()
	if err := h.fields.Handle(ctx, r); err != nil {
		return err
	}
	fields := bytes.TrimSuffix(h.buf.Bytes(), []byte("\n"))
	var line []byte
	ts := r.Time.UTC()
	if h.console {
		line = ts.AppendFormat(line, logTime)
		line = append(line, '\t')
		line = append(line, levelName(r.Level)...)
		line = append(line, '\t')
		line = append(line, caller(r.PC)...)
		line = append(line, '\t')
		line = append(line, r.Message...)
		if len(fields) > len("{}") {
			line = append(append(line, '\t'), fields...)
		}
	} else {
		line = append(line, `{"level":"`...)
		line = append(line, levelName(r.Level)...)
		line = append(line, `","ts":"`...)
		line = ts.AppendFormat(line, logTime)
		line = append(line, `","caller":`...)
		line = appendJSONString(line, caller(r.PC))
		line = append(line, `,"msg":`...)
		line = appendJSONString(line, r.Message)
		if len(fields) > len("{}") {
			line = append(append(line, ','), fields[1:]...)
		} else {
			line = append(line, '}')
		}
	}
	if j, ok := h.w.(*journalWriter); ok {
		j.describe(r.Level, caller(r.PC))
	}
	_, err := h.w.Write(append(line, '\n'))
	return err
}

func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warn"
	case l < config.LevelPanic:
		return "error"
	case l < config.LevelFatal:
		return "panic"
	default:
		return "fatal"
	}
}

// caller is the last folder and file, and the line: server/server.go:88.
func caller(pc uintptr) string {
	if pc == 0 {
		return "undefined"
	}
	f, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	dir, file := filepath.Split(f.File)
	return filepath.Base(dir) + "/" + file + ":" + strconv.Itoa(f.Line)
}

// appendJSONString appends s as a JSON string. Encoding a string cannot fail: bytes that are not UTF-8 are replaced.
func appendJSONString(b []byte, s string) []byte {
	quoted, _ := json.Marshal(s)
	return append(b, quoted...)
}

// logNotes says once what Load found worth saying.
func logNotes(l *slog.Logger, c *config.Config) {
	for _, n := range c.Notes {
		l.Log(context.Background(), n.Level, n.Message, n.Args...)
	}
}
