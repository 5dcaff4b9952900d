package replica

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// lone is member 1, alone with a test that plays the others.
type lone struct {
	t       *testing.T
	fs      *vfs.MemFS
	log     raftLog
	r       *Replica
	machine *toy
	voters  []uint64                // that its checkpoints name
	checked atomic.Pointer[Replica] // r, once it has started

	mu     sync.Mutex
	sent   []*raftpb.Message
	writes []Write
}

// watchedLog notes what is written.
type watchedLog struct {
	raftLog
	l *lone
}

func (w watchedLog) Append(write Write) {
	w.l.mu.Lock()
	w.l.writes = append(w.l.writes, write)
	w.l.mu.Unlock()
	w.raftLog.Append(write)
}

func (l *lone) Send(ms []*raftpb.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range ms {
		l.sent = append(l.sent, proto.CloneOf(m))
	}
	if err := l.checked.Load().publishedBefore(ms); err != nil {
		l.t.Error(err)
	}
}

func (l *lone) SendSnapshot(*raftpb.Message, string, func(error)) {}

// take returns the messages of one type sent since it was last asked.
func (l *lone) take(kind raftpb.MessageType) []*raftpb.Message {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	var got []*raftpb.Message
	l.sent = slices.DeleteFunc(l.sent, func(m *raftpb.Message) bool {
		if m.GetType() == kind {
			got = append(got, m)
		}
		return m.GetType() == kind
	})
	return got
}

func (l *lone) one(kind raftpb.MessageType) *raftpb.Message {
	l.t.Helper()
	ms := l.take(kind)
	if len(ms) != 1 {
		l.t.Fatalf("%d messages %s were sent, not one", len(ms), kind)
	}
	return ms[0]
}

func startLone(t *testing.T) *lone { return startLoneOf(t, []uint64{1, 2, 3}) }

func startLoneOf(t *testing.T, voters []uint64, learners ...uint64) *lone {
	fs := vfs.NewMem()
	log := openLog(t, fs)
	machine, err := openToy(fs, toyState{Applied: Position{1, 1}, ConfState: EncodeConfState(voters, learners)})
	if err != nil {
		t.Fatal(err)
	}
	l := &lone{t: t, fs: fs, log: log, machine: machine, voters: voters}
	machine.onFlush = func(uint64) {}
	l.r, err = Start(Config{ID: 1, Origin: 0xabc, Log: watchedLog{log, l}, Machine: machine, Transport: l,
		Applied: machine.state.Applied, ConfState: machine.state.ConfState})
	if err != nil {
		t.Fatal(err)
	}
	l.checked.Store(l.r)
	t.Cleanup(func() { l.r.Stop(); log.Close() })
	return l
}

func (l *lone) heartbeat(leader, term, commit uint64) {
	l.r.Receive(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(leader), To: new(uint64(1)), Term: new(term), Commit: new(commit)})
	synctest.Wait()
}

// appendEntries plays a leader that appends entries behind prev, and commits all of them.
func (l *lone) appendEntries(leader, term uint64, prev Position, es ...*raftpb.Entry) {
	last := prev.Index
	for i, e := range es {
		last = prev.Index + uint64(i) + 1
		e.Index, e.Type = new(last), raftpb.EntryNormal.Enum()
	}
	l.r.Receive(&raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(leader), To: new(uint64(1)), Term: new(term),
		Index: new(prev.Index), LogTerm: new(prev.Term), Entries: es, Commit: new(last)})
	synctest.Wait()
}
