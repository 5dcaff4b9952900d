package replica

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/raftlog"
	"github.com/trivet-kv/trivet/internal/transport"
)

func openLog(t *testing.T, fs vfs.FS) raftLog {
	t.Helper()
	log, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "log", SegmentBytes: 16 << 10})
	if err != nil {
		t.Fatal(err)
	}
	return raftLog{log}
}

func write(log Log, w Write) {
	done := make(chan struct{})
	w.Sync, w.Done = true, func() { close(done) }
	log.Append(w)
	<-done
}

func entries(term, from, to uint64) (es []*raftpb.Entry) {
	for i := from; i <= to; i++ {
		es = append(es, &raftpb.Entry{Index: new(i), Term: new(term), Data: make([]byte, 500)})
	}
	return es
}

func hardState(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: new(term), Vote: new(vote), Commit: new(commit)}
}

// TestReconcile: every way in which log and state may stand to each other at a start, after all that can have happened
// and some of what cannot.
func TestReconcile(t *testing.T) {
	for _, c := range []struct {
		name    string
		writes  []Write
		applied Position
		want    string // hard state and log afterwards, or a part of the error
	}{
		{"a new member", nil, Position{1, 1}, "term 1 vote 0 commit 1, log (1 1]"},
		{"a new member that has voted", []Write{{HardState: hardState(4, 2, 0)}}, Position{1, 1}, "term 4 vote 2 commit 1, log (1 1]"},
		{"a restart", []Write{{Reset: &Position{1, 1}, HardState: hardState(3, 2, 7), Entries: entries(3, 2, 9)}},
			Position{5, 3}, "term 3 vote 2 commit 7, log (1 9]"},
		{"the commit index was not written yet", []Write{{Reset: &Position{1, 1}, HardState: hardState(3, 2, 1), Entries: entries(3, 2, 9)}},
			Position{5, 3}, "term 3 vote 2 commit 5, log (1 9]"},
		{"installed beyond the log", []Write{{Reset: &Position{1, 1}, HardState: hardState(3, 2, 7), Entries: entries(3, 2, 9)}},
			Position{50, 4}, "term 4 vote 0 commit 50, log (50 50]"},
		{"installed beyond the log, voted since", []Write{{Reset: &Position{1, 1}, HardState: hardState(6, 2, 7), Entries: entries(3, 2, 9)}},
			Position{50, 4}, "term 6 vote 2 commit 50, log (50 50]"},
		{"installed over uncommitted entries of another leader", []Write{{Reset: &Position{1, 1}, HardState: hardState(3, 2, 4), Entries: entries(3, 2, 9)}},
			Position{8, 4}, "term 4 vote 0 commit 8, log (8 8]"},
		{"the log is cut beyond the state", []Write{{Reset: &Position{40, 2}, HardState: hardState(3, 2, 41), Entries: entries(3, 41, 45)}},
			Position{9, 2}, "the log begins behind entry 40 but the state holds only 9"},
		{"the state contradicts a committed entry", []Write{{Reset: &Position{1, 1}, HardState: hardState(4, 2, 9), Entries: entries(3, 2, 9)}},
			Position{8, 4}, "entry 8 has term 4 in the state and term 3 in the log"},
		{"committed entries are missing", []Write{{Reset: &Position{1, 1}, HardState: hardState(3, 2, 12), Entries: entries(3, 2, 9)}},
			Position{5, 3}, "the log ends at entry 9 but says that entry 12 was committed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			log := openLog(t, fs)
			for _, w := range c.writes {
				write(log, w)
			}
			got := reconciled(log, c.applied)
			if c.want != got && !strings.Contains(got, c.want) {
				t.Errorf("%s, want %s", got, c.want)
			}
			log.Close()
			// What was found is durable, and another start finds nothing to do.
			log = openLog(t, fs.CrashClone(vfs.CrashCloneCfg{}))
			defer log.Close()
			if again := reconciled(log, c.applied); again != got {
				t.Errorf("after another start %s, before %s", again, got)
			}
		})
	}
}

