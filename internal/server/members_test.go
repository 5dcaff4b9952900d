package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/replica"
)

// joining are the options of a member beside the founders, which the first of them takes as a learner.
func (c *cluster) joining(i int) Options {
	for len(c.disks) <= i {
		c.disks = append(c.disks, vfs.NewMem())
	}
	o := c.options(i)
	o.Founders, o.PeerURLs = nil, []string{fmt.Sprintf("http://peer%d", i)}
	o.Join = func(ctx context.Context) (Joined, error) {
		id, err := c.members[0].AddMember(ctx, o.PeerURLs, true)
		j := c.members[0].joined()
		j.MemberID = id
		return j, err
	}
	return o
}

func (c *cluster) run(o Options) *Member {
	c.t.Helper()
	m, err := Start(o)
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// until waits in the bubble's time.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(what)
}

// caughtUp waits until the member has applied a write made through other.
func caughtUp(t *testing.T, m, other *Member) {
	t.Helper()
	key := fmt.Sprintf("mark%d", put(t, other, "mark", "").Revision)
	at := put(t, other, key, "").Revision
	until(t, "a member does not catch up", func() bool { return m.Store().Revision() >= at })
}

// knows holds what the member and its raft know of one member against what is meant.
func knows(t *testing.T, m *Member, want member.Member) {
	t.Helper()
	s := m.machine.state.Load()
	got, ok := s.Members.Get(want.ID)
	if !ok || got.Learner != want.Learner || !slices.Equal(got.PeerURLs, want.PeerURLs) {
		t.Errorf("%s knows %+v (%t), want %+v", m.options.Name, got, ok, want)
	}
	voters, learners, err := replica.DecodeConfState(s.ConfState)
	if err != nil || slices.Contains(voters, want.ID) == want.Learner || slices.Contains(learners, want.ID) != want.Learner {
		t.Errorf("raft of %s has the voters %x and learners %x (%v), want %+v", m.options.Name, voters, learners, err, want)
	}
}

// promote promotes as soon as the leader finds the learner ready.
func promote(t *testing.T, m *Member, id uint64) {
	t.Helper()
	var err error
	for range 600 {
		if err = m.PromoteMember(t.Context(), id); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal(err)
}

// A learner that has caught up may be promoted at any moment: at once, when the leader's picture of it is a tick old, and
// right after the leader has forgotten, as raft does at each check of the majority, whom it has heard of.
func TestCaughtUpIsReadyAtAnyTime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.network.Close()
		first := c.start(0)
		second := c.run(c.joining(1))
		caughtUp(t, second, first)
		tick := first.options.Tick
		for end := time.Now().Add(40 * tick); time.Now().Before(end); time.Sleep(tick / 7) {
			for _, m := range []*Member{first, second} {
				if err := m.askReady(t.Context(), second.identity.MemberID); err != nil {
					t.Fatalf("%s is told of a learner that has caught up: %v", m.options.Name, err)
				}
			}
		}
		second.Kill()
		time.Sleep(3 * first.options.electionTimeout())
		if err := first.askReady(t.Context(), second.identity.MemberID); !errors.Is(err, kv.ErrLearnerNotReady) {
			t.Errorf("the leader is told of a learner that does not run: %v", err)
		}
		c.stop(0)
	})
}

// A learner that was given a vote has it after every restart, be it that the promotion is read from the state (a stop) or
// applied again from the log (a kill) (E#19557).
func TestPromotionOutlivesRestarts(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.network.Close()
		first := c.start(0)
		second := c.run(c.joining(1))
		id, urls := second.identity.MemberID, []string{"http://peer1"}
		caughtUp(t, second, first)
		knows(t, first, member.Member{ID: id, PeerURLs: urls, Learner: true})
		knows(t, second, member.Member{ID: id, PeerURLs: urls, Learner: true})
		promote(t, first, id)
		for _, end := range []func(m *Member){
			(*Member).Kill,
			func(m *Member) {
				if err := m.Stop(t.Context()); err != nil {
					t.Error(err)
				}
			},
			(*Member).Kill,
		} {
			caughtUp(t, second, first)
			end(second)
			end(first)
			first, second = c.start(0), c.run(c.joining(1))
			caughtUp(t, second, first) // takes both: two have votes
			for _, m := range []*Member{first, second} {
				knows(t, m, member.Member{ID: id, PeerURLs: urls})
			}
		}
		second.Kill()
		first.Kill()
	})
}

