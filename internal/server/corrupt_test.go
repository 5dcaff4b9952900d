package server

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/transport"
)

// spoil changes the value of a key in the state of a member that is stopped.
func (c *cluster) spoil(i int, value, to string) {
	c.t.Helper()
	dir, err := datadir.Open(c.disks[i], "data")
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() {
		if err := dir.Close(); err != nil {
			c.t.Error(err)
		}
	}()
	state, err := dir.State()
	if err != nil {
		c.t.Fatal(err)
	}
	e, err := engine.Open(engine.Options{FS: c.disks[i], Dir: state, MustExist: true})
	if err != nil {
		c.t.Fatal(err)
	}
	it, err := e.NewIter(engine.VersionBounds(kv.Range{Key: []byte{0}, End: []byte{0}}))
	if err != nil {
		c.t.Fatal(err)
	}
	b := e.NewBatch()
	for ok := it.First(); ok; ok = it.Next() {
		if row := it.Value(); bytes.Contains(row, []byte(value)) {
			if err := b.Set(it.Key(), bytes.Replace(row, []byte(value), []byte(to), 1)); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	if b.Count() != 1 || len(value) != len(to) {
		c.t.Fatalf("%d rows with %q", b.Count(), value)
	}
	if err := errors.Join(it.Err(), it.Close(), b.Commit(), b.Close(), e.Flush(), e.Close()); err != nil {
		c.t.Fatal(err)
	}
}

// alarms are those of the type CORRUPT.
func corruptAlarms(m *Member) (ids []uint64) {
	for _, a := range m.Alarms() {
		if a.Type == kv.AlarmCorrupt {
			ids = append(ids, a.MemberID)
		}
	}
	return ids
}

// stopOne stops a member whose data is what has been written so far, and is in its state, not in its log.
func (c *cluster) stopOne(i int) {
	c.t.Helper()
	caughtUp(c.t, c.members[i], c.members[(i+1)%len(c.members)])
	c.stop(i)
}

// A member with other data than its peers does not start with the check, whoever has compacted further, and one with the same does, whatever else was
// written meanwhile; new members are not held up.
func TestInitialCorruptCheck(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.change = func(o *Options) { o.InitialCorruptCheck = true }
		c.startAll()
		put(t, c.members[0], "k", "good")
		c.stopOne(2)
		put(t, c.members[0], "later", "good?")
		c.start(2)
		c.stopOne(2)
		c.spoil(2, "good?", "evil?")
		put(t, c.members[0], "later", "again")
		bad := c.members[2].identity.MemberID
		for _, compact := range []int64{0, c.members[2].Store().Revision()} { // the latter in the cluster, while it is down (E#20059)
			if compact > 0 {
				compactTo(t, c.members[0], compact)
				caughtUp(t, c.members[1], c.members[0])
			}
			_, err := Start(c.options(2))
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("the data of this member (%x) differs from that of the member", bad)) {
				t.Fatalf("started with other data, compacted at %d elsewhere: %v", compact, err)
			}
		}
		// History that is compacted beyond what this one has says nothing, and neither do peers that are not there.
		compactTo(t, c.members[0], put(t, c.members[0], "k", "last").Revision)
		caughtUp(t, c.members[1], c.members[0])
		c.start(2)
		c.stop(2)
		c.stop(1)
		c.stop(0)
		c.start(2)
		c.stop(2)
	})
}

func compactTo(t *testing.T, m *Member, revision int64) {
	t.Helper()
	r, err := try(t, m, &command.Command{Compact: &command.Compact{Revision: revision}})
	if err != nil {
		t.Fatal(err)
	}
	<-r.Compacted
}

