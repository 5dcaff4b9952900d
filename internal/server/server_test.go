package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/transport"
	"github.com/trivet-kv/trivet/internal/watch"
)

// cluster is members that share a network in memory, each with its own file system.
type cluster struct {
	t       *testing.T
	network *transport.Network
	disks   []*vfs.MemFS
	members []*Member
	starts  uint64
	change  func(*Options) // of every member; may be nil
}

func newCluster(t *testing.T, n int) *cluster {
	c := &cluster{t: t, network: transport.NewNetwork(transport.NetworkOptions{Seed: 1}), members: make([]*Member, n)}
	for range n {
		c.disks = append(c.disks, newDisk())
	}
	return c
}

func newDisk() *vfs.MemFS { return vfs.NewMem() }

func (c *cluster) options(i int) Options {
	c.starts++
	o := Options{
		FS: c.disks[i], DataDir: "data", Name: fmt.Sprintf("m%d", i), Token: "test", Origin: c.starts,
		LogSegmentBytes: 64 << 10, MemTableBytes: 64 << 10, ClientURLs: []string{fmt.Sprintf("http://client%d", i)}, MaxLearners: 1,
		Transport: func(tc TransportConfig) (Transport, error) {
			return c.network.Join(transport.EndpointConfig{ID: tc.MemberID, FS: tc.FS, Incoming: tc.Incoming})
		},
	}
	if c.change != nil {
		c.change(&o)
	}
	for i := range c.members {
		o.Founders = append(o.Founders, Founder{Name: fmt.Sprintf("m%d", i), PeerURLs: []string{fmt.Sprintf("http://peer%d", i)}})
	}
	return o
}

func (c *cluster) start(i int) *Member {
	c.t.Helper()
	m, err := Start(c.options(i))
	if err != nil {
		c.t.Fatal(err)
	}
	c.members[i] = m
	return m
}

func (c *cluster) stop(i int) {
	c.t.Helper()
	if err := c.members[i].Stop(c.t.Context()); err != nil {
		c.t.Error(err)
	}
}

func (c *cluster) startAll() {
	c.t.Helper()
	for i := range c.members {
		c.start(i)
	}
}

func (c *cluster) stopAll() {
	c.t.Helper()
	for i := range c.members {
		c.stop(i)
	}
}

// stopAllBut stops the members but one, which is stopped already.
func (c *cluster) stopAllBut(one int) {
	c.t.Helper()
	for i := range c.members {
		if i != one {
			c.stop(i)
		}
	}
}

// leading is the place of the member that leads, -1 if none does.
func (c *cluster) leading() int {
	lead := -1
	for i, m := range c.members {
		if m.Leader() == m.identity.MemberID {
			lead = i
		}
	}
	return lead
}

// try proposes a command. The error is that of proposing it or the one that it was refused with.
func try(t *testing.T, m *Member, c *command.Command) (command.Result, error) {
	r, err := m.Propose(t.Context(), c)
	return r, errors.Join(err, r.Err)
}

func tryPut(t *testing.T, m *Member, key, value string) (command.Result, error) {
	return try(t, m, &command.Command{Put: &command.Put{Key: []byte(key), Value: []byte(value)}})
}

func put(t *testing.T, m *Member, key, value string) command.Result {
	t.Helper()
	r, err := tryPut(t, m, key, value)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return r
}

func get(t *testing.T, m *Member, key string) string {
	t.Helper()
	if err := m.ReadBarrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, _, err := m.Store().Range(kv.RangeOptions{Range: kv.Range{Key: []byte(key)}})
	if err != nil || len(r.KVs) != 1 {
		t.Fatalf("get %s: %d pairs, %v", key, len(r.KVs), err)
	}
	return string(r.KVs[0].Value)
}

// What one member acknowledged is read from every other, and is there after a stop and after a kill.
func TestThreeMembers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		for i, m := range c.members {
			put(t, m, fmt.Sprintf("key%d", i), fmt.Sprint(i))
		}
		for i := range 3 {
			for _, m := range c.members {
				if got := get(t, m, fmt.Sprintf("key%d", i)); got != fmt.Sprint(i) {
					t.Fatalf("key%d is %q", i, got)
				}
			}
		}
		for _, m := range c.members[0].Members() {
			if len(m.ClientURLs) != 1 {
				t.Errorf("the member %s has not published its client URLs", m.Name)
			}
		}
		c.stop(0)
		c.members[1].Kill()
		c.start(0)
		c.start(1)
		for i := range 3 {
			if got := get(t, c.members[i], "key1"); got != "1" {
				t.Fatalf("key1 is %q on member %d", got, i)
			}
		}
		c.stopAll()
	})
}

// A lease is renewed and asked for through any member, runs out on time, and takes its keys with it.
func TestLeaseThroughAnyMember(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		granted, err := c.members[0].Propose(t.Context(), &command.Command{LeaseGrant: &command.LeaseGrant{ID: 7, TTL: 10}})
		if err != nil || granted.Err != nil {
			t.Fatal(err, granted.Err)
		}
		if _, err := c.members[1].Propose(t.Context(), &command.Command{Put: &command.Put{Key: []byte("k"), Lease: 7}}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			for _, m := range c.members {
				time.Sleep(4 * time.Second)
				if ttl, err := m.LeaseRenew(t.Context(), 7); err != nil || ttl != 10 {
					t.Fatalf("renew: %d, %v", ttl, err)
				}
				if l, left, err := m.LeaseTimeToLive(t.Context(), 7); err != nil || l.TTL != 10 || left < 9 {
					t.Fatalf("time to live: %+v, %d, %v", l, left, err)
				}
			}
		}
		time.Sleep(12 * time.Second)
		for _, m := range c.members {
			if _, err := m.LeaseRenew(t.Context(), 7); !errors.Is(err, kv.ErrLeaseNotFound) {
				t.Fatalf("renewed after its end: %v", err)
			}
			if err := m.ReadBarrier(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r, _, err := m.Store().Range(kv.RangeOptions{Range: kv.Range{Key: []byte("k")}}); err != nil || r.Count != 0 {
				t.Fatalf("the key has outlived its lease: %+v, %v", r, err)
			}
		}
		c.stopAll()
	})
}

