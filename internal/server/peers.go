package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/replica"
)

// The calls that members make of one another. Bodies are an id, 8 bytes big endian, unless said otherwise. Numbers are never used again for
// another call.
const (
	callLeaseRenew      = 1 // of a lease; answered by leaseAnswer
	callLeaseTimeToLive = 2 // of a lease; answered by leaseAnswer
	callKnown           = 3 // of a member; answered by one byte, 1 if that member has been started before
	callLearnerReady    = 4 // of a member; answered by one byte: an index into readyAnswers
	callConnected       = 5 // of a member; answered by one byte, 1 if this one is connected to it
	callMembers         = 6 // without a body, also of a stranger; answered by a Joined as JSON
	callJoin            = 7 // of a stranger; JoinRequest and joinAnswer as JSON
	callVersion         = 8 // without a body; answered by the version of the API that this member's binary serves
	callLeads           = 9 // 8 bytes that say nothing; answered by one byte, 1 if this member leads
	// Of a number that the caller drew; answered by one byte, 1 if the caller was sent the state in a MsgSnap with that
	// number as its context, 0 if it cannot be sent now (rebuild.go).
	callRebuild = 10
	callNote    = 11 // of an entry; answered by what was noted there of the rolling hash: since, hash (8 bytes each)
	callHash    = 12 // hashRequest; answered by encodeData
)

// peers takes what arrives from other members: raft's messages go to the replica, calls to the member. The network may be
// joined before there is a replica; what comes for it meanwhile is lost, as anything on a network may be.
type peers struct {
	m          *Member
	replica    atomic.Pointer[replica.Replica]
	rebuilding atomic.Pointer[rebuilding] // nil: this member is not being rebuilt

	mu    sync.Mutex
	ended map[uint64]bool // peers at whose addresses nobody listens
	up    map[uint64]bool // peers with which this member is connected
}

var errStarting = errors.New("the member is starting")

// Receive implements transport.Handler.
func (p *peers) Receive(messages ...*raftpb.Message) {
	if r := p.replica.Load(); r != nil {
		r.Receive(messages...)
	}
}

// ReceiveSnapshot implements transport.Handler.
func (p *peers) ReceiveSnapshot(message *raftpb.Message, dir string, discard func()) error {
	if r := p.replica.Load(); r != nil {
		return r.ReceiveSnapshot(message, dir, discard)
	}
	if b := p.rebuilding.Load(); b != nil {
		return b.take(receivedState{message, dir, discard})
	}
	return errStarting
}

// Unreachable implements transport.Handler.
func (p *peers) Unreachable(id uint64) {
	if r := p.replica.Load(); r != nil {
		r.Unreachable(id)
	}
}

// PeerUp implements transport.Handler.
func (p *peers) PeerUp(id uint64) {
	p.note(id, true, false)
	if r := p.replica.Load(); r != nil {
		r.PeerUp(id)
	}
}

// PeerDown implements transport.Handler.
func (p *peers) PeerDown(id uint64, processGone bool) {
	p.note(id, false, processGone)
	if r := p.replica.Load(); r != nil {
		r.PeerDown(id, processGone)
	}
}

func (p *peers) note(id uint64, up, ended bool) {
	p.mu.Lock()
	p.ended[id], p.up[id] = ended, up
	p.mu.Unlock()
}

// gone reports whether a peer's process was found not to run when last looked for.
func (p *peers) gone(id uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended[id]
}

// connected reports whether messages flow to a peer.
func (p *peers) connected(id uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up[id]
}

// Removed implements transport.Handler.
func (p *peers) Removed(by uint64) {
	p.m.removedBy(fmt.Sprintf("member %x says so", by))
}

// flushed passes on to the replica what the engine says of its durability.
func (p *peers) flushed(applied uint64) {
	if r := p.replica.Load(); r != nil {
		r.Durable(applied)
	}
}

// Serve implements transport.Handler.
func (p *peers) Serve(ctx context.Context, from uint64, kind byte, body []byte) ([]byte, error) {
	switch {
	case kind == callMembers:
		return p.m.tellMembers()
	case kind == callJoin:
		return p.m.serveJoin(ctx, body)
	case kind == callVersion:
		return []byte(p.m.options.APIVersion), nil
	case from == 0:
		return nil, errors.New("a stranger may only ask for the members, and to join")
	case kind == callHash:
		return p.m.serveHash(ctx, body)
	case len(body) != 8:
		return nil, fmt.Errorf("a call of kind %d with %d bytes, want 8", kind, len(body))
	}
	id := binary.BigEndian.Uint64(body)
	switch kind {
	case callKnown:
		if p.m.knows(id) {
			return []byte{1}, nil
		}
		return []byte{0}, nil
	case callLearnerReady:
		if p.replica.Load() == nil {
			return nil, errStarting
		}
		return []byte{p.m.learnerReady(id)}, nil
	case callConnected:
		if p.connected(id) {
			return []byte{1}, nil
		}
		return []byte{0}, nil
	case callLeads:
		if p.m.isLeader() {
			return []byte{1}, nil
		}
		return []byte{0}, nil
	case callNote:
		return p.m.serveNote(ctx, id)
	case callRebuild:
		err := p.m.sendState(ctx, from, body)
		if errors.Is(err, errNotNow) {
			return []byte{0}, nil
		}
		return []byte{1}, err
	case callLeaseRenew, callLeaseTimeToLive:
		a := leaseAnswer{err: kv.ErrNotLeader}
		if p.replica.Load() != nil {
			a = p.m.askSelf(ctx, kind, kv.LeaseID(id))
		}
		return a.encode()
	}
	return nil, fmt.Errorf("unknown call of kind %d: this member is of an older version", kind)
}
