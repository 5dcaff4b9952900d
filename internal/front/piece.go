package front

import (
	"net"

	"golang.org/x/net/http2"
)

// piece is a part of a long message on its way: its frames, whose payload lies where the message lies and is not copied on its
// way to the system. A call has one, for all parts of its message in turn; it is written behind conn.out, at most one at a time.
type piece struct {
	call   *call
	state  pieceState // under conn.mu
	heads  []byte     // of the frames
	frames [][]byte   // heads and payload in turn
	left   net.Buffers
}

type pieceState uint8

const (
	pieceWaits  pieceState = iota
	pieceLeaves            // somebody writes it
	pieceLeft              // its memory is not read any more
)

// Plain is a connection that wraps another and adds nothing to the bytes that are written.
type Plain interface {
	// Plain returns the connection itself, or nil if bytes do not go through it as they are.
	Plain() net.Conn
}

// gathering returns the connection below nc that takes several pieces of memory in one call of the system, if there is one.
func gathering(nc net.Conn) net.Conn {
	if p, ok := nc.(Plain); ok {
		nc = p.Plain()
	}
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
		return nc
	}
	return nil
}

// sendPiece sends the next n bytes of a message. It returns when they are written, and their memory was given back, or when they
// will not be. mu is held, but not while writing or waiting; the windows allow it.
func (c *conn) sendPiece(p *piece, m *outgoing, n int) {
	k := p.call
	k.window -= int64(n)
	c.window -= int64(n)
	from := m.part
	m.gather(p, n)
	p.state, c.piece = pieceWaits, p
	for p.state != pieceLeft {
		switch {
		case p.state == pieceWaits && (k.closed || c.dead):
			if c.piece == p {
				c.piece = nil
			}
			p.state = pieceLeft
			c.window += int64(n)
			c.wakeFirst()
		case !c.writing:
			c.flush(false)
		default:
			k.may.Wait()
		}
	}
	c.sentSince.Store(true)
	m.data[from:m.part].Free()
}

// gather makes the frames of the next n bytes.
func (m *outgoing) gather(p *piece, n int) {
	p.heads, p.frames = p.heads[:0], p.frames[:0]
	if room := (1+n/maxFrame)*frameHead + msgHead; cap(p.heads) < room {
		p.heads = make([]byte, 0, room) // frames point into it: it does not grow
	}
	for n > 0 {
		part := min(n, maxFrame)
		n -= part
		at := len(p.heads)
		p.heads = appendFrame(p.heads, part, http2.FrameData, 0, p.call.id)
		p.heads, part = m.appendHead(p.heads, part)
		p.frames = append(p.frames, p.heads[at:])
		for part > 0 {
			data := m.next(part)
			if len(data) > 0 {
				p.frames = append(p.frames, data)
			}
			part -= len(data)
		}
	}
}

// writeOut writes what was in out and a piece behind it, if there is one.
func (c *conn) writeOut(b []byte, p *piece) error {
	if p == nil {
		_, err := c.nc.Write(b)
		return err
	}
	if c.gather != nil {
		p.left = p.left[:0]
		if len(b) > 0 {
			p.left = append(p.left, b)
		}
		p.left = append(p.left, p.frames...)
		all := p.left
		_, err := p.left.WriteTo(c.gather) // which moves it on
		p.left = all
		return err
	}
	slab := buffers.Get().(*[]byte)
	whole := append((*slab)[:0], b...)
	for _, f := range p.frames {
		whole = append(whole, f...)
	}
	_, err := c.nc.Write(whole)
	*slab = whole[:0]
	buffers.Put(slab)
	return err
}
