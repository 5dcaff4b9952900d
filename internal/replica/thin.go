package replica

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// thin takes out of messages that leave together those that a later one makes needless. Leaving a message out is to raft
// as if it was lost; here it is one whose effect the later message has too:
//
//   - an append without entries, which only carries a commit index, before another append to the same member;
//   - an acknowledgement of entries before one of more entries;
//   - a heartbeat, or the answer to one, before another: the context is the number of a question, and those go up.
//
// A busy leader commits and takes proposals in one round of the loop, and raft says each thing by itself.
func thin(ms []*raftpb.Message) []*raftpb.Message {
	kept := ms[:0]
	for i, m := range ms {
		if !needless(m, ms[i+1:]) {
			kept = append(kept, m)
		}
	}
	clear(ms[len(kept):])
	return kept
}

func needless(m *raftpb.Message, later []*raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgApp:
		if len(m.Entries) > 0 {
			return false
		}
	case raftpb.MsgAppResp:
		if m.GetReject() {
			return false
		}
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp:
	default:
		return false
	}
	for _, l := range later {
		if l.GetType() != m.GetType() || l.GetTo() != m.GetTo() || l.GetTerm() != m.GetTerm() {
			continue
		}
		switch m.GetType() {
		case raftpb.MsgApp:
			// Probing sends appends at places of its own choice: only one that goes on from here replaces this.
			if l.GetIndex() == m.GetIndex() && l.GetCommit() >= m.GetCommit() {
				return true
			}
		case raftpb.MsgAppResp:
			if !l.GetReject() && l.GetIndex() >= m.GetIndex() {
				return true
			}
		case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp:
			if l.GetCommit() >= m.GetCommit() && (len(l.Context) > 0 || len(m.Context) == 0) {
				return true
			}
		}
	}
	return false
}

// hurry moves appends without entries, which carry but a commit index, behind the messages that somebody waits for, and returns how
// many those are.
func hurry(ms []*raftpb.Message) int {
	n := 0
	for i, m := range ms {
		if m.GetType() == raftpb.MsgApp && len(m.Entries) == 0 {
			continue
		}
		copy(ms[n+1:i+1], ms[n:i])
		ms[n] = m
		n++
	}
	return n
}

// acknowledged is the newest acknowledgement of entries that was sent to a leader, or that waits for the log to be sent. To a leader
// that has it another for no more entries says nothing, and each commit index that comes alone asks for one. It is forgotten
// with each tick, because acknowledgements may be lost: a leader that misses one asks again, at the latest when its heartbeat is answered.
type acknowledged struct{ to, term, index uint64 }

// news leaves out of the responses to a write the acknowledgements that say nothing new, and remembers the newest.
func (a *acknowledged) news(ms []*raftpb.Message) []*raftpb.Message {
	return slices.DeleteFunc(ms, func(m *raftpb.Message) bool {
		if m.GetType() != raftpb.MsgAppResp || m.GetReject() || m.GetTo() == m.GetFrom() {
			return false
		}
		if a.to == m.GetTo() && a.term == m.GetTerm() && a.index >= m.GetIndex() {
			return true
		}
		*a = acknowledged{m.GetTo(), m.GetTerm(), m.GetIndex()}
		return false
	})
}