// Without a majority, requests end with the error that says why, and go on once there is one.
func TestWithoutMajority(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		m := c.start(0)
		_, err := m.Propose(t.Context(), &command.Command{Put: &command.Put{Key: []byte("k")}})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("put without a majority: %v", err)
		}
		if err := m.ReadBarrier(t.Context()); !errors.Is(err, kv.ErrTimeout) {
			t.Fatalf("read without a majority: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.ReadBarrier(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a client's own deadline: %v", err)
		}
		c.start(1)
		put(t, m, "k", "v")
		c.stop(0)
		c.stop(1)
	})
}

// A directory is opened by its own member only, and a refused start leaves everything as it was.
func TestRefusesForeignDirectories(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.network.Close()
		c.start(0)
		put(t, c.members[0], "k", "v")
		if _, err := Start(c.options(0)); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Fatalf("started twice: %v", err)
		}
		c.stop(0)
		for name, change := range map[string]func(*Options){
			`belongs to the member "m0"`: func(o *Options) { o.Name, o.Founders[0].Name = "other", "other" },
			"not among":                  func(o *Options) { o.Name = "nobody" },
		} {
			o := c.options(0)
			change(&o)
			if _, err := Start(o); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v, want an error with %q", err, name)
			}
		}
		// What is only for founding does not matter any more, and changes no id.
		founded := c.members[0].Header().ClusterID
		c.change = func(o *Options) { o.Token = "other" }
		m := c.start(0)
		if got := get(t, m, "k"); got != "v" || m.Header().ClusterID != founded {
			t.Fatalf("k is %q, the cluster is %x and was %x", got, m.Header().ClusterID, founded)
		}
		c.stop(0)
	})
}

// A member that was away while much was written and the log was cut is given a checkpoint, and its watchers go on from
// there without a gap.
func TestCatchUpFromCheckpoint(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		installed := 0
		c.change = func(o *Options) {
			o.CatchupEntries = 10
			o.Observer.Replica.Installed = func(uint64, time.Duration) { installed++ }
		}
		c.startAll()
		before := put(t, c.members[2], "before", "1")
		c.members[2].Kill()
		for i := range 3000 {
			put(t, c.members[0], fmt.Sprintf("k%d", i%100), strings.Repeat("x", 100))
		}
		last := put(t, c.members[0], "last", "1")
		time.Sleep(2 * flushEvery) // so that the log is cut
		m := c.start(2)
		if got := get(t, m, "last"); got != "1" || installed == 0 {
			t.Fatalf("last is %q after %d checkpoints", got, installed)
		}
		next := before.Revision
		if err := m.Store().Events(t.Context(), next+1, last.Revision, func(e kv.Event) error {
			if next++; e.Revision.Main != next {
				return fmt.Errorf("event of revision %d where %d is due", e.Revision.Main, next)
			}
			return nil
		}); err != nil || next != last.Revision {
			t.Fatalf("history ends at %d of %d: %v", next, last.Revision, err)
		}
		put(t, m, "after", "1")
		c.stopAll()
	})
}

// A member that lives through the replacement of its state: its watchers get everything, in order, and what is compacted
// later is deleted from the new state.
func TestStateReplacedAlive(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		installed := 0
		c.change = func(o *Options) {
			o.CatchupEntries = 10
			o.Observer.Replica.Installed = func(uint64, time.Duration) { installed++ }
		}
		c.startAll()
		m := c.members[2]
		next := put(t, m, "before", "1").Revision
		s := m.Hub().NewStream()
		defer s.Close()
		if _, err := s.Create(t.Context(), watch.CreateOptions{Range: kv.Range{Key: []byte{0}, End: []byte{0}}}); err != nil {
			t.Fatal(err)
		}
		c.network.Partition([]uint64{m.identity.MemberID})
		for i := range 3000 {
			put(t, c.members[0], fmt.Sprintf("k%d", i%100), strings.Repeat("x", 100))
		}
		time.Sleep(2 * flushEvery) // so that the log is cut
		last := put(t, c.members[0], "last", "1").Revision
		c.network.Heal()
		if got := get(t, m, "last"); got != "1" || installed == 0 {
			t.Fatalf("last is %q after %d checkpoints", got, installed)
		}
		last = max(last, put(t, m, "after", "1").Revision)
		for next < last {
			b, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range b.Events {
				if next++; e.Revision.Main != next {
					t.Fatalf("event of revision %d where %d is due", e.Revision.Main, next)
				}
			}
		}
		r, err := try(t, m, &command.Command{Compact: &command.Compact{Revision: last - 1}})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-r.Compacted:
		case <-time.After(time.Minute):
			t.Error("what was compacted is not deleted")
		}
		c.stopAll()
	})
}

// A member that comes back with an empty disk is refused by name, as long as a peer remembers it.
func TestRefusesWipedMember(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		put(t, c.members[2], "k", "v")
		time.Sleep(time.Second) // for all to have published themselves
		c.stop(2)
		c.disks[2] = vfs.NewMem()
		if _, err := Start(c.options(2)); err == nil || !strings.Contains(err.Error(), "from an earlier start") {
			t.Fatalf("a wiped member started: %v", err)
		}
		c.stop(0)
		c.stop(1)
	})
}
