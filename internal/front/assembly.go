package front

import (
	"encoding/binary"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// assembly makes messages of the DATA of one call. It is the reader's; what it makes is put into the call under its mu.
type assembly struct {
	head  [msgHead]byte
	heads int     // bytes of head that are there
	need  int     // length of the message whose head is whole
	data  []byte  // what of it is there
	slab  *[]byte // the pooled memory behind data, or nil
	ended error   // nothing more is taken: the end, or what was wrong
	first bool    // the call's own memory is used
}

// take takes bytes and returns how much more the client must be allowed to send at once for the message that they begin.
// k.mu is held.
func (a *assembly) take(k *call, p []byte) (grant int) {
	for len(p) > 0 && a.ended == nil {
		if a.heads < msgHead {
			n := copy(a.head[a.heads:], p)
			a.heads, p = a.heads+n, p[n:]
			if a.heads < msgHead {
				return grant
			}
			grant += a.start(k, len(p))
			if a.ended != nil {
				break
			}
		}
		n := min(len(p), a.need-len(a.data))
		a.data, p = append(a.data, p[:n]...), p[n:]
		if len(a.data) == a.need {
			k.messages = append(k.messages, message{data: a.data, slab: a.slab, format: a.head[0]})
			a.heads, a.data, a.slab = 0, nil, nil
		}
	}
	if a.ended != nil { // nobody will take the rest
		k.unread -= len(p)
		k.c.unread.Add(-int64(len(p)))
	}
	return grant
}

// start begins a message whose head is whole, and of which have bytes are there.
func (a *assembly) start(k *call, have int) (grant int) {
	n, limit := binary.BigEndian.Uint32(a.head[1:]), k.c.s.o.MaxRecvBytes
	if int64(n) > int64(limit) {
		a.fail(k, status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", n, limit))
		return 0
	}
	a.need = int(n)
	switch {
	case !a.first && a.need <= inlineBytes:
		a.first = true
		a.data = k.buf[:0:a.need]
	case a.need <= streamWindow:
		a.slab = k.c.s.slabs.get(a.need)
		a.data = (*a.slab)[:0]
	default:
		a.data = make([]byte, 0, streamWindow) // what is longer grows as it comes
	}
	if short := a.need - have - k.allowance; short > 0 {
		grant = short + streamWindow/2
		k.allowance += grant
		k.credit -= grant // what is taken of this message is not given back again
	}
	return grant
}

// fail puts an error behind the messages. As in grpc-go nothing more is then taken.
func (a *assembly) fail(k *call, err error) {
	a.ended, k.broken = err, err
}

// finish notes that the client has sent all that it will.
func (a *assembly) finish(k *call) {
	switch {
	case a.ended != nil:
	case a.heads > 0:
		k.broken = status.Error(codes.Internal, io.ErrUnexpectedEOF.Error())
	default:
		k.broken = io.EOF
	}
	a.ended = io.EOF
}
