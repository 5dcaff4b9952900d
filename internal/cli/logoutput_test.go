package cli

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/trivet-kv/trivet/internal/config"
)

// Every output gets every line, also after one of them failed.
func TestSeveralLogOutputs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.log")
	var out bytes.Buffer
	c := &config.Config{LogOutputs: []string{file, "stderr", "stdout"}, LogFormat: "json"}
	log, closeFiles, err := openLog(c, &out, brokenWriter{})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("first")
	log.Info("second")
	closeFiles()
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(written) || strings.Count(out.String(), "\n") != 2 || !strings.Contains(out.String(), `"msg":"second"`) {
		t.Errorf("stdout: %s\nfile: %s", out.String(), written)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken") }

// A full log file makes way for a new one, and no line is lost or cut.
func TestLogRotation(t *testing.T) {
	dir := t.TempDir()
	c, err := config.Load([]string{
		"--log-outputs=" + filepath.Join(dir, "a.log"), "--enable-log-rotation",
		`--log-rotation-config-json={"maxsize": 1, "maxbackups": 5}`,
	}, nil, os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	log, closeFiles, err := openLog(c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	const lines = 3000
	for i := range lines {
		log.Info("line", "n", i, "filling", strings.Repeat("x", 500))
	}
	closeFiles()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("there are %q, %v; 1.5 MiB of lines were to fill one file of 1 MiB and begin another", files, err)
	}
	n := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 1<<20 {
			t.Errorf("%s has %d bytes", f, len(text))
		}
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, `{"level":"info"`) || !strings.HasSuffix(line, "\"}\n") {
				t.Fatalf("%s holds a broken line: %s", f, line)
			}
			n++
		}
	}
	if n != lines {
		t.Errorf("%d lines of %d are there", n, lines)
	}
}

func TestLogFileThatCannotBeWritten(t *testing.T) {
	c := &config.Config{LogOutputs: []string{filepath.Join(t.TempDir(), "none", "a.log")}}
	for _, c.LogRotation = range []*config.LogRotation{nil, {}} {
		if _, _, err := openLog(c, nil, nil); err == nil || !strings.HasPrefix(err.Error(), "--log-outputs=") {
			t.Errorf("%v", err)
		}
	}
}

// Lines reach the journal with the priority of their level; what it does not take goes to stderr.
func TestJournal(t *testing.T) {
	type sent struct {
		message string
		p       journal.Priority
		vars    map[string]string
	}
	var got []sent
	var fallback bytes.Buffer
	broken := false
	w := &journalWriter{fallback: &fallback, send: func(m string, p journal.Priority, vars map[string]string) error {
		if broken {
			return errors.New("no journal")
		}
		got = append(got, sent{m, p, vars})
		return nil
	}}
	log := slog.New(newLogHandler(w, slog.LevelDebug, false))
	levels := []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError, config.LevelFatal}
	for _, l := range levels {
		log.Log(t.Context(), l, "hello")
	}
	want := []journal.Priority{journal.PriDebug, journal.PriInfo, journal.PriWarning, journal.PriErr, journal.PriCrit}
	if len(got) != len(want) {
		t.Fatalf("%d lines reached the journal", len(got))
	}
	for i, g := range got {
		if g.p != want[i] || g.vars["PACKAGE"] != "cli" || g.vars["SYSLOG_IDENTIFIER"] == "" || !strings.Contains(g.message, `"msg":"hello"`) {
			t.Errorf("%v: %+v", levels[i], g)
		}
	}
	broken = true
	log.Info("lost?")
	if !strings.Contains(fallback.String(), "lost?") || fallback.Len() == 0 {
		t.Errorf("stderr: %s", fallback.String())
	}
}

// Times and durations among the fields have the form that etcd gives them.
func TestLoggedTimes(t *testing.T) {
	var b bytes.Buffer
	at := time.Date(2026, 1, 2, 3, 4, 5, 6789, time.FixedZone("", 3600))
	slog.New(newLogHandler(&b, slog.LevelInfo, false)).Info("x", "start time", at, "took", 1500*time.Microsecond)
	if want := `"start time":"2026-01-02T02:04:05.000006Z","took":"1.5ms"}`; !strings.Contains(b.String(), want) {
		t.Errorf("%s lacks %s", b.String(), want)
	}
}
