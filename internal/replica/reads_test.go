package replica

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// reader asks a lone member for read indexes and notes what it gets.
type reader struct {
	l   *lone
	got chan string
}

func newReader(l *lone) *reader { return &reader{l, make(chan string, 100)} }

func (r *reader) read(name string) {
	go func() {
		index, err := r.l.r.ReadIndex(r.l.t.Context())
		r.got <- fmt.Sprintf("%s %d %v", name, index, err)
	}()
	synctest.Wait()
}

// expect compares what was served since it was last asked.
func (r *reader) expect(want ...string) {
	r.l.t.Helper()
	synctest.Wait()
	var got []string
	for len(r.got) > 0 {
		got = append(got, <-r.got)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		r.l.t.Errorf("served were %q, want %q", got, want)
	}
}

// tell plays a member's message about reads.
func (l *lone) tell(kind raftpb.MessageType, from, term, index uint64, context []byte) {
	m := &raftpb.Message{Type: kind.Enum(), From: new(from), To: new(uint64(1)), Term: new(term)}
	if kind == raftpb.MsgReadIndex || kind == raftpb.MsgReadIndexResp {
		m.Entries = []*raftpb.Entry{{Data: context}}
	} else {
		m.Context = context
	}
	if index > 0 {
		m.Index = new(index)
	}
	l.r.Receive(m)
	synctest.Wait()
}

func contextOf(origin, seq uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, origin), seq)
}

// TestFollowersQuestions: what a follower makes of answers to its questions: lost, late, doubled, of another start, of a leader
// that is none any more.
func TestFollowersQuestions(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		r := newReader(l)
		answer := func(question *raftpb.Message, from, term, index uint64) {
			l.tell(raftpb.MsgReadIndexResp, from, term, index, question.Entries[0].Data)
		}

		r.read("a") // there is no leader: the read waits
		if n := len(l.take(raftpb.MsgReadIndex)); n != 0 {
			t.Errorf("%d questions without a leader", n)
		}
		l.heartbeat(2, 2, 0)
		qa := l.one(raftpb.MsgReadIndex)
		if qa.GetTerm() != 2 || qa.GetTo() != 2 {
			t.Errorf("asked %v", qa)
		}
		time.Sleep(2 * readSpacing) // it takes long: the next question does not wait for the answer
		r.read("b")
		qb := l.one(raftpb.MsgReadIndex)
		r.read("c") // while b's is young, c shares the next
		r.read("d")
		if n := len(l.take(raftpb.MsgReadIndex)); n != 0 {
			t.Errorf("%d questions more at the same moment", n)
		}

		// An answer to the later question serves the earlier read too, and nobody who came after it; the earlier answer comes
		// late and is of no use.
		answer(qb, 2, 2, 7)
		r.expect("a 7 <nil>", "b 7 <nil>")
		qc := l.one(raftpb.MsgReadIndex)
		answer(qa, 2, 2, 6)
		answer(qb, 2, 2, 7)                                           // doubled
		l.tell(raftpb.MsgReadIndexResp, 2, 2, 6, contextOf(0xabd, 3)) // of another start of this member
		l.tell(raftpb.MsgReadIndexResp, 2, 2, 6, contextOf(0xabc, 4)) // to what was not asked yet
		r.expect()

		// No answer: it is asked again, and any of the answers will do (E#20418).
		time.Sleep((readRetryTicks + 1) * 100 * time.Millisecond)
		if again := l.one(raftpb.MsgReadIndex); string(again.Entries[0].Data) != string(qc.Entries[0].Data) {
			t.Errorf("asked %x, then %x", qc.Entries[0].Data, again.Entries[0].Data)
		}

		// A new leader is asked at once; an answer to the question from before serves what that was asked for, and no read that
		// came later (E#21378).
		l.heartbeat(3, 3, 0)
		if again := l.one(raftpb.MsgReadIndex); again.GetTo() != 3 || again.GetTerm() != 3 {
			t.Errorf("asked %v", again)
		}
		time.Sleep(2 * readSpacing)
		r.read("e")
		qe := l.one(raftpb.MsgReadIndex)
		answer(qc, 2, 2, 9) // of the leader before: it was right then, after c and d had come
		r.expect("c 9 <nil>", "d 9 <nil>")
		answer(qe, 3, 3, 9)
		r.expect("e 9 <nil>")

		// A new connection to the leader: what was asked over the old one may be lost.
		r.read("f")
		qf := l.one(raftpb.MsgReadIndex)
		l.r.PeerUp(2)
		if n := len(l.take(raftpb.MsgReadIndex)); n != 0 {
			t.Error("asked again for a peer that does not lead")
		}
		l.r.PeerUp(3)
		if again := l.one(raftpb.MsgReadIndex); string(again.Entries[0].Data) != string(qf.Entries[0].Data) {
			t.Errorf("asked %v again", again)
		}
		answer(qf, 3, 3, 9)
		r.expect("f 9 <nil>")

		// ReadBarrier waits for the state machine as well.
		go func() { r.got <- fmt.Sprint("g ", l.r.ReadBarrier(t.Context(), nil)) }()
		answer(l.one(raftpb.MsgReadIndex), 3, 3, 2)
		r.expect()
		l.appendEntries(3, 3, Position{1, 1}, &raftpb.Entry{Term: new(uint64(3))})
		r.expect("g <nil>")
	})
}

