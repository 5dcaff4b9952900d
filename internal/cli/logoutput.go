package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/trivet-kv/trivet/internal/config"
)

// openLog makes the logger that the settings ask for. closeFiles closes the files among its outputs.
func openLog(c *config.Config, stdout, stderr io.Writer) (l *slog.Logger, closeFiles func(), err error) {
	var outputs []io.Writer
	var files []io.Closer
	closeFiles = func() {
		for _, f := range files {
			f.Close()
		}
	}
	for _, o := range c.LogOutputs {
		switch o {
		case "stderr":
			outputs = append(outputs, stderr)
		case "stdout":
			outputs = append(outputs, stdout)
		case "systemd/journal":
			if !journal.Enabled() {
				closeFiles()
				return nil, nil, errors.New("--log-outputs=systemd/journal: systemd's journal does not run on this machine; write stderr, or the path of a file")
			}
			outputs = append(outputs, &journalWriter{fallback: stderr, send: journal.Send})
		default:
			f, err := openLogFile(o, c.LogRotation)
			if err != nil {
				closeFiles()
				return nil, nil, fmt.Errorf("--log-outputs=%s: %w; name a file that can be written", strings.Join(c.LogOutputs, ","), err)
			}
			files = append(files, f)
			outputs = append(outputs, f)
		}
	}
	w := outputs[0]
	if len(outputs) > 1 {
		w = everyWriter(outputs)
	}
	return slog.New(newLogHandler(w, c.LogLevel, c.LogFormat == "console")), closeFiles, nil
}

// openLogFile opens one file to append to. What it returns begins a new one when it is full, if r says when. Its library
// then has a goroutine that removes old files, which ends with the process.
func openLogFile(name string, r *config.LogRotation) (io.WriteCloser, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil || r == nil {
		return f, err
	}
	if err := f.Close(); err != nil { // it was to know that the file can be written
		return nil, err
	}
	return &lumberjack.Logger{
		Filename: name, MaxSize: r.MaxSize, MaxAge: r.MaxAge, MaxBackups: r.MaxBackups, LocalTime: r.LocalTime, Compress: r.Compress,
	}, nil
}

// everyWriter writes to all, also when one of them fails: a full disk must not silence stderr.
type everyWriter []io.Writer

func (ws everyWriter) Write(p []byte) (int, error) {
	var errs []error
	for _, w := range ws {
		if _, err := w.Write(p); err != nil {
			errs = append(errs, err)
		}
	}
	return len(p), errors.Join(errs...)
}

// journalWriter sends lines to systemd's journal with the priority of their level, and those that it does not take to
// fallback.
type journalWriter struct {
	fallback io.Writer
	send     func(message string, p journal.Priority, vars map[string]string) error
	level    slog.Level
	caller   string
}

// describe says of what the next line is; the handler calls it, under its mutex.
func (j *journalWriter) describe(l slog.Level, caller string) { j.level, j.caller = l, caller }

func (j *journalWriter) Write(p []byte) (int, error) {
	priority := journal.PriDebug
	switch {
	case j.level >= config.LevelPanic:
		priority = journal.PriCrit
	case j.level >= slog.LevelError:
		priority = journal.PriErr
	case j.level >= slog.LevelWarn:
		priority = journal.PriWarning
	case j.level >= slog.LevelInfo:
		priority = journal.PriInfo
	}
	err := j.send(string(p), priority, map[string]string{
		"PACKAGE": filepath.Dir(j.caller), "SYSLOG_IDENTIFIER": filepath.Base(os.Args[0]),
	})
	if err != nil {
		return j.fallback.Write(p)
	}
	return len(p), nil
}
