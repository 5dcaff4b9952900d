package sim

import (
	"io"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
)

func writeFile(t *testing.T, fs vfs.FS, name, text string, sync bool) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if sync {
		if err := f.SyncData(); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := fs.OpenDir(fs.PathDir(name))
	if err == nil {
		err = dir.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, fs vfs.FS, name string) string {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// A crash loses what was not synced.
func TestDiskCrash(t *testing.T) {
	d := NewDisk(1, DiskOptions{})
	old := d.FS()
	writeFile(t, old, "synced", "x", true)
	writeFile(t, old, "unsynced", "x", false)
	d.Crash(0)
	now := d.FS()
	for name, want := range map[string]string{"synced": "x", "unsynced": ""} {
		if got := readFile(t, now, name); got != want {
			t.Errorf("%s holds %q after the crash, want %q", name, got, want)
		}
	}
	writeFile(t, old, "late", "x", true) // by the life that is over
	if _, err := d.FS().Stat("late"); err == nil {
		t.Error("a write of the dead life reached the disk")
	}
}

// A disk that syncs late loses what it said was synced, for a while.
func TestDiskSyncsLate(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := NewDisk(1, DiskOptions{Slow: []string{"log"}, SyncsLate: time.Second})
		writeFile(t, d.FS(), "log1", "x", true)
		writeFile(t, d.FS(), "other", "x", true)
		time.Sleep(2 * time.Second)
		writeFile(t, d.FS(), "log2", "x", true)
		d.Crash(0)
		for name, want := range map[string]string{"log1": "x", "log2": "", "other": "x"} {
			if got := readFile(t, d.FS(), name); got != want {
				t.Errorf("%s holds %q after the crash, want %q", name, got, want)
			}
		}
		d.Wait()
	})
}

func TestDiskDelay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := NewDisk(1, DiskOptions{Slow: []string{"log"}, SyncDelay: time.Millisecond})
		began := time.Now()
		writeFile(t, d.FS(), "other", "x", true)
		if time.Since(began) != 0 {
			t.Error("a file that is not slow was")
		}
		for range 200 {
			writeFile(t, d.FS(), "log", "x", true)
		}
		if took := time.Since(began); took < 50*time.Millisecond || took > time.Second {
			t.Errorf("200 syncs of up to 1 ms took %v", took)
		}
	})
}

// What waits for a slow disk waits no longer than the life that it belongs to.
func TestDiskDelayEndsWithCrash(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := NewDisk(1, DiskOptions{Slow: []string{"log"}, SyncDelay: time.Hour})
		began := time.Now()
		written := make(chan struct{})
		go func() {
			defer close(written)
			writeFile(t, d.FS(), "log", "x", true)
		}()
		time.Sleep(time.Millisecond)
		d.Crash(0)
		<-written
		if took := time.Since(began); took != time.Millisecond {
			t.Errorf("a sync ended %v after it began, and the disk crashed after 1 ms", took)
		}
	})
}