// TestManyQuestions: while answers get lost, a bounded number of questions is under way; the answer to the last serves all.
func TestManyQuestions(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		l.heartbeat(2, 2, 0)
		r := newReader(l)
		for i := range 20 {
			r.read(fmt.Sprintf("%02d", i))
			time.Sleep(100 * time.Millisecond)
			l.heartbeat(2, 2, 0) // the leader lives
		}
		seen := map[string]bool{}
		var last *raftpb.Message
		for _, m := range l.take(raftpb.MsgReadIndex) {
			seen[string(m.Entries[0].Data)], last = true, m
		}
		if len(seen) != l.r.c.MaxReadRounds {
			t.Errorf("%d questions were asked", len(seen))
		}
		l.tell(raftpb.MsgReadIndexResp, 2, 2, 7, last.Entries[0].Data)
		r.expect("00 7 <nil>", "01 7 <nil>", "02 7 <nil>", "03 7 <nil>")
		l.tell(raftpb.MsgReadIndexResp, 2, 2, 8, l.one(raftpb.MsgReadIndex).Entries[0].Data)
		if len(r.got) != 16 {
			t.Errorf("%d of the other reads were served", len(r.got))
		}
	})
}

// probes takes the probes that a leader has sent, by addressee, and checks that they are the same question.
func (l *lone) probes() (to []uint64, context []byte) {
	l.t.Helper()
	synctest.Wait()
	for _, m := range l.take(raftpb.MsgHeartbeat) {
		if len(m.Context) == 0 {
			continue // raft's own
		}
		if context != nil && string(context) != string(m.Context) {
			l.t.Errorf("asked %x and %x", context, m.Context)
		}
		context = m.Context
		to = append(to, m.GetTo())
	}
	slices.Sort(to)
	return to, context
}

