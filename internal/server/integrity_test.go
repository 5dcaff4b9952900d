package server

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// loseKey takes a key out of the state of a member that is stopped, with its history, as if it had never been put.
func (c *cluster) loseKey(i int, key string) {
	c.t.Helper()
	dir, err := datadir.Open(c.disks[i], "data")
	if err != nil {
		c.t.Fatal(err)
	}
	state, err := dir.State()
	if err != nil {
		c.t.Fatal(err)
	}
	e, err := engine.Open(engine.Options{FS: c.disks[i], Dir: state, MustExist: true})
	if err != nil {
		c.t.Fatal(err)
	}
	it, err := e.NewIter(engine.VersionBounds(kv.Range{Key: []byte(key)}))
	if err != nil {
		c.t.Fatal(err)
	}
	b := e.NewBatch()
	for ok := it.First(); ok; ok = it.Next() {
		if err := b.Delete(slices.Clone(it.Key())); err != nil {
			c.t.Fatal(err)
		}
	}
	if b.Count() == 0 {
		c.t.Fatalf("%s is not there", key)
	}
	if err := errors.Join(it.Err(), it.Close(), b.Commit(), b.Close(), e.Flush(), e.Close(), dir.Close()); err != nil {
		c.t.Fatal(err)
	}
}

// sameHashes waits until all members hold the same.
func (c *cluster) sameHashes() {
	c.t.Helper()
	until(c.t, "the members hold different data", func() bool {
		var hashes []uint32
		for _, m := range c.members {
			if err := m.ReadBarrier(c.t.Context()); err != nil {
				c.t.Fatal(err)
			}
			hash, _, _, err := m.Store().HashKV(c.t.Context(), 0)
			if err != nil {
				c.t.Fatal(err)
			}
			hashes = append(hashes, hash)
		}
		return hashes[0] == hashes[1] && hashes[1] == hashes[2]
	})
}

// A member whose state became another one finds out as soon as that matters, is alone in it, raises the alarm for itself,
// and is rebuilt; then the alarm is gone. It may be the leader.
func TestDiverged(t *testing.T) {
	for _, leads := range []bool{false, true} {
		t.Run(fmt.Sprint("leader ", leads), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := newCluster(t, 3)
				defer c.network.Close()
				c.startAll()
				put(t, c.members[0], "k", "1")
				put(t, c.members[0], "other", "1")
				for i := range c.members {
					caughtUp(t, c.members[i], c.members[(i+1)%3])
				}
				c.stop(2)
				c.loseKey(2, "k")
				c.start(2)
				bad := c.members[2]
				for (bad.Leader() == bad.identity.MemberID) != leads {
					from := c.members[max(0, c.leading())]
					to := bad
					if !leads {
						to = c.members[0]
					}
					_ = from.MoveLeader(t.Context(), to.identity.MemberID) // or again
					time.Sleep(time.Second)
				}
				time.Sleep(30 * time.Second)
				select {
				case err := <-bad.Failed():
					t.Fatalf("found before it mattered: %v", err)
				default:
				}
				put(t, c.members[0], "k", "2")
				var found error
				for _, m := range c.members {
					select {
					case err := <-m.Failed():
						if m != bad {
							t.Fatalf("%s gives up: %v", m.options.Name, err)
						}
						found = err
					case <-time.After(20 * time.Second):
						if m == bad {
							t.Fatal("not found")
						}
					}
				}
				if !errors.Is(found, ErrRebuild) || !errors.Is(found, errDiverged) {
					t.Fatal(found)
				}
				if err := bad.Abort(t.Context()); err != nil {
					t.Fatal(err)
				}
				want := []kv.Alarm{{Type: kv.AlarmCorrupt, MemberID: bad.identity.MemberID, Own: true}}
				for _, m := range c.members[:2] {
					if err := m.ReadBarrier(t.Context()); err != nil {
						t.Fatal(err)
					}
					if got := m.Alarms(); !slices.Equal(got, want) {
						t.Errorf("alarms %v", got)
					}
					put(t, m, "meanwhile", "") // the others serve
				}
				c.start(2)
				until(t, "the alarm stays", func() bool { return len(c.members[0].Alarms()) == 0 && len(c.members[2].Alarms()) == 0 })
				if got := get(t, c.members[2], "k"); got != "2" {
					t.Errorf("k is %q", got)
				}
				c.sameHashes()
				put(t, c.members[0], "k", "3")
				time.Sleep(30 * time.Second)
				for _, m := range c.members {
					select {
					case err := <-m.Failed():
						t.Errorf("%s gives up after all is well: %v", m.options.Name, err)
					default:
					}
				}
				c.stopAll()
			})
		})
	}
}

// A member whose rows contradict each other finds that when it has to do with them, and is rebuilt: no hash needs to tell it.
func TestContradiction(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		put(t, c.members[0], "k", "1")
		c.stopOne(2)
		c.loseKey(2, "k") // and the count of keys stays as it was
		c.start(2)
		bad := c.members[2]
		for i := range 1024 { // as many as make it count
			put(t, c.members[0], fmt.Sprint("other/", i), "")
		}
		select {
		case err := <-bad.Failed():
			if !errors.Is(err, ErrRebuild) || !errors.Is(err, engine.ErrMalformed) {
				t.Fatal(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("not found")
		}
		if err := bad.Abort(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.start(2)
		c.sameHashes()
		c.stopAll()
	})
}

// Without a majority that agrees, nobody can tell who is right: the alarm is the cluster's, as etcd's, with authentication on
// too.
func TestTorn(t *testing.T) {
	for _, auth := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) { torn(t, auth) })
	}
}

func torn(t *testing.T, auth bool) {
	c := newCluster(t, 2)
	defer c.network.Close()
	c.startAll()
	set := func(m *Member, value string) error {
		r := &command.Command{Put: &command.Put{Key: []byte("k"), Value: []byte(value)}}
		if auth {
			r.User, r.AuthRevision = "root", m.machine.state.Load().Auth.Published().Settings().Revision
		}
		_, err := try(t, m, r)
		return err
	}
	put(t, c.members[0], "k", "1")
	caughtUp(t, c.members[0], c.members[1])
	caughtUp(t, c.members[1], c.members[0])
	if auth {
		enableAuth(t, c.members[0])
	}
	for _, m := range c.members {
		if err := m.ReadBarrier(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.stopAll()
	c.loseKey(1, "k")
	c.startAll()
	if err := set(c.members[0], "2"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(30 * time.Second)
	for _, m := range c.members {
		if got := corruptAlarms(m); !slices.Equal(got, []uint64{0}) {
			t.Errorf("authentication %t: alarms %x", auth, got)
		}
		if err := set(m, "3"); !errors.Is(err, kv.ErrCorrupt) {
			t.Errorf("authentication %t: a put: %v", auth, err)
		}
	}
	c.stopAll()
}
