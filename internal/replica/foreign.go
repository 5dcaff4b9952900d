package replica

import (
	"encoding/binary"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// ticket travels in the context of a MsgProp: which start of the sender it is from, its number, and the smallest number
// that this start may still send. 24 bytes, little endian.
type ticket struct{ origin, seq, low uint64 }

func (t ticket) encode() []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 24), t.origin)
	b = binary.LittleEndian.AppendUint64(b, t.seq)
	return binary.LittleEndian.AppendUint64(b, t.low)
}

func decodeTicket(b []byte) (t ticket, ok bool) {
	if len(b) != 24 {
		return ticket{}, false
	}
	return ticket{
		binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:]),
	}, true
}

// foreign is what a leader was sent by followers: entries on their way to raft, and the numbers it took in this term. All
// of it is void in another term: the senders will know, and send to the new leader.
//
// Entries are bounded by what each follower has in flight (its MaxInflightBatches, MaxQueuedBytes).
type foreign struct {
	term    uint64
	entries []*raftpb.Entry
	taken   map[uint64][]*takenFrom // by sender; the newest start last, at most maxStarts
}

// maxStarts is how many starts of one member are remembered within a term. Nothing of a start before those is still on
// its way: its connections ended with its process.
const maxStarts = 8

// takenFrom are the numbers taken from one start of a member.
type takenFrom struct {
	origin uint64
	low    uint64              // everything below was taken, or will not come
	seqs   map[uint64]struct{} // taken, from low on; about as many as the sender has in flight
}

// retain forgets what belongs to another term.
func (f *foreign) retain(term uint64, leads bool) {
	if f.term != term || !leads {
		*f = foreign{term: term}
	}
}

// accept reports whether a number is new, and takes it.
func (f *foreign) accept(sender uint64, t ticket) bool {
	if f.taken == nil {
		f.taken = map[uint64][]*takenFrom{}
	}
	starts := f.taken[sender]
	var s *takenFrom
	for _, known := range starts {
		if known.origin == t.origin {
			s = known
		}
	}
	if s == nil {
		s = &takenFrom{origin: t.origin, seqs: map[uint64]struct{}{}}
		if starts = append(starts, s); len(starts) > maxStarts {
			starts = starts[1:]
		}
		f.taken[sender] = starts
	}
	if t.low > s.low {
		s.low = t.low
		for seq := range s.seqs {
			if seq < s.low {
				delete(s.seqs, seq)
			}
		}
	}
	if _, dup := s.seqs[t.seq]; dup || t.seq < s.low {
		return false
	}
	s.seqs[t.seq] = struct{}{}
	return true
}

// takeForeign takes what a follower proposes, if it was meant for this leader in this term.
func (l *loop) takeForeign(m *raftpb.Message) {
	l.observe()
	t, ok := decodeTicket(m.Context)
	if !ok || l.lead != l.c.ID || m.GetTerm() != l.term || len(m.Entries) == 0 || slices.ContainsFunc(m.Entries, unreadable) ||
		!l.foreign.accept(m.GetFrom(), t) {
		return
	}
	l.foreign.entries = append(l.foreign.entries, m.Entries...)
}

// unreadable reports a change of the members that no member could apply.
func unreadable(e *raftpb.Entry) bool {
	if e.GetType() == raftpb.EntryNormal {
		return false
	}
	_, err := decodeConfChange(e)
	return err != nil
}

// drop forgets the first n entries: raft has them.
func (f *foreign) drop(n int) {
	clear(f.entries[:n])
	if f.entries = f.entries[n:]; len(f.entries) == 0 {
		f.entries = nil
	}
}
