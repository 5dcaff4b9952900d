package transport

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/trivet-kv/trivet/internal/wire"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A message on the wire: one byte of type, a uvarint of flags that name the fields which follow (those that are zero are
// left out), the fields as uvarints, then the context (length, bytes) and the entries. Who sent a message and to whom is
// known from the connection; From is written only where raft set it to somebody else.
//
// Entries: a uvarint count, then for each one byte (type, and whether term and index follow from the entry before), term
// and index as uvarints where they do not, the length of the data and the data. Data of inlineBytes or more is not
// copied on its way to the socket.
const (
	hasTerm = 1 << iota
	hasLogTerm
	hasIndex
	hasCommit
	hasVote
	hasReject
	hasRejectHint
	hasContext
	hasEntries
	hasFrom
	allFlags = 1<<iota - 1
)

const (
	entryTypeMask   = 0x03
	entrySameTerm   = 0x04 // as the entry before (as 0 for the first)
	entryNextIndex  = 0x08 // one more than the entry before
	entryKnownFlags = entryTypeMask | entrySameTerm | entryNextIndex

	inlineBytes = 2048
)

// ErrMalformed is wrapped by every error about bytes that cannot be decoded.
var ErrMalformed = errors.New("malformed bytes from a peer")

// buffer is a byte string under construction, made of an arena and of slices that belong to somebody else.
type buffer struct {
	arena []byte
	holes []hole
	loose int // bytes in holes
}

// hole is a slice that goes between arena[:at] and arena[at:].
type hole struct {
	at    int
	bytes []byte
}

func (b *buffer) reset() {
	b.arena, b.loose = b.arena[:0], 0
	clear(b.holes)
	b.holes = b.holes[:0]
}

func (b *buffer) len() int         { return len(b.arena) + b.loose }
func (b *buffer) uvarint(v uint64) { b.arena = binary.AppendUvarint(b.arena, v) }
func (b *buffer) byte(v byte)      { b.arena = append(b.arena, v) }

func (b *buffer) bytes(p []byte) {
	b.uvarint(uint64(len(p)))
	if len(p) < inlineBytes {
		b.arena = append(b.arena, p...)
		return
	}
	b.holes = append(b.holes, hole{len(b.arena), p})
	b.loose += len(p)
}

// each visits the whole from arena offset from on, in order.
func (b *buffer) each(from int, visit func([]byte)) {
	for _, h := range b.holes {
		if h.at < from {
			continue
		}
		visit(b.arena[from:h.at])
		visit(h.bytes)
		from = h.at
	}
	visit(b.arena[from:])
}

// sendable reports whether messages of this type travel between members other than as a snapshot.
func sendable(t raftpb.MessageType) bool {
	switch t {
	case raftpb.MsgProp, raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgHeartbeat,
		raftpb.MsgHeartbeatResp, raftpb.MsgTransferLeader, raftpb.MsgTimeoutNow, raftpb.MsgReadIndex,
		raftpb.MsgReadIndexResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp:
		return true
	}
	return false
}

func appendMessage(b *buffer, m *raftpb.Message, sender uint64) {
	fields := [...]struct {
		flag  uint64
		value uint64
	}{
		{hasTerm, m.GetTerm()}, {hasLogTerm, m.GetLogTerm()}, {hasIndex, m.GetIndex()}, {hasCommit, m.GetCommit()},
		{hasVote, m.GetVote()}, {hasRejectHint, m.GetRejectHint()},
	}
	var flags uint64
	for _, f := range fields {
		if f.value != 0 {
			flags |= f.flag
		}
	}
	if m.GetReject() {
		flags |= hasReject
	}
	if len(m.Context) > 0 {
		flags |= hasContext
	}
	if len(m.Entries) > 0 {
		flags |= hasEntries
	}
	if m.GetFrom() != sender {
		flags |= hasFrom
	}
	b.byte(byte(m.GetType()))
	b.uvarint(flags)
	for _, f := range fields {
		if f.value != 0 {
			b.uvarint(f.value)
		}
	}
	if flags&hasFrom != 0 {
		b.uvarint(m.GetFrom())
	}
	if flags&hasContext != 0 {
		b.bytes(m.Context)
	}
	if flags&hasEntries != 0 {
		appendEntries(b, m.Entries)
	}
}

func appendEntries(b *buffer, entries []*raftpb.Entry) {
	b.uvarint(uint64(len(entries)))
	var term, index uint64
	for _, e := range entries {
		kind := byte(e.GetType()) & entryTypeMask
		if e.GetTerm() == term {
			kind |= entrySameTerm
		}
		if e.GetIndex() == index+1 {
			kind |= entryNextIndex
		}
		b.byte(kind)
		if kind&entrySameTerm == 0 {
			b.uvarint(e.GetTerm())
		}
		if kind&entryNextIndex == 0 {
			b.uvarint(e.GetIndex())
		}
		term, index = e.GetTerm(), e.GetIndex()
		b.bytes(e.Data)
	}
}