func reconciled(log raftLog, applied Position) string {
	hs, err := reconcile(log, applied, slog.New(slog.DiscardHandler))
	if err != nil {
		return err.Error()
	}
	first, _ := log.FirstIndex()
	last, _ := log.LastIndex()
	return fmt.Sprintf("term %d vote %d commit %d, log (%d %d]", hs.GetTerm(), hs.GetVote(), hs.GetCommit(), first-1, last)
}

// TestInstallCrash crashes a follower after each change of its disk while it gets and installs a snapshot: from whatever
// is left it starts, with a log that holds what its state holds.
func TestInstallCrash(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cl := newCluster(t, 3, 0, transport.NetworkOptions{MinDelay: time.Millisecond, MaxDelay: time.Millisecond},
			Config{CatchupEntries: 10, MaxEntryBytes: 1024})
		defer cl.close()
		cl.must(cl.campaign(1))
		cl.must(cl.propose(1, "before", 3*time.Second))
		cl.must(cl.check(time.Second))
		cl.crash(3)
		for i := range 150 {
			cl.must(cl.propose(1, fmt.Sprintf("%d-%s", i, make([]byte, 1000)), 3*time.Second))
		}
		cl.start(3)
		m := cl.members[3]
		var clones []*vfs.MemFS
		m.node.fs.watch(func() {
			percent := []int{0, 50, 100}[len(clones)%3]
			clones = append(clones, m.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: cl.rng}))
		})
		cl.must(cl.check(5 * time.Second))
		m.node.fs.watch(nil)
		if m.node.machine.installs != 1 {
			t.Fatalf("%d snapshots were installed", m.node.machine.installs)
		}
		installed, reset := 0, 0
		for i, fs := range clones {
			log := openLog(t, fs)
			machine, err := openToy(fs, cl.boot)
			if err != nil {
				t.Fatalf("after step %d: %v", i, err)
			}
			p := machine.state.Applied
			if term, err := log.Term(p.Index); err != nil || term != p.Term {
				reset++
			}
			if p.Index > 100 {
				installed++
			}
			if got := reconciled(log, p); !strings.Contains(got, "commit") {
				t.Errorf("after step %d: %s", i, got)
			}
			if term, err := log.Term(p.Index); err != nil || term != p.Term {
				t.Errorf("after step %d the log does not hold %+v: %d, %v", i, p, term, err)
			}
			log.Close()
		}
		t.Logf("%d steps, the new state after %d of them, a log to be reset after %d", len(clones), installed, reset)
		if installed == 0 || reset == 0 || installed == len(clones) {
			t.Error("no step between the two halves of the installation was looked at")
		}
	})
}

// TestLogKeptForCheckpoint: while a follower installs the checkpoint that it was sent, the leader's log and state go on far
// beyond it. The log is kept from the checkpoint on meanwhile, so that one checkpoint is enough; and not for ever.
func TestLogKeptForCheckpoint(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cl := newCluster(t, 3, 0, transport.NetworkOptions{MinDelay: time.Millisecond, MaxDelay: time.Millisecond},
			Config{CatchupEntries: 10, MaxEntryBytes: 1024})
		defer cl.close()
		n := 0
		write := func(entries int) {
			for range entries {
				n++
				cl.must(cl.propose(1, fmt.Sprintf("%d-%s", n, make([]byte, 1000)), 3*time.Second))
			}
		}
		cl.must(cl.campaign(1))
		write(1)
		cl.crash(3)
		write(150)
		cl.start(3)
		machine := cl.members[3].node.machine
		machine.mu.Lock()
		machine.installing = make(chan struct{})
		machine.mu.Unlock()
		time.Sleep(2 * time.Second)
		first := cl.members[1].node.r.Status().FirstIndex
		write(300) // the toy has made 250 of them durable, far more than a segment holds
		if now := cl.members[1].node.r.Status().FirstIndex; now > first+100 {
			t.Errorf("the log was cut from %d to %d while a checkpoint was in use", first, now)
		}
		close(machine.installing)
		cl.must(cl.check(10 * time.Second))
		if machine.installs != 1 {
			t.Errorf("%d checkpoints were installed, one was enough", machine.installs)
		}
		time.Sleep(2 * checkpointLife)
		write(100)
		if now := cl.members[1].node.r.Status().FirstIndex; now < first+200 {
			t.Errorf("the log still begins with %d, long after the checkpoint was in use", now)
		}
	})
}