// Other peer URLs leave a learner a learner and a voter a voter, also over restarts (E#21736).
func TestUpdateKeepsTheVote(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.network.Close()
		first := c.start(0)
		second := c.run(c.joining(1))
		want := member.Member{ID: second.identity.MemberID, Learner: true}
		for i, learner := range []bool{true, false} {
			if want.Learner = learner; !learner {
				caughtUp(t, second, first)
				promote(t, first, want.ID)
			}
			want.PeerURLs = []string{fmt.Sprintf("http://moved%d", i)}
			if err := first.UpdateMember(t.Context(), want.ID, want.PeerURLs); err != nil {
				t.Fatal(err)
			}
			caughtUp(t, second, first)
			knows(t, first, want)
			knows(t, second, want)
			second.Kill()
			first.Kill()
			first, second = c.start(0), c.run(c.joining(1))
			caughtUp(t, second, first)
			knows(t, first, want)
			knows(t, second, want)
		}
		if err := first.UpdateMember(t.Context(), want.ID, []string{"http://peer0"}); !errors.Is(err, kv.ErrPeerURLExists) {
			t.Errorf("peer URLs of another member: %v", err)
		}
		second.Kill()
		first.Kill()
	})
}

// With one member of three down, a strict cluster takes no other one, which could cost it its majority, and goes on
// (E#21667); with all of them up it does.
func TestAddWithOneDown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.change = func(o *Options) { o.StrictReconfig = true }
		c.startAll()
		m := c.members[0]
		until(t, "the members do not say who they are", func() bool { _, started := m.voters(0); return started == 3 })
		c.members[2].Kill()
		until(t, "a killed member counts as one that runs", func() bool { return m.active(m.machine.state.Load().Members.All()) == 2 })
		for _, learner := range []bool{false, true} {
			if _, err := m.AddMember(t.Context(), []string{"http://new"}, learner); !errors.Is(err, kv.ErrUnhealthy) {
				t.Fatalf("added (learner %t) with a member down: %v", learner, err)
			}
		}
		put(t, m, "k", "v")
		if n := len(m.Members()); n != 3 {
			t.Fatalf("%d members after refusals", n)
		}
		c.start(2)
		until(t, "a member that came back does not count", func() bool { return m.active(m.machine.state.Load().Members.All()) == 3 })
		id, err := m.AddMember(t.Context(), []string{"http://new"}, false)
		if err != nil {
			t.Fatal(err)
		}
		put(t, m, "k", "w")
		knows(t, m, member.Member{ID: id, PeerURLs: []string{"http://new"}})
		c.stopAll()
	})
}

// A new cluster can be made of a voter that has learners, and of a learner; it has a vote, and all data (E#20896).
func TestForceNewClusterWithLearners(t *testing.T) {
	for _, of := range []string{"voter", "learner"} {
		t.Run(of, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				defer c.network.Close()
				first := c.start(0)
				second := c.run(c.joining(1))
				put(t, first, "k", of)
				caughtUp(t, second, first)
				ids := []uint64{first.identity.MemberID, second.identity.MemberID}
				second.Kill()
				first.Kill()
				restart := func(force bool) *Member {
					o := c.options(0)
					if of == "learner" {
						o = c.joining(1)
					}
					o.ForceNewCluster = force
					return c.run(o)
				}
				if of == "learner" {
					slices.Reverse(ids)
				}
				for _, force := range []bool{true, false} {
					m := restart(force)
					if got := get(t, m, "k"); got != of {
						t.Errorf("k is %q", got)
					}
					put(t, m, "alone", "")
					all := m.Members()
					if len(all) != 1 || all[0].ID != ids[0] {
						t.Fatalf("members: %+v", all)
					}
					knows(t, m, member.Member{ID: ids[0], PeerURLs: all[0].PeerURLs})
					if !m.machine.state.Load().Members.Removed(ids[1]) {
						t.Error("the other is not remembered as removed")
					}
					m.Kill()
				}
			})
		})
	}
}