// cursor reads what buffer wrote.
type cursor struct{ wire.Reader }

// decoded keeps a message and what its optional fields point at in one allocation.
type decoded struct {
	m                                                        raftpb.Message
	kind                                                     raftpb.MessageType
	to, from, term, logTerm, index, commit, vote, rejectHint uint64
	reject                                                   bool
}

type decodedEntry struct {
	e           raftpb.Entry
	term, index uint64
	kind        raftpb.EntryType
}

// message reads one message from sender to receiver. What it returns points into the input.
func (c *cursor) message(sender, receiver uint64) (*raftpb.Message, error) {
	d := &decoded{kind: raftpb.MessageType(c.Byte()), to: receiver, from: sender}
	flags := c.Uvarint()
	if c.Failed() || !sendable(d.kind) || flags&^allFlags != 0 {
		return nil, fmt.Errorf("%w: message type %d with flags %#x", ErrMalformed, d.kind, flags)
	}
	m := &d.m
	m.Type, m.To, m.From = &d.kind, &d.to, &d.from
	for _, f := range [...]struct {
		flag  uint64
		value *uint64
		field **uint64
	}{
		{hasTerm, &d.term, &m.Term}, {hasLogTerm, &d.logTerm, &m.LogTerm}, {hasIndex, &d.index, &m.Index},
		{hasCommit, &d.commit, &m.Commit}, {hasVote, &d.vote, &m.Vote}, {hasRejectHint, &d.rejectHint, &m.RejectHint},
	} {
		if flags&f.flag != 0 {
			*f.value = c.Uvarint()
			*f.field = f.value
		}
	}
	if flags&hasFrom != 0 {
		d.from = c.Uvarint()
	}
	if flags&hasReject != 0 {
		d.reject = true
		m.Reject = &d.reject
	}
	if flags&hasContext != 0 {
		m.Context = c.Bytes()
	}
	if flags&hasEntries != 0 {
		m.Entries = c.entries()
	}
	if c.Failed() {
		return nil, fmt.Errorf("%w: a cut %s", ErrMalformed, d.kind)
	}
	return m, nil
}

func (c *cursor) entries() []*raftpb.Entry {
	n := c.Uvarint()
	if n == 0 || n > uint64(c.Len())/2 { // an entry is two bytes at least
		c.Fail()
		return nil
	}
	slab := make([]decodedEntry, n)
	entries := make([]*raftpb.Entry, n)
	var term, index uint64
	for i := range slab {
		d := &slab[i]
		kind := c.Byte()
		if kind&^entryKnownFlags != 0 || kind&entryTypeMask > byte(raftpb.EntryConfChangeV2) {
			c.Fail()
		}
		if kind&entrySameTerm == 0 {
			term = c.Uvarint()
		}
		if kind&entryNextIndex != 0 {
			index++
		} else {
			index = c.Uvarint()
		}
		d.kind, d.term, d.index = raftpb.EntryType(kind&entryTypeMask), term, index
		d.e.Type = &d.kind
		if term != 0 {
			d.e.Term = &d.term
		}
		if index != 0 {
			d.e.Index = &d.index
		}
		d.e.Data = c.Bytes()
		if c.Failed() {
			return nil
		}
		entries[i] = &d.e
	}
	return entries
}

// decodeMessages reads the payload of a frame of messages.
func decodeMessages(payload []byte, sender, receiver uint64, visit func(*raftpb.Message)) error {
	c := cursor{wire.NewReader(payload)}
	for c.Len() > 0 {
		m, err := c.message(sender, receiver)
		if err != nil {
			return err
		}
		visit(m)
	}
	return nil
}

// messageBytes is about what a message takes in memory and on the wire.
func messageBytes(m *raftpb.Message) int64 {
	n := 64 + len(m.Context)
	for _, e := range m.Entries {
		n += 48 + len(e.Data)
	}
	return int64(n)
}

// copyMessage gives the message as a peer would decode it, sharing no memory with m.
func copyMessage(m *raftpb.Message, sender, receiver uint64) (*raftpb.Message, error) {
	var b buffer
	appendMessage(&b, m, sender)
	var flat []byte
	b.each(0, func(p []byte) { flat = append(flat, p...) })
	c := cursor{wire.NewReader(flat)}
	return c.message(sender, receiver)
}

func decodeSnapshotMessage(b []byte, sender, receiver uint64) (*raftpb.Message, error) {
	m := &raftpb.Message{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch {
	case m.GetType() != raftpb.MsgSnap || m.GetSnapshot().GetMetadata().GetIndex() == 0:
		return nil, fmt.Errorf("%w: a checkpoint that is announced by a %s", ErrMalformed, m.GetType())
	case m.GetFrom() != sender || m.GetTo() != receiver:
		return nil, fmt.Errorf("%w: a checkpoint from %x to %x on the connection from %x to %x", ErrMalformed,
			m.GetFrom(), m.GetTo(), sender, receiver)
	}
	return m, nil
}
