package raftlog

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestOldFormats opens the log directories that earlier versions wrote (sampleLog made them). Never change their files; a new
// format version adds a directory: RAFTLOG_SAMPLE=testdata/vN writes one.
func TestOldFormats(t *testing.T) {
	want := sampleLog(t, vfs.NewMem(), true)
	if dir := os.Getenv("RAFTLOG_SAMPLE"); dir != "" {
		mem := vfs.NewMem()
		sampleLog(t, mem, true)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range liveNames(t, mem) {
			if err := os.WriteFile(filepath.Join(dir, name), readFile(t, mem, "log/"+name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	dirs, err := filepath.Glob("testdata/v*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, dir := range dirs {
		mem := vfs.NewMem()
		if err := mem.MkdirAll("log", 0o700); err != nil {
			t.Fatal(err)
		}
		names, _ := filepath.Glob(dir + "/*.log")
		for _, name := range names {
			if err := vfs.CopyAcrossFS(vfs.Default, name, mem, "log/"+filepath.Base(name)); err != nil {
				t.Fatal(err)
			}
		}
		l := mustOpen(t, Options{FS: mem, Dir: "log", SegmentBytes: minSegmentBytes})
		if d := diff(l, want, 0); d != "" {
			t.Errorf("%s: %s", dir, d)
		}
		w := Write{Entries: entriesFrom(want.last()+1, 20, 900, 7), Sync: true}
		appendWait(t, l, w)
		if d := diff(l, want.after(w), 0); d != "" {
			t.Errorf("%s, appended to: %s", dir, d)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
