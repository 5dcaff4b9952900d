package replica

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

func TestThin(t *testing.T) {
	app := func(to, index, entries, commit uint64) *raftpb.Message {
		m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), To: new(to), Term: new(uint64(1)), Index: new(index), Commit: new(commit)}
		for range entries {
			m.Entries = append(m.Entries, &raftpb.Entry{})
		}
		return m
	}
	ack := func(to, index uint64, reject bool) *raftpb.Message {
		return &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), To: new(to), Term: new(uint64(1)), Index: new(index), Reject: new(reject)}
	}
	beat := func(to uint64, context string) *raftpb.Message {
		return &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), To: new(to), Term: new(uint64(1)), Context: []byte(context)}
	}
	other := &raftpb.Message{Type: raftpb.MsgVote.Enum(), To: new(uint64(2)), Term: new(uint64(1))}
	for _, c := range []struct {
		name string
		in   []*raftpb.Message
		kept string // numbers of those that are left
	}{
		{"commit index before entries", []*raftpb.Message{app(2, 5, 0, 4), app(3, 5, 0, 4), app(2, 5, 2, 4)}, "1 2"},
		{"entries are never left out", []*raftpb.Message{app(2, 5, 1, 4), app(2, 6, 1, 4)}, "0 1"},
		{"entries before a commit index", []*raftpb.Message{app(2, 5, 1, 4), app(2, 6, 0, 5)}, "0 1"},
		{"another place of the log", []*raftpb.Message{app(2, 5, 0, 4), app(2, 3, 1, 4)}, "0 1"},
		{"acknowledgements", []*raftpb.Message{ack(2, 5, false), ack(2, 6, false), ack(3, 1, false), ack(2, 8, false)}, "2 3"},
		{"a refusal stays, and replaces nothing", []*raftpb.Message{ack(2, 5, false), ack(2, 6, true), ack(2, 4, false)}, "0 1 2"},
		{"heartbeats", []*raftpb.Message{beat(2, "1"), beat(3, "1"), other, beat(2, "2"), beat(3, "2")}, "2 3 4"},
		{"one without context replaces none with", []*raftpb.Message{beat(2, "1"), beat(2, ""), beat(2, "")}, "0 2"},
		{"nothing else", []*raftpb.Message{other, other}, "0 1"},
	} {
		number := map[*raftpb.Message][]int{}
		for i, m := range c.in {
			number[m] = append(number[m], i)
		}
		var kept []string
		for _, m := range thin(c.in) {
			kept = append(kept, fmt.Sprint(number[m][0]))
			number[m] = number[m][1:]
		}
		if got := strings.Join(kept, " "); got != c.kept {
			t.Errorf("%s: kept %s, not %s", c.name, got, c.kept)
		}
	}
}

// TestHurry: what somebody waits for leaves first, commit indices alone behind it, and each in the order in which it came.
func TestHurry(t *testing.T) {
	entries := func(to uint64) *raftpb.Message {
		return &raftpb.Message{Type: raftpb.MsgApp.Enum(), To: new(to), Entries: []*raftpb.Entry{{}}}
	}
	bare := func(to uint64) *raftpb.Message { return &raftpb.Message{Type: raftpb.MsgApp.Enum(), To: new(to)} }
	probe := func(to uint64) *raftpb.Message { return &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), To: new(to)} }
	for _, c := range []struct {
		ms   []*raftpb.Message
		want []uint64
		n    int
	}{
		{},
		{ms: []*raftpb.Message{bare(1), bare(2)}, want: []uint64{1, 2}, n: 0},
		{ms: []*raftpb.Message{entries(1), entries(2)}, want: []uint64{1, 2}, n: 2},
		{ms: []*raftpb.Message{bare(1), bare(2), entries(3), bare(4), probe(5), entries(6)}, want: []uint64{3, 5, 6, 1, 2, 4}, n: 3},
	} {
		if n := hurry(c.ms); n != c.n {
			t.Errorf("somebody waits for %d of %v, not %d", n, c.ms, c.n)
		}
		var got []uint64
		for _, m := range c.ms {
			got = append(got, m.GetTo())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("they leave in the order %v, not %v", got, c.want)
		}
	}
}
