package replica

import (
	"runtime"
	"sync"

	"go.etcd.io/raft/v3/raftpb"
)

// inbox is everything that waits for the loop. Producers append under the lock and nudge; the loop takes all at once.
//
// Bounds: messages by MaxInboxBytes; snapshots by maxStaged; proposals by MaxQueuedProposals and MaxQueuedBytes (counted
// in Replica.pending, since they stay bounded after they left the inbox); answers by what raft has under way with the log
// and the state machine; peer events by the number of peers; controls by their callers, who wait, and by one for each
// checkpoint under way.
type inbox struct {
	wake chan struct{} // capacity 1: something waits

	mu     sync.Mutex
	work   work
	closed bool // the loop has ended: nothing of any size is taken any more

	together int // proposals that came together, lately; changed by the loop
}

type work struct {
	messages     []*raftpb.Message
	messageBytes int64
	snapshots    []stagedSnapshot
	answers      []*raftpb.Message // of the log and the state machine
	installed    []*raftpb.Message // appends whose snapshot the state machine now holds
	proposals    []proposal
	peers        []peerEvent
	controls     []func(*loop)
	made         []madeCheckpoint
	durable      uint64
}

// maxStaged bounds received checkpoints that the loop has not seen.
const maxStaged = 4

type peerEvent struct {
	id   uint64
	kind peerEventKind
}

type peerEventKind uint8

const (
	peerUnreachable peerEventKind = iota
	peerUp
	peerGone
)

func (w *work) reset() {
	clear(w.messages)
	clear(w.snapshots)
	clear(w.answers)
	clear(w.installed)
	clear(w.proposals)
	clear(w.controls)
	clear(w.made)
	*w = work{
		messages: w.messages[:0], snapshots: w.snapshots[:0], answers: w.answers[:0], installed: w.installed[:0],
		proposals: w.proposals[:0], peers: w.peers[:0], controls: w.controls[:0], made: w.made[:0],
	}
}

// take exchanges what waits for an empty w.
func (in *inbox) take(w *work) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.work, *w = *w, in.work
	if n := len(w.proposals); n > 0 {
		in.together = max(n, in.together*3/4)
	}
}

func (in *inbox) nudge() {
	select {
	case in.wake <- struct{}{}:
	default: // the loop has not looked since the last nudge
	}
}

// message keeps a message; its caller nudges when it has given all.
func (in *inbox) message(m *raftpb.Message, maxBytes int64) bool {
	size := messageBytes(m)
	in.mu.Lock()
	defer in.mu.Unlock()
	ok := !in.closed && (in.work.messageBytes == 0 || in.work.messageBytes+size <= maxBytes)
	if ok {
		in.work.messages = append(in.work.messages, m)
		in.work.messageBytes += size
	}
	return ok
}

// messageBytes is about what a message keeps in memory.
func messageBytes(m *raftpb.Message) int64 {
	n := 128 + len(m.Context)
	for _, e := range m.Entries {
		n += 96 + len(e.Data)
	}
	return int64(n)
}

func (in *inbox) snapshot(s stagedSnapshot) bool {
	in.mu.Lock()
	ok := !in.closed && len(in.work.snapshots) < maxStaged
	if ok {
		in.work.snapshots = append(in.work.snapshots, s)
	}
	in.mu.Unlock()
	in.nudge()
	return ok
}

func (in *inbox) answer(ms []*raftpb.Message) {
	if len(ms) == 0 {
		return
	}
	in.mu.Lock()
	in.work.answers = append(in.work.answers, ms...)
	in.mu.Unlock()
	in.nudge()
}

func (in *inbox) install(m *raftpb.Message) {
	in.mu.Lock()
	in.work.installed = append(in.work.installed, m)
	in.mu.Unlock()
	in.nudge()
}

// propose wakes the loop for the first proposal of those that wait; whoever comes behind it need not. If they came together before,
// it lets run first who is about to come: they share an entry then, instead of the first waking the loop for itself. What wakes
// the loop otherwise is not held up by it.
func (in *inbox) propose(p proposal) {
	in.mu.Lock()
	in.work.proposals = append(in.work.proposals, p)
	wakes, lets := len(in.work.proposals) == 1, in.together > 1
	in.mu.Unlock()
	if wakes && lets {
		runtime.Gosched()
		in.mu.Lock()
		wakes = len(in.work.proposals) > 0 // the loop may have been woken by something else
		in.mu.Unlock()
	}
	if wakes {
		in.nudge()
	}
}

// peer keeps the events of a peer in order, and only news: a peer that is unreachable a thousand times is so once.
func (in *inbox) peer(e peerEvent) {
	in.mu.Lock()
	for i := len(in.work.peers) - 1; i >= 0; i-- {
		if in.work.peers[i].id != e.id {
			continue
		}
		if in.work.peers[i].kind == e.kind || e.kind == peerUnreachable {
			in.mu.Unlock()
			return
		}
		in.work.peers = append(in.work.peers[:i], in.work.peers[i+1:]...)
		break
	}
	in.work.peers = append(in.work.peers, e)
	in.mu.Unlock()
	in.nudge()
}

func (in *inbox) control(f func(*loop)) {
	in.mu.Lock()
	in.work.controls = append(in.work.controls, f)
	in.mu.Unlock()
	in.nudge()
}

func (in *inbox) made(m madeCheckpoint) bool {
	in.mu.Lock()
	ok := !in.closed
	if ok {
		in.work.made = append(in.work.made, m)
	}
	in.mu.Unlock()
	in.nudge()
	return ok
}

// close takes what waits for the last time.
func (in *inbox) close(w *work) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.work, *w = *w, in.work
}

func (in *inbox) durable(applied uint64) {
	in.mu.Lock()
	in.work.durable = max(in.work.durable, applied)
	in.mu.Unlock()
	in.nudge()
}