// TestLeadersQuestions: a leader serves reads when a quorum has said yes in its term to what was asked after they came, and not
// before it has committed in its term.
func TestLeadersQuestions(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		r := newReader(l)
		term := l.lead()
		yes := func(from, term uint64, context []byte) { l.tell(raftpb.MsgHeartbeatResp, from, term, 0, context) }

		r.read("a")
		if to, _ := l.probes(); len(to) != 0 {
			t.Errorf("asked %d before it had committed in its term", to)
		}
		last := l.r.Status().LastIndex
		l.appendEntriesAck(2, term, last)
		to, qa := l.probes()
		if !slices.Equal(to, []uint64{2}) {
			t.Errorf("asked %d, where one makes a quorum", to)
		}
		r.read("b")
		r.read("c")
		yes(2, term-1, qa)                // of another term
		yes(1, term, qa)                  // its own
		yes(9, term, qa)                  // a stranger's
		yes(2, term, contextOf(0xabd, 1)) // to another start
		yes(2, term, contextOf(0xabc, 2)) // to what was not asked
		r.expect()
		time.Sleep(lateAfter + time.Millisecond) // member 2 is slow
		if to, again := l.probes(); !slices.Equal(to, []uint64{2, 3}) || string(again) != string(qa) {
			t.Errorf("asked %d", to)
		}
		yes(3, term, qa)
		r.expect(fmt.Sprintf("a %d <nil>", last))
		to, qb := l.probes()
		if !slices.Equal(to, []uint64{3}) {
			t.Errorf("asked %d for those who came meanwhile", to)
		}
		yes(2, term, qa) // late
		r.expect()
		yes(2, term, qb)
		r.expect(fmt.Sprintf("b %d <nil>", last), fmt.Sprintf("c %d <nil>", last))

		// What was said is lost: it is said again at the next tick but one.
		r.read("d")
		_, qd := l.probes()
		time.Sleep(210 * time.Millisecond)
		for _, from := range []uint64{2, 3} { // they live
			l.tell(raftpb.MsgHeartbeatResp, from, term, 0, nil)
		}
		if to, again := l.probes(); !slices.Equal(slices.Compact(to), []uint64{2, 3}) || string(again) != string(qd) {
			t.Errorf("asked %d again", to)
		}

		// It is deposed, and leads again: a yes from before counts no more. What it answers is at least what was committed by then.
		yesFromBefore := qd
		l.heartbeat(3, term+1, 0)
		if m := l.one(raftpb.MsgReadIndex); m.GetTo() != 3 || string(m.Entries[0].Data) != string(qd) {
			t.Errorf("asked %v", m)
		}
		term2 := l.lead()
		yes(2, term, yesFromBefore)
		yes(3, term, yesFromBefore)
		yes(2, term2, yesFromBefore) // it has not committed yet
		r.expect()
		last = l.r.Status().LastIndex
		l.appendEntriesAck(2, term2, last)
		to, again := l.probes()
		if !slices.Equal(to, []uint64{2, 3}) || string(again) != string(qd) {
			t.Errorf("asked %d for %x in its new term", to, again)
		}
		yes(3, term, again)
		r.expect()
		yes(3, term2, again)
		r.expect(fmt.Sprintf("d %d <nil>", last))
	})
}

// TestYesInOneTerm: what a voter said in an earlier term of the same leader does not count for a question that goes on.
func TestYesInOneTerm(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLoneOf(t, []uint64{1, 2, 3, 4, 5})
		r := newReader(l)
		lead := func() (term uint64) {
			term = l.lead()
			for _, id := range []uint64{2, 3, 4, 5} {
				l.appendEntriesAck(id, term, l.r.Status().LastIndex)
			}
			return term
		}
		term := lead()
		r.read("a")
		_, question := l.probes()
		l.tell(raftpb.MsgHeartbeatResp, 2, term, 0, question)
		l.heartbeat(3, term+1, 0)
		term = lead()
		l.tell(raftpb.MsgHeartbeatResp, 4, term, 0, question)
		r.expect()
		l.tell(raftpb.MsgHeartbeatResp, 5, term, 0, question)
		r.expect(fmt.Sprintf("a %d <nil>", l.r.Status().Commit))
	})
}

// TestQuorumOfMembers: a quorum is one of the members that the leader counts with, from the moment on that it does.
func TestQuorumOfMembers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		r := newReader(l)
		term := l.lead()
		l.appendEntriesAck(2, term, l.r.Status().LastIndex)
		r.read("a") // answered before the change, it would be by two of three
		_, question := l.probes()
		if err := l.r.ChangeMembers(t.Context(), []MemberChange{{ID: 4}}, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		l.appendEntriesAck(2, term, l.r.Status().LastIndex)
		if n := len(l.r.Status().Voters); n != 4 {
			t.Fatalf("%d voters", n)
		}
		l.tell(raftpb.MsgHeartbeatResp, 2, term, 0, question)
		r.expect()
		if to, again := l.probes(); !slices.Equal(slices.Compact(to), []uint64{2, 3, 4}) || string(again) != string(question) {
			t.Errorf("asked %d", to)
		}
		l.tell(raftpb.MsgHeartbeatResp, 4, term, 0, question)
		r.expect(fmt.Sprintf("a %d <nil>", l.r.Status().Commit))
	})
}

