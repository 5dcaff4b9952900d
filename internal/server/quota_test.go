package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

const testQuota = 2 << 20

// fill puts values that do not compress until one is refused and the alarm is raised for it.
func fill(t *testing.T, m *Member) {
	t.Helper()
	value := make([]byte, 16<<10)
	for i := range value {
		value[i] = byte(rand.Uint32())
	}
	for i := range 4 * testQuota / len(value) {
		switch _, err := tryPut(t, m, fmt.Sprint("fill", i), string(value)); {
		case errors.Is(err, kv.ErrNoSpace):
			if time.Sleep(quotaEvery); len(m.Alarms()) > 0 {
				return
			} // a flush made the state smaller than it had been thought to be
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Fatal("four times the quota was written")
}

// empty deletes what fill wrote, and its history.
func empty(t *testing.T, m *Member) {
	t.Helper()
	r, err := try(t, m, &command.Command{DeleteRange: &command.DeleteRange{Range: kv.Range{Key: []byte("fill"), End: []byte("film")}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := try(t, m, &command.Command{Compact: &command.Compact{Revision: r.Revision}}); err != nil {
		t.Fatal(err)
	}
}

// A state that reached its quota takes no put and no lease on any member, can be read and cleaned up, and takes puts again
// once it was, by itself unless that is left to somebody.
func TestQuota(t *testing.T) {
	for _, manual := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			c := newCluster(t, 3)
			defer c.network.Close()
			c.change = func(o *Options) { o.QuotaBytes, o.QuotaManualDisarm = testQuota, manual }
			c.startAll()
			m := c.members[1]
			put(t, m, "k", "v")
			fill(t, m)
			time.Sleep(10 * quotaEvery)
			for _, one := range c.members {
				if raised, _ := m.noSpace(); !raised {
					t.Errorf("%s has no alarm", one.options.Name)
				}
				if _, err := tryPut(t, one, "k", "w"); !errors.Is(err, kv.ErrNoSpace) {
					t.Errorf("a put over the quota: %v", err)
				}
				if _, err := try(t, one, &command.Command{LeaseGrant: &command.LeaseGrant{ID: 1, TTL: 100}}); !errors.Is(err, kv.ErrNoSpace) {
					t.Errorf("a lease over the quota: %v", err)
				}
				if got := get(t, one, "k"); got != "v" {
					t.Errorf("k is %q", got)
				}
			}
			empty(t, m)
			time.Sleep(time.Minute)
			if manual {
				if len(m.Alarms()) == 0 {
					t.Error("the alarm went away by itself")
				}
				for _, a := range m.Alarms() {
					if _, err := m.Propose(t.Context(), &command.Command{Alarm: &command.Alarm{Alarm: kv.Alarm{Type: a.Type, MemberID: a.MemberID}}}); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, one := range c.members {
				put(t, one, "k", "x") // and so has applied what cleared the alarms
				if size := one.machine.state.Load().Engine.Size(); nearly(size, testQuota) {
					t.Errorf("%s is still %d bytes large", one.options.Name, size)
				}
				if left := one.Alarms(); len(left) > 0 {
					t.Errorf("alarms are left: %v", left)
				}
			}
			c.stopAll()
		})
	}
}

// A negative quota is none, and clears what an earlier start has raised; the leader clears the alarms that members raised
// about themselves and that are gone, and leaves those that somebody raised.
func TestNoQuota(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.network.Close()
		c.change = func(o *Options) { o.QuotaBytes = testQuota }
		fill(t, c.start(0))
		time.Sleep(10 * quotaEvery)
		if len(c.members[0].Alarms()) != 1 {
			t.Fatalf("alarms: %v", c.members[0].Alarms())
		}
		c.stop(0)
		c.change = func(o *Options) { o.QuotaBytes = -1 }
		m := c.start(0)
		byHand := kv.Alarm{Type: kv.AlarmNoSpace, MemberID: 7}
		for _, a := range []kv.Alarm{byHand, {Type: kv.AlarmNoSpace, MemberID: 8, Own: true}} {
			if _, err := m.Propose(t.Context(), &command.Command{Alarm: &command.Alarm{Alarm: a, Raise: true}}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * quotaEvery)
		if left := m.Alarms(); len(left) != 1 || left[0] != byHand {
			t.Errorf("alarms are left: %v", left)
		}
		c.stop(0)
	})
}

// What compresses well is not held against a small quota for long because memtables hold it as it came.
func TestQuotaCountsWhatFilesTake(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.network.Close()
		c.change = func(o *Options) { o.QuotaBytes, o.MemTableBytes = testQuota, 8*testQuota }
		m := c.start(0)
		value := string(make([]byte, 16<<10))
		refused := 0
		for i := 0; i < 2*testQuota/len(value); {
			switch _, err := tryPut(t, m, fmt.Sprint(i), value); {
			case err == nil:
				i++
			case !errors.Is(err, kv.ErrNoSpace):
				t.Fatal(err)
			default:
				if refused++; refused > 4 {
					t.Fatalf("refused again and again at %d of %d bytes", m.machine.state.Load().Engine.Size(), testQuota)
				}
				time.Sleep(10 * time.Second) // four of these are less than flushEvery
			}
		}
		c.stop(0)
	})
}

// A write that does not fit is refused for itself as long as others do: the alarm is raised near the quota only, unless
// alarms are cleared by hand, as with etcd.
func TestOneTooLarge(t *testing.T) {
	for _, manual := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			c := newCluster(t, 1)
			defer c.network.Close()
			c.change = func(o *Options) { o.QuotaBytes, o.QuotaManualDisarm = testQuota, manual }
			m := c.start(0)
			large := make([]byte, testQuota/2)
			for i := range large {
				large[i] = byte(rand.Uint32())
			}
			put(t, m, "first", string(large))
			if _, err := tryPut(t, m, "second", string(large)); !errors.Is(err, kv.ErrNoSpace) {
				t.Fatalf("a put that does not fit: %v", err)
			}
			for range 40 { // looks of the member at its quota come between
				time.Sleep(quotaEvery / 10)
				if raised, _ := m.noSpace(); raised != manual {
					t.Fatalf("the alarm is raised: %t; by hand: %t", raised, manual)
				}
				if !manual {
					put(t, m, "small", "v")
				}
			}
			c.stop(0)
		})
	}
}

