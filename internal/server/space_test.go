package server

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// diskOf is how many bytes the files of a member's state take.
func diskOf(m *Member) int64 { return m.Status().DBSize }

// What was deleted, or written over, and compacted leaves the files soon, far below the quota and before the state is
// made durable for other reasons, on all members.
// With etcd a member stands still for that (E#9222, E#20115).
func TestSpaceIsGivenBack(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.change = func(o *Options) { o.MemTableBytes = 1 << 20 } // so that what is written is in files
		c.startAll()
		const values, size = 200, 32 << 10
		noise := make([]byte, values+size) // does not compress
		for i := range noise {
			noise[i] = byte(rand.Uint32())
		}
		write := func() (revision int64) {
			t.Helper()
			for i := range values {
				revision = put(t, c.members[i%3], fmt.Sprint("key", i), string(noise[i:i+size])).Revision
			}
			return revision
		}
		compact := func(revision int64) {
			t.Helper()
			if _, err := try(t, c.members[1], &command.Command{Compact: &command.Compact{Revision: revision}}); err != nil {
				t.Fatal(err)
			}
		}
		within := func(when string, low, high int64) {
			t.Helper()
			time.Sleep(20 * time.Second) // a third of flushEvery
			for _, m := range c.members {
				if got := diskOf(m); got < low || got > high {
					t.Errorf("%s %s takes %d bytes", when, m.options.Name, got)
				}
			}
		}
		for range 2 {
			compact(write())
		}
		within("written over", values*size*9/10, values*size*3/2)

		r, err := try(t, c.members[0], &command.Command{DeleteRange: &command.DeleteRange{Range: kv.Range{Key: []byte("key"), End: []byte("kez")}}})
		if err != nil {
			t.Fatal(err)
		}
		compact(r.Revision)
		within("deleted", 0, values*size/8)
		c.stopAll()
	})
}

// What is worth rewriting is a share of the state, and less near the quota.
func TestWorthRewriting(t *testing.T) {
	var got []string
	for _, quota := range []int64{-1, 8 << 30} {
		m := &Member{options: Options{QuotaBytes: quota}}
		for _, size := range []int64{0, 1 << 20, 1 << 30, 8 << 30} {
			got = append(got, fmt.Sprint(m.worth(size)>>10))
		}
	}
	if got, want := strings.Join(got, " "), "4096 4096 262144 2097152 4096 4096 262144 167772"; got != want {
		t.Errorf("worth, in KiB: %s, want %s", got, want)
	}
}