// A member with data is refused only if another cluster answers where it is to join, and nobody of its own.
func TestJoinWithDataOfAnotherCluster(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.network.Close()
		m := c.start(0)
		put(t, m, "k", "v")
		own := m.identity.ClusterID
		c.stop(0)
		for _, x := range []struct {
			what    string
			answer  []uint64 // of which clusters
			silent  bool     // one more never answers
			refused bool
		}{
			{what: "nobody"},
			{what: "nobody, for long", silent: true},
			{what: "its own", answer: []uint64{own}, silent: true},
			{what: "another", answer: []uint64{own + 1}, refused: true},
			{what: "another, and one never", answer: []uint64{own + 1}, silent: true, refused: true},
			{what: "another and its own", answer: []uint64{own + 1, own}, silent: true},
		} {
			o := c.options(0)
			o.Join = func(context.Context) (Joined, error) { return Joined{}, errors.New("it has data") }
			o.Answers = func(ctx context.Context) <-chan Joined {
				found := make(chan Joined, len(x.answer))
				for _, id := range x.answer {
					found <- Joined{ClusterID: id}
				}
				go func() {
					if x.silent {
						<-ctx.Done()
					}
					close(found)
				}()
				return found
			}
			m, err := Start(o)
			switch {
			case err == nil:
				if got := get(t, m, "k"); got != "v" {
					t.Errorf("%s: k is %q", x.what, got)
				}
				m.Kill()
			case !x.refused || !strings.Contains(err.Error(), fmt.Sprintf("belongs to the cluster %x, and at the endpoints to join (--join) answers the cluster %x", own, own+1)):
				t.Errorf("%s: %v", x.what, err)
			}
			if x.refused && err == nil {
				t.Errorf("%s: it started", x.what)
			}
		}
	})
}

// TestRefusedJoinLeavesNothing: what was not there before a join that was refused is not there after it, and what was there is.
func TestRefusedJoinLeavesNothing(t *testing.T) {
	refused := errors.New("the name is taken")
	for name, there := range map[string]bool{"no directory": false, "a directory with a file": true} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "above", "data")
			keep := filepath.Join(dir, "notes.txt")
			if there {
				if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(keep, []byte("mine"), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			logDir := filepath.Join(t.TempDir(), "log")
			_, err := Start(Options{
				FS: vfs.Default, DataDir: dir, LogDir: logDir, Name: "late", PeerURLs: []string{"http://peer9"}, Origin: 9,
				Logger: slog.New(slog.DiscardHandler), Fatal: func(error) {},
				Tick: 100 * time.Millisecond, ElectionTicks: 10,
				Transport: func(TransportConfig) (Transport, error) { return nil, errors.New("not reached") },
				Join:      func(context.Context) (Joined, error) { return Joined{}, refused },
			})
			if !errors.Is(err, refused) {
				t.Fatalf("started with %v, want %v", err, refused)
			}
			if _, err := os.Stat(logDir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory of the log is left: %v", err)
			}
			left, err := os.ReadDir(dir)
			if !there && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the data directory is left, with %v: %v", left, err)
			}
			if there && (len(left) != 1 || left[0].Name() != "notes.txt") {
				t.Errorf("left in the data directory: %v, %v", left, err)
			}
			if _, err := os.Stat(filepath.Dir(dir)); there != (err == nil) {
				t.Errorf("the directory above: %v", err)
			}
		})
	}
}

// A member that was removed counts no more: of four, one is removed while it is down, and two of the three that are left are a
// majority without the third. And what it acknowledges is worth nothing: of three, one is removed, and the leader left alone
// with it agrees on nothing.
func TestRemovedCountsNoMore(t *testing.T) {
	t.Run("its silence", func(t *testing.T) {
		bubble.Test(t, func(t *testing.T) {
			c := newCluster(t, 4)
			defer c.network.Close()
			c.startAll()
			put(t, c.members[0], "k", "")
			gone := c.members[3].identity.MemberID
			c.members[3].Kill()
			if err := c.members[0].RemoveMember(t.Context(), gone); err != nil {
				t.Fatal(err)
			}
			caughtUp(t, c.members[1], c.members[0])
			c.members[2].Kill()
			put(t, c.members[0], "two of three", "")
			put(t, c.members[1], "two of three", "")
			c.members[0].Kill()
			c.members[1].Kill()
		})
	})
	t.Run("its word", func(t *testing.T) {
		bubble.Test(t, func(t *testing.T) {
			c := newCluster(t, 3)
			defer c.network.Close()
			// Nobody is told that it was removed, so that the third goes on and answers.
			c.change = func(o *Options) {
				join := o.Transport
				o.Transport = func(tc TransportConfig) (Transport, error) {
					network, err := join(tc)
					return untold{network}, err
				}
			}
			c.startAll()
			put(t, c.members[0], "k", "")
			a, b, removed := c.members[0].identity.MemberID, c.members[1].identity.MemberID, c.members[2].identity.MemberID
			until(t, "the first member does not lead", func() bool {
				for _, m := range c.members {
					if m.Leader() == m.identity.MemberID && m.identity.MemberID != a {
						_ = m.MoveLeader(t.Context(), a) // or again
					}
				}
				return c.members[0].Leader() == a
			})
			c.network.Partition([]uint64{a, b}, []uint64{removed}) // so that it does not hear of it
			if err := c.members[0].RemoveMember(t.Context(), removed); err != nil {
				t.Fatal(err)
			}
			c.network.Partition([]uint64{a, removed}, []uint64{b})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if _, err := c.members[0].Propose(ctx, &command.Command{Put: &command.Put{Key: []byte("k")}}); err == nil {
				t.Error("a put was agreed on with a member that was removed")
			}
			for _, m := range c.members {
				m.Kill()
			}
		})
	})
}