// Who may not write hears that, and raises no alarm, where another one hears that there is no room; before the alarm and
// after it.
func TestNoRoomAndNoPermission(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.network.Close()
		c.change = func(o *Options) { o.QuotaBytes = testQuota / 2 } // less than one request may be
		m := c.start(0)
		put(t, m, "k", "v")
		for _, a := range []command.Auth{
			{Op: command.AuthUserAdd, Name: "root"}, {Op: command.AuthUserGrant, Name: "root", Role: "root"},
			{Op: command.AuthUserAdd, Name: "alice"}, {Op: command.AuthEnable},
		} {
			if _, err := try(t, m, &command.Command{Auth: &a}); err != nil {
				t.Fatal(err)
			}
		}
		now := m.Auth().Published().Settings().Revision
		large := make([]byte, testQuota/2)
		putAs := func(user string, revision uint64) error {
			_, err := try(t, m, &command.Command{Put: &command.Put{Key: []byte("l"), Value: large}, User: user, AuthRevision: revision})
			return err
		}
		for _, raised := range []bool{false, true} {
			if err := putAs("alice", now); !errors.Is(err, kv.ErrPermissionDenied) {
				t.Errorf("alarm %t: alice, who may not, is told %v", raised, err)
			}
			if err := putAs("", 0); !errors.Is(err, kv.ErrUserEmpty) {
				t.Errorf("alarm %t: nobody is told %v", raised, err)
			}
			time.Sleep(3 * quotaEvery)
			if got, _ := m.noSpace(); got != raised {
				t.Errorf("the alarm is raised: %t", got)
			}
			if err := putAs("root", now); !errors.Is(err, kv.ErrNoSpace) {
				t.Errorf("alarm %t: root is told %v", raised, err)
			}
			if raised {
				break
			}
			by := &command.Alarm{Alarm: kv.Alarm{Type: kv.AlarmNoSpace, MemberID: m.identity.MemberID}, Raise: true}
			if _, err := try(t, m, &command.Command{Alarm: by, User: "root", AuthRevision: now}); err != nil {
				t.Fatal(err)
			}
		}
		c.stop(0)
	})
}

// A member that is removed takes its own alarm along, be it the leader or another one; while it was there nobody took puts.
func TestAlarmOfRemovedMember(t *testing.T) {
	for _, leads := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			c := newCluster(t, 3)
			defer c.network.Close()
			c.startAll()
			put(t, c.members[0], "k", "v")
			full := 0
			for i, m := range c.members {
				if (m.Leader() == m.identity.MemberID) == leads {
					full = i
				}
			}
			c.stop(full)
			c.change = func(o *Options) { o.QuotaBytes = testQuota }
			small := c.start(full)
			time.Sleep(10 * time.Second)
			if leads {
				for _, m := range c.members {
					if m != small && m.Leader() == m.identity.MemberID {
						if err := m.MoveLeader(t.Context(), small.identity.MemberID); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			fill(t, small)
			time.Sleep(3 * quotaEvery)
			other := c.members[(full+1)%3]
			if _, err := tryPut(t, other, "k", "w"); !errors.Is(err, kv.ErrNoSpace) {
				t.Fatalf("a put while one member is full: %v", err)
			}
			if err := other.RemoveMember(t.Context(), small.identity.MemberID); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			if left := other.Alarms(); len(left) > 0 {
				t.Errorf("the removed member was the leader: %t; left: %v", leads, left)
			}
			put(t, other, "k", "x")
			for i := range c.members {
				if i != full {
					c.stop(i)
				}
			}
			small.Stop(t.Context()) // it has stopped by itself
		})
	}
}
