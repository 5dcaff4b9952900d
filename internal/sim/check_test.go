package sim

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/rpc"
)

// A store as it might have been: two lives of a, one of b, two keys changed in one revision.
func someLog(t *testing.T) *Log {
	t.Helper()
	l, err := NewLog([]Event{
		{Revision: 2, Key: "a", Pair: Pair{"v1", 2, 2, 1}},
		{Revision: 3, Key: "b", Pair: Pair{"v2", 3, 3, 1}},
		{Revision: 4, Key: "a", Pair: Pair{"v3", 2, 4, 2}},
		{Revision: 5, Key: "a", Delete: true},
		{Revision: 6, Key: "a", Pair: Pair{"v4", 6, 6, 1}},
		{Revision: 6, Key: "b", Pair: Pair{"v5", 3, 6, 2}},
	}, 6)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// honest is what clients were answered by that store. Positions of calls and returns are ten times the revision.
func honest() []*Op {
	return []*Op{
		{Kind: Put, Key: "a", Value: "v1", Call: 19, Return: 20, Known: true, Revision: 2},
		{Kind: Put, Key: "b", Value: "v2", Call: 29, Return: 30, Known: true, Revision: 3},
		{Kind: Get, Key: "a", Call: 31, Return: 32, Known: true, Revision: 3, Pair: Pair{"v1", 2, 2, 1}},
		{Kind: Swap, Key: "a", Value: "v3", Expect: 2, Call: 39, Return: 40, Known: true, Succeeded: true, Revision: 4},
		{Kind: Swap, Key: "a", Value: "w", Expect: 2, Call: 41, Return: 42, Known: true, Revision: 4, Pair: Pair{"v3", 2, 4, 2}},
		{Kind: Delete, Key: "a", Call: 49, Return: 50, Known: true, Deleted: 1, Revision: 5},
		{Kind: Get, Key: "a", Call: 51, Return: 52, Known: true, Revision: 5},
		{Kind: List, Call: 51, Return: 52, Known: true, Revision: 5, Pairs: map[string]Pair{"b": {"v2", 3, 3, 1}}},
		{Kind: Put, Key: "a", Value: "v4", Call: 53, Return: never, Err: "no answer"}, // happened at 6
		{Kind: Put, Key: "b", Value: "v5", Call: 54, Return: 60, Known: true, Revision: 6},
		{Kind: Put, Key: "b", Value: "lost", Call: 55, Return: never, Err: "no answer"}, // never happened
		{Kind: Get, Key: "a", Serializable: true, Call: 70, Return: 71, Known: true, Revision: 2, Pair: Pair{"v1", 2, 2, 1}},
	}
}

func TestCheckAcceptsAnHonestStore(t *testing.T) {
	if err := Check(honest(), someLog(t), time.Minute); err != nil {
		t.Fatal(err)
	}
}

func TestCheckFindsBrokenPromises(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(ops []*Op) []*Op
		want  string // the kind of fault, which must be among those told
	}{
		{"acknowledged write is lost", func(ops []*Op) []*Op {
			return append(ops, &Op{Kind: Put, Key: "a", Value: "gone", Call: 80, Return: 81, Known: true, Revision: 7})
		}, "write"},
		{"acknowledged under another's revision", func(ops []*Op) []*Op { ops[9].Revision = 4; return ops }, "write"},
		{"nobody asked", func(ops []*Op) []*Op { return ops[1:] }, "write"},
		{"nobody asked to delete", func(ops []*Op) []*Op { return append(ops[:5], ops[6:]...) }, "write"},
		{"a swap that failed took effect", func(ops []*Op) []*Op { ops[9].Kind, ops[9].Succeeded = Swap, false; return ops }, "write"},
		{"stale linearizable read", func(ops []*Op) []*Op {
			return append(ops, &Op{Kind: Get, Key: "a", Call: 80, Return: 81, Known: true, Revision: 3, Pair: Pair{"v1", 2, 2, 1}})
		}, "linearizable"},
		{"stale read breaks the order of revisions", func(ops []*Op) []*Op {
			return append(ops, &Op{Kind: Get, Key: "a", Call: 80, Return: 81, Known: true, Revision: 3, Pair: Pair{"v1", 2, 2, 1}})
		}, "order"},
		{"read does not fit its revision", func(ops []*Op) []*Op { ops[11].Revision = 4; return ops }, "read"},
		{"list does not fit its revision", func(ops []*Op) []*Op { ops[7].Revision = 6; return ops }, "read"},
		{"read of the future", func(ops []*Op) []*Op { ops[11].Revision = 9; return ops }, "read"},
		{"swap succeeded wrongly", func(ops []*Op) []*Op { ops[3].Expect = 1; return ops }, "linearizable"},
		{"write given a revision that was read before", func(ops []*Op) []*Op {
			ops[9].Call = 71
			return append(ops[:9:9], &Op{Kind: Get, Key: "a", Call: 64, Return: 65, Known: true, Revision: 6, Pair: Pair{"v4", 6, 6, 1}}, ops[8], ops[9])
		}, "order"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Check(c.spoil(honest()), someLog(t), time.Minute)
			if err == nil || !strings.Contains(err.Error(), c.want+":") {
				t.Fatalf("found %v, want a fault of kind %q", err, c.want)
			}
		})
	}
}