// untold is a network on which nobody is told that it was removed, and nobody is kept out for it.
type untold struct{ Transport }

func (untold) RemovePeer(uint64) {}

// A member that hears of its removal has no more answers from the others, and says so at once to all who wait for one. (It would be a
// timeout otherwise, or a broken connection when it ends.) It ends a moment later.
func TestRemovedLeavesNobodyWaiting(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		put(t, c.members[0], "k", "")
		lease := kv.LeaseID(7)
		if _, err := try(t, c.members[0], &command.Command{LeaseGrant: &command.LeaseGrant{ID: lease, TTL: 600}}); err != nil {
			t.Fatal(err)
		}
		i := (c.leading() + 1) % 3
		removed, other := c.members[i], c.members[(i+1)%3]
		c.network.Partition([]uint64{removed.identity.MemberID})
		time.Sleep(time.Second)
		calls := map[string]func() error{
			"a put":     func() error { _, err := tryPut(t, removed, "k", "1"); return err },
			"a read":    func() error { return removed.ReadBarrier(t.Context()) },
			"a renewal": func() error { _, err := removed.LeaseRenew(t.Context(), lease); return err },
		}
		began := time.Now()
		ended := make(chan error, len(calls))
		for what, call := range calls {
			go func() {
				if err := call(); !errors.Is(err, kv.ErrStopped) {
					ended <- fmt.Errorf("%s gives %w", what, err)
					return
				}
				ended <- nil
			}()
		}
		if err := other.RemoveMember(t.Context(), removed.identity.MemberID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the leader has heard of it too, and answers it nothing any more
		c.network.Heal()
		<-removed.Leaving()
		for range calls {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took them %v", took)
		}
		if err := <-removed.Failed(); !errors.Is(err, ErrRemoved) {
			t.Errorf("the member ended with %v", err)
		}
		for _, m := range c.members {
			m.Kill()
		}
	})
}

// A member that ends while it is asked to remove itself has not been removed by that, and does not say so.
func TestEndsBeforeItRemovesItself(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		put(t, c.members[0], "k", "")
		m := c.members[(c.leading()+1)%3]
		c.network.Partition([]uint64{m.identity.MemberID})
		time.AfterFunc(time.Second, m.replica.Stop) // as it does when its log fails
		if err := m.RemoveMember(t.Context(), m.identity.MemberID); !errors.Is(err, kv.ErrStopped) {
			t.Errorf("it answers %v", err)
		}
		for _, m := range c.members {
			m.Kill()
		}
	})
}

// Whoever removes the member that it talks to is told that it was done, whether that leads or not.
func TestRemovesItself(t *testing.T) {
	for name, off := range map[string]int{"the leader": 0, "a follower": 1} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := newCluster(t, 3)
				defer c.network.Close()
				c.startAll()
				put(t, c.members[0], "k", "")
				m := c.members[(c.leading()+off)%3]
				if err := m.RemoveMember(t.Context(), m.identity.MemberID); err != nil {
					t.Error(err)
				}
				if err := <-m.Failed(); !errors.Is(err, ErrRemoved) {
					t.Errorf("the member ended with %v", err)
				}
				for _, m := range c.members {
					m.Kill()
				}
			})
		})
	}
}
