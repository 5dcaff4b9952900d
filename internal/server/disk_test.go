package server

import (
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// With --unsafe-no-fsync nothing is made durable; without it, everything that was acknowledged is.
func TestNoFsync(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			c := newCluster(t, 1)
			defer c.network.Close()
			disk := vfs.NewCrashableMem()
			c.disks[0] = disk
			c.change = func(o *Options) { o.NoFsync = lazy }
			put(t, c.start(0), "k", "v")
			c.disks[0] = disk.CrashClone(vfs.CrashCloneCfg{}) // what was not synced is gone
			c.stop(0)
			names, err := c.disks[0].List("")
			if err != nil {
				t.Fatal(err)
			}
			if survived := slices.Contains(names, "data"); survived == lazy {
				t.Fatalf("no fsync: %t; after a crash there is %q", lazy, names)
			}
			if !lazy {
				if got := get(t, c.start(0), "k"); got != "v" {
					t.Errorf("k is %q", got)
				}
				c.stop(0)
			}
		})
	}
}

// The log is in its own directory and nowhere else, is found again, and is not taken for lost or for another's.
func TestLogInItsOwnDirectory(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.network.Close()
		c.change = func(o *Options) { o.LogDir = "/wal" }
		put(t, c.start(0), "k", "v")
		c.stop(0)
		if names, err := c.disks[0].List("/wal/log"); err != nil || len(names) == 0 {
			t.Fatalf("the directory of the log holds %q, %v", names, err)
		}
		if names, _ := c.disks[0].List("data/log"); len(names) > 0 {
			t.Errorf("the data directory holds %q", names)
		}
		if got := get(t, c.start(0), "k"); got != "v" {
			t.Errorf("k is %q", got)
		}
		c.stop(0)
		c.change = nil
		if _, err := Start(c.options(0)); err == nil || !strings.Contains(err.Error(), "/wal/log") {
			t.Errorf("started without its log: %v", err)
		}
	})
}