// TestYes: a follower says yes to its leader alone, in its term, without its loop; and never once it knows a later term.
func TestYes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		probe := func(from, term uint64) { l.tell(raftpb.MsgHeartbeat, from, term, 0, contextOf(7, 1)) }
		said := func(want string) {
			t.Helper()
			got := ""
			for _, m := range l.take(raftpb.MsgHeartbeatResp) {
				if len(m.Context) > 0 {
					got += fmt.Sprintf("yes to %d in term %d;", m.GetTo(), m.GetTerm())
				}
			}
			if got != want {
				t.Errorf("said %q, want %q", got, want)
			}
		}
		probe(2, 2) // of a leader that it does not know yet
		said("yes to 2 in term 2;")
		if s := l.r.Status(); s.Leader != 2 || s.Term != 2 {
			t.Errorf("%+v", s)
		}

		hold, held := make(chan struct{}), make(chan struct{})
		l.r.in.control(func(*loop) { close(held); <-hold })
		<-held
		probe(2, 2)
		said("yes to 2 in term 2;")
		l.tell(raftpb.MsgHeartbeat, 3, 3, 0, contextOf(7, 1)) // the loop has to see this one
		said("")
		close(hold)
		said("yes to 3 in term 3;")
		probe(2, 2)
		said("")

		probe(3, 2) // of a leader that led an earlier term too
		said("")

		// A vote in a later term is durable before it leaves, and published before.
		time.Sleep(5 * time.Second)
		l.take(raftpb.MsgHeartbeatResp)
		l.tell(raftpb.MsgHeartbeat, 3, 3, 0, contextOf(7, 2))
		l.r.Receive(&raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: new(uint64(3)), To: new(uint64(1)), Term: new(uint64(3))})
		synctest.Wait()
		l.take(raftpb.MsgHeartbeatResp)
		probe(3, 3)
		said("")
	})
}

// TestFollowersAreAnswered: by a leader that has committed in its term; at once where asker and leader are a majority, else when
// others have said yes.
func TestFollowersAreAnswered(t *testing.T) {
	for _, c := range []struct {
		name     string
		voters   []uint64
		learners []uint64
		from     uint64
		yes      []uint64 // what is needed
	}{
		{"one of three", []uint64{1, 2, 3}, nil, 2, nil},
		{"one of five", []uint64{1, 2, 3, 4, 5}, nil, 2, []uint64{3, 4}},
		{"a learner of three", []uint64{1, 2, 3}, []uint64{4}, 4, []uint64{3}},
		{"a learner of one", []uint64{1}, []uint64{4}, 4, nil},
		{"a stranger of three", []uint64{1, 2, 3}, nil, 9, []uint64{2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				l := startLoneOf(t, c.voters, c.learners...)
				term := l.lead()
				ask := func(term, seq uint64) { l.tell(raftpb.MsgReadIndex, c.from, term, 0, contextOf(0xdef, seq)) }
				answers := func(want ...uint64) {
					t.Helper()
					var got []uint64
					for _, m := range l.take(raftpb.MsgReadIndexResp) {
						if m.GetTo() != c.from || m.GetTerm() != term || m.GetIndex() != l.r.Status().Commit {
							t.Errorf("answered %v", m)
						}
						got = append(got, binary.LittleEndian.Uint64(m.Entries[0].Data[8:]))
					}
					if !slices.Equal(got, want) {
						t.Errorf("answered were %d, want %d", got, want)
					}
				}
				first := uint64(1)
				if len(c.voters) > 1 {
					ask(term, 1)
					answers() // it has not committed in its term
					for _, id := range c.voters[1:] {
						l.appendEntriesAck(id, term, l.r.Status().LastIndex)
					}
				} else {
					ask(term, 1)
				}
				for range 2 {
					_, question := l.probes()
					yes := c.yes
					if first == 1 && len(c.voters) == 3 {
						yes = []uint64{3} // it is asked with all who waited
					}
					for _, id := range yes {
						answers()
						l.tell(raftpb.MsgHeartbeatResp, id, term, 0, question)
					}
					answers(first)
					first++
					ask(term-1, first) // it does not know the term
					ask(term+1, first)
					answers()
					ask(term, first)
				}
				// One that names no term is of a member that leaves reads to raft, and counts as nobody's yes.
				answers(slices.Repeat([]uint64{first}, max(0, 1-len(c.yes)))...)
				if len(c.yes) > 0 {
					return
				}
				ask(0, first+1)
				if len(c.voters) > 1 {
					answers()
					_, question := l.probes()
					l.tell(raftpb.MsgHeartbeatResp, 3, term, 0, question)
				}
				answers(first + 1)
			})
		})
	}
}