// The leader finds the member whose data differs, whichever it is; without a majority that agrees the alarm is nobody's.
// Either stops writes on all members until it is disarmed, and reads go on.
func TestCorruptChecks(t *testing.T) {
	checks := map[string]func(*Options){
		"newest revision":  func(o *Options) { o.CorruptCheckTime = 10 * time.Second },
		"after compacting": func(o *Options) { o.CompactHashCheckTime = 10 * time.Second },
	}
	for name, check := range checks {
		for _, of := range [][]int{{}, {0}, {1}, {2}, {1, 2}} {
			t.Run(fmt.Sprint(name, of), func(t *testing.T) {
				bubble.Test(t, func(t *testing.T) {
					c := newCluster(t, 3)
					defer c.network.Close()
					c.startAll()
					put(t, c.members[0], "k", "good0")
					for i := range c.members {
						caughtUp(t, c.members[i], c.members[0])
					}
					c.stopAll()
					for n, i := range of {
						c.spoil(i, "good0", fmt.Sprint("evil", n))
					}
					c.change = check
					c.startAll()
					var want []uint64
					for _, i := range of {
						want = append(want, c.members[i].identity.MemberID)
					}
					if len(of) > 1 {
						want = []uint64{0}
					}
					time.Sleep(time.Minute + 5*time.Second) // not a whole number of intervals: no check comes between the compactions
					if name == "after compacting" {
						if got := corruptAlarms(c.members[0]); len(got) > 0 {
							t.Errorf("alarms %x without a compaction", got)
						}
						for range 3 {
							compactTo(t, c.members[0], put(t, c.members[0], "other", "").Revision-1)
							time.Sleep(time.Second)
						}
						time.Sleep(time.Minute)
					}
					for _, m := range c.members {
						if err := m.ReadBarrier(t.Context()); err != nil {
							t.Fatal(err)
						}
						if got := corruptAlarms(m); !slices.Equal(got, want) {
							t.Errorf("%s has alarms %x, want %x", m.options.Name, got, want)
						}
						_, err := tryPut(t, m, "after", "")
						if (len(want) > 0) != errors.Is(err, kv.ErrCorrupt) || len(want) == 0 && err != nil {
							t.Errorf("a put after the check: %v", err)
						}
						get(t, m, "k")
					}
					c.stopAll()
				})
			})
		}
	}
}

// enableAuth makes the user root and switches authentication on.
func enableAuth(t *testing.T, m *Member) {
	t.Helper()
	for _, a := range []command.Auth{
		{Op: command.AuthUserAdd, Name: "root"}, {Op: command.AuthUserGrant, Name: "root", Role: "root"}, {Op: command.AuthEnable},
	} {
		if _, err := try(t, m, &command.Command{Auth: &a}); err != nil {
			t.Fatal(err)
		}
	}
}

// With authentication on too, what members find is raised and cleared: nobody asks for it in a user's name.
func TestAlarmsWithAuth(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		put(t, c.members[0], "k", "good")
		enableAuth(t, c.members[0])
		for i := range c.members {
			if err := c.members[i].ReadBarrier(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		c.stopAll()
		c.spoil(2, "good", "evil")
		c.change = func(o *Options) {
			o.CorruptCheckTime, o.QuotaBytes, o.QuotaManualDisarm = time.Second, 1, true // any state is larger
		}
		c.startAll()
		time.Sleep(10 * time.Second)
		if got := corruptAlarms(c.members[0]); len(got) != 1 || got[0] != c.members[2].identity.MemberID {
			t.Errorf("alarms of corruption: %x", got)
		}
		for _, m := range c.members {
			if raised, own := m.noSpace(); !raised || own {
				t.Errorf("%s: the alarm NOSPACE is raised: %t, its own: %t", m.options.Name, raised, own)
			}
		}
		c.stopAll()
	})
}

// A member that takes care of its own damage is left out: its alarm stays its own, and stops nobody else.
func TestCorruptCheckLeavesOwnAlone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		put(t, c.members[0], "k", "good")
		c.stopOne(2)
		c.spoil(2, "good", "evil")
		alarm := kv.Alarm{Type: kv.AlarmCorrupt, MemberID: c.members[2].identity.MemberID, Own: true}
		if _, err := try(t, c.members[0], &command.Command{Alarm: &command.Alarm{Alarm: alarm, Raise: true}}); err != nil {
			t.Fatal(err)
		}
		c.change = func(o *Options) { o.CorruptCheckTime = time.Second }
		c.start(2)
		for _, i := range []int{0, 1} {
			c.stop(i)
			c.start(i)
		}
		time.Sleep(time.Minute)
		for _, m := range c.members {
			if got := m.Alarms(); len(got) != 1 || got[0] != alarm {
				t.Errorf("alarms: %+v", got)
			}
		}
		put(t, c.members[0], "after", "")
		c.stopAll()
	})
}

// While there are writes and compactions all the time, members that hold the same are never found to differ.
func TestCorruptChecksUnderLoad(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.change = func(o *Options) {
			o.CorruptCheckTime, o.CompactHashCheckTime = 50*time.Millisecond, 70*time.Millisecond
		}
		c.network.SetOptions(transport.NetworkOptions{Seed: 1, MaxDelay: 20 * time.Millisecond}) // so that some are behind
		c.startAll()
		for i := range 2000 {
			m := c.members[i%3]
			rev := put(t, m, fmt.Sprint("k", i%10), fmt.Sprint(i)).Revision
			if i%7 == 0 {
				if _, err := try(t, m, &command.Command{Compact: &command.Compact{Revision: rev - 3}}); err != nil && !errors.Is(err, kv.ErrCompacted) {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Duration(i%5) * time.Millisecond)
		}
		if got := c.members[0].Alarms(); len(got) > 0 {
			t.Errorf("alarms: %+v", got)
		}
		c.stopAll()
	})
}