func TestNewLogRefusesImpossibleHistory(t *testing.T) {
	first := Event{Revision: 2, Key: "a", Pair: Pair{"v1", 2, 2, 1}}
	for _, c := range []struct {
		name   string
		events []Event
		last   int64
	}{
		{"gap", []Event{first, {Revision: 4, Key: "a", Pair: Pair{"v2", 2, 4, 2}}}, 4},
		{"begins late", []Event{{Revision: 3, Key: "a", Pair: Pair{"v1", 3, 3, 1}}}, 3},
		{"goes back", []Event{first, {Revision: 3, Key: "a", Pair: Pair{"v2", 2, 3, 2}}, {Revision: 2, Key: "b", Pair: Pair{"v3", 2, 2, 1}}}, 3},
		{"version jumps", []Event{first, {Revision: 3, Key: "a", Pair: Pair{"v2", 2, 3, 3}}}, 3},
		{"new life, old creation", []Event{first, {Revision: 3, Key: "a", Delete: true}, {Revision: 4, Key: "a", Pair: Pair{"v2", 2, 4, 1}}}, 4},
		{"deletes nothing", []Event{{Revision: 2, Key: "a", Delete: true}}, 2},
		{"one value twice", []Event{first, {Revision: 3, Key: "a", Pair: Pair{"v1", 2, 3, 2}}}, 3},
		{"ends early", []Event{first}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := NewLog(c.events, c.last); err == nil {
				t.Fatal("accepted")
			}
		})
	}
}

func TestWatched(t *testing.T) {
	l := someLog(t)
	of := func(key string, from int64, skip ...int) *Watched {
		w := &Watched{Name: t.Name(), Key: key, From: from}
		for i, e := range l.Events {
			left := false
			for _, s := range skip {
				left = left || s == i
			}
			if e.Revision >= from && (key == "" || key == e.Key) && !left {
				w.Seen = append(w.Seen, e)
			}
		}
		return w
	}
	good := of("", 2)
	swap := of("", 2)
	swap.Seen[2], swap.Seen[3] = swap.Seen[3], swap.Seen[2]
	twice := of("", 2)
	twice.Seen = append(twice.Seen[:3:3], twice.Seen[2:]...)
	other := of("", 2)
	other.Seen[1].Pair.Value = "x"
	told := of("a", 2, 2, 3)
	told.Skipped = [][2]int64{{4, 5}}
	more := of("a", 2)
	more.Seen = append(more.Seen, Event{Revision: 7, Key: "a"})
	for _, c := range []struct {
		name string
		w    *Watched
		upTo int64
		ok   bool
	}{
		{"everything", good, 6, true},
		{"one key", of("a", 2), 6, true},
		{"from later", of("b", 4), 6, true},
		{"compacted stretch left out", told, 6, true},
		{"stretch left out", of("a", 2, 2), 6, false},
		{"half a revision", of("", 2, 5), 6, false},
		{"end missing", of("a", 2, 4), 6, false},
		{"reordered", swap, 6, false},
		{"repeated", twice, 6, false},
		{"wrong pair", other, 6, false},
		{"from the future", more, 6, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.w.Check(l, c.upTo); (err == nil) != c.ok {
				t.Fatalf("check says %v", err)
			}
		})
	}
	if next := told.Next(); next != 7 {
		t.Errorf("next revision to ask for is %d, want 7", next)
	}
}

func TestHistoryForgetsAnswersOfTheDead(t *testing.T) {
	var h History
	alive := true
	still := func() bool { return alive }
	first := h.Begin(Op{Kind: Put, Key: "a", Value: "1"})
	second := h.Begin(Op{Kind: Put, Key: "a", Value: "2"})
	h.End(first, still, func(o *Op) { o.Known, o.Revision = true, 2 })
	h.Locked(func() { alive = false })
	h.End(second, still, func(o *Op) { o.Known, o.Revision = true, 3 })
	if !first.Known || first.Return != 3 || second.Known || second.Return != never {
		t.Fatalf("%v\n%v", first, second)
	}
}

// Requests without answer are given what the history shows of them, and an end: the first answer that shows it too.
func TestResolve(t *testing.T) {
	lost := func(o Op) *Op { o.Return, o.Err = never, "no answer"; return &o }
	ops := []*Op{
		lost(Op{Kind: Put, Key: "a", Value: "v1", Call: 1}),
		lost(Op{Kind: Put, Key: "b", Value: "v2", Call: 2}),
		lost(Op{Kind: Swap, Key: "a", Value: "v3", Expect: 2, Call: 3}),
		lost(Op{Kind: Delete, Key: "a", Call: 4}),
		lost(Op{Kind: Delete, Key: "a", Call: 5}), // deleted nothing
		lost(Op{Kind: Put, Key: "a", Value: "never", Call: 6}),
		{Kind: Get, Key: "b", Call: 7, Return: 9, Known: true, Revision: 5, Pair: Pair{"v2", 3, 3, 1}},
		{Kind: Both, Key: "a", Value: "v4", Key2: "b", Value2: "v5", Call: 10, Return: 12, Known: true, Revision: 6},
		{Kind: Get, Key: "a", Call: 13, Return: 14, Known: true, Revision: 6, Pair: Pair{"v4", 6, 6, 1}},
	}
	l := someLog(t)
	if err := Check(ops, l, time.Minute); err != nil {
		t.Fatal(err)
	}
	took := map[string]int64{}
	for _, o := range resolve(apart(ops), l) {
		if o.Call < 7 {
			took[o.Kind.String()+" "+o.Value] = o.Return
		}
	}
	want := map[string]int64{"put v1": 9, "put v2": 9, "swap v3": 9, "delete ": 9}
	if !maps.Equal(took, want) {
		t.Fatalf("requests without answer took effect until %v, want %v", took, want)
	}
	later := &Op{Kind: Get, Key: "a", Call: 15, Return: 16, Known: true, Revision: 6} // the key is not gone
	if err := Check(append(ops, later), l, time.Minute); err == nil || !strings.Contains(err.Error(), "linearizable:") {
		t.Fatalf("found %v", err)
	}
}

// What members say of one another is held against who runs and what was acknowledged.
func TestCheckMembers(t *testing.T) {
	of := func(ids ...uint64) (v view) {
		for _, id := range ids {
			v.members = append(v.members, rpc.Member{ID: id, Name: fmt.Sprint(id)})
		}
		v.voters = ids
		return v
	}
	learner := of(1, 2)
	learner.members[1].Learner, learner.voters, learner.learners = true, []uint64{1}, []uint64{2}
	counts := of(1, 2)
	counts.voters = []uint64{2, 1, 3}
	elsewhere := of(1, 2)
	elsewhere.members[0].PeerURLs = []string{"http://elsewhere:1"}
	for _, c := range []struct {
		what    string
		running []uint64
		all     []view
		changes changes
		want    string
	}{
		{what: "as it should be", running: []uint64{3, 1}, all: []view{of(1, 3), of(3, 1)}, changes: changes{removed: map[uint64]bool{2: true}, promoted: map[uint64]bool{3: true}}},
		{what: "a learner", running: []uint64{2, 1}, all: []view{learner, learner}},
		{what: "a zombie", running: []uint64{1, 2}, all: []view{of(1), of(1)}, want: "the members are [1] for one of them, and [1 2] run"},
		{what: "a member that nobody runs", running: []uint64{1}, all: []view{of(1, 2)}, want: "[1 2] for one of them"},
		{what: "back from removal", running: []uint64{1, 2}, all: []view{of(1, 2), of(1, 2)}, changes: changes{removed: map[uint64]bool{2: true}}, want: "2 was removed, and is there again"},
		{what: "a vote taken back", running: []uint64{1, 2}, all: []view{learner, learner}, changes: changes{promoted: map[uint64]bool{2: true}}, want: "2 was given a vote, and is a learner again"},
		{what: "a vote by an update", running: []uint64{1, 2}, all: []view{of(1, 2)}, changes: changes{mayVote: map[uint64]bool{1: true}}, want: "2 has a vote that nobody asked for"},
		{what: "two tables", running: []uint64{1, 2}, all: []view{of(1, 2), elsewhere}, want: "two members differ"},
		{what: "a removed member still counts for a quorum", running: []uint64{1, 2}, all: []view{of(1, 2), counts}, want: "raft counts with [2 1 3]"},
	} {
		if c.changes.mayVote == nil {
			c.changes.mayVote = map[uint64]bool{1: true, 2: true, 3: true}
		}
		err := checkMembers(c.running, c.all, c.changes)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
