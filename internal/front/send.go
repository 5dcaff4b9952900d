package front

import (
	"context"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// This file is how answers leave. Whoever has one appends its frames to the connection's out and writes it, unless somebody
// writes already: then that one takes it along. Nobody writes while holding c.mu, and the reader never writes.

const (
	// highWater is how long out may become before those who have more to send wait. One answer may be beyond it, and the
	// few bytes that end each call.
	highWater = 64 << 10
	// atOnce is how long an answer may be that is appended as a whole.
	atOnce = 32 << 10
	// turnBytes is how much of a long answer is sent before it is the next one's turn, and pieceBytes how much of it in one go.
	turnBytes  = 2 << 20
	pieceBytes = 256 << 10
	// rounds is how often one writes what others have brought meanwhile before a goroutine of its own goes on.
	rounds = 32
	// keptBytes is how much memory an idle connection keeps for out.
	keptBytes = 16 << 10
)

var errClosing = status.Error(codes.Unavailable, "transport is closing")

// buffers are for connections that have much to send.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, highWater+atOnce+4<<10)
	return &b
}}

// flush writes what there is, unless somebody does. If yield is set and other calls are under way, those that are about to be
// answered too are let go first, so that many answers leave in one write. mu is held, but not while writing.
func (c *conn) flush(yield bool) {
	if c.writing || c.dead || !c.something() {
		return
	}
	c.writing = true
	if yield && len(c.streams) > 0 {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	c.write()
}

func (c *conn) something() bool {
	return len(c.out) > 0 || c.piece != nil || len(c.pongs) > 0 || c.lastWords && !c.lingering
}

// push has a goroutine write what there is, for those who must not wait. mu is held.
func (c *conn) push() {
	if c.writing || c.dead || !c.something() {
		return
	}
	c.writing = true
	go c.writeOn()
}

// writeOn writes for somebody who must not wait, or has written long enough. A stream's handler often has several messages, and
// others have some at the same moment: while more come, they are let come.
func (c *conn) writeOn() {
	for had := -1; ; {
		runtime.Gosched()
		c.mu.Lock()
		n := len(c.out)
		if n == had || n > keptBytes {
			break
		}
		had = n
		c.mu.Unlock()
	}
	defer c.mu.Unlock()
	c.write()
}

// write writes until there is nothing more. mu is held, but not while writing; writing is set.
func (c *conn) write() {
	for n := 0; !c.dead; n++ {
		if !c.delayPongs() {
			c.appendPongs()
		}
		if len(c.out) == 0 && c.piece == nil {
			c.room.Broadcast()
			if c.lastWords && !c.lingering {
				// The client closes when it has read this. If it does not, the reader does.
				c.lingering = true
				_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime))
			}
			break
		}
		if n == rounds {
			go c.writeOn()
			return
		}
		b, p := c.out, c.piece
		c.out, c.spare, c.piece = c.spare, nil, nil
		c.owed = 0
		c.resume.Signal()
		c.room.Signal() // one may fill it; all are woken when nothing is left to write
		if p != nil {
			p.state = pieceLeaves
		}
		c.mu.Unlock()
		err := c.writeOut(b, p)
		c.mu.Lock()
		c.recycle(b)
		if p != nil {
			p.state = pieceLeft
			p.call.may.Signal()
		}
		if err != nil {
			c.die()
		}
	}
	c.writing = false
}

// pongDelay is how long an answer to a ping may wait for what is to be sent before it.
const pongDelay = 2 * time.Millisecond

// delayPongs tells whether answers to pings, if there is nothing else, wait for something that they can leave with: the answer of a
// call under way, or what those have to send who wait for windows. Clients of grpc-go ping whenever something has come and no
// ping is under way; to one that calls again and again each pong by itself is a write here and a read there. They measure by pings
// how much is under way, and widen their windows by that: where pongs overtake what is being sent, windows stay small, and pings
// come all the time. mu is held.
func (c *conn) delayPongs() bool {
	if len(c.out) > 0 || c.piece != nil || len(c.pongs) == 0 || c.sending == 0 && c.unary == 0 || c.overdue || c.lastWords {
		return false
	}
	if c.later == nil {
		c.later = time.AfterFunc(pongDelay, c.pushLater)
	}
	return true
}

// appendPongs appends what answers pings. mu is held.
func (c *conn) appendPongs() {
	for _, data := range c.pongs {
		c.out = appendPing(c.out, http2.FlagPingAck, data)
	}
	c.pongs, c.overdue = c.pongs[:0], false
}

func (c *conn) pushLater() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.later, c.overdue = nil, len(c.pongs) > 0
	c.push()
}

func (c *conn) recycle(b []byte) {
	switch {
	case cap(b) <= keptBytes:
		if c.spare == nil {
			c.spare = b[:0]
		}
	case cap(b) >= highWater && cap(b) <= 4*highWater:
		b = b[:0]
		buffers.Put(&b)
	}
}

// reserve makes room for n bytes in out. mu is held.
func (c *conn) reserve(n int) {
	if cap(c.out)-len(c.out) >= n || len(c.out)+n <= keptBytes {
		return
	}
	old := c.out
	c.out = append(*buffers.Get().(*[]byte), old...)
	c.recycle(old)
}

// awaitRoom waits until out is short enough. mu is held.
func (c *conn) awaitRoom(k *call) error {
	for !k.closed && !c.dead && len(c.out) >= highWater {
		if !c.writing {
			c.flush(false)
			continue
		}
		c.waiting++
		c.room.Wait()
		if c.waiting--; c.waiting <= maxOrphans {
			c.resume.Signal()
		}
	}
	return c.sendable(k)
}

// sendable returns why nothing can be sent. mu is held.
func (c *conn) sendable(k *call) error {
	switch {
	case c.dead:
		return errClosing
	case k.closed:
		if err := k.Err(); err != nil {
			return contextStatus(err)
		}
		return contextStatus(context.Canceled)
	}
	return nil
}

// allow waits until some of left bytes may be sent, and returns how many. Those who have much to send take turns, of turnBytes
// each: whoever has the turn appends and writes by itself, which wakes nobody. mu is held.
func (c *conn) allow(k *call, left int) (int, error) {
	for {
		err := c.sendable(k)
		switch {
		case err != nil:
			c.leave(k)
			return 0, err
		case k.window <= 0:
			c.leave(k)
			c.flush(false)
			if k.window <= 0 && c.sendable(k) == nil {
				k.may.Wait()
			}
		case c.turn != nil && c.turn != k, c.turn == nil && len(c.queue) > 0 && c.queue[0] != k:
			if !k.queued {
				k.queued = true
				c.queue = append(c.queue, k)
				c.wakeFirst()
			}
			k.may.Wait()
		case c.turn == nil:
			c.turn, c.turnLeft = k, turnBytes
			c.unqueue(k)
		case c.turnLeft <= 0:
			c.leave(k)
			c.turnLeft = turnBytes // for who finds nobody waiting
			if len(c.queue) == 0 {
				c.turn = k
			}
		case len(c.out) >= highWater:
			if err := c.awaitRoom(k); err != nil {
				c.leave(k)
				return 0, err
			}
		case c.window <= 0:
			c.flush(false)
			if c.window <= 0 && c.sendable(k) == nil {
				k.may.Wait()
			}
		default:
			n := int(min(int64(left), k.window, c.window, pieceBytes))
			c.turnLeft -= n
			return n, nil
		}
	}
}

// leave gives up a call's turn, or its place in the queue, and wakes who is next. mu is held.
func (c *conn) leave(k *call) {
	if c.turn == k {
		c.turn = nil
		c.wakeFirst()
	}
	if k.queued {
		c.unqueue(k)
		c.wakeFirst()
	}
}

// unqueue takes a call out of the queue. mu is held.
func (c *conn) unqueue(k *call) {
	if !k.queued {
		return
	}
	k.queued = false
	at := slices.Index(c.queue, k)
	c.queue = slices.Delete(c.queue, at, at+1)
}

// wakeFirst wakes whose turn it is, or who is the next to have it. mu is held.
func (c *conn) wakeFirst() {
	switch {
	case c.turn != nil:
		if c.window > 0 {
			c.turn.may.Signal()
		}
	case len(c.queue) > 0:
		c.queue[0].may.Signal()
	}
}

// appendBlock appends HEADERS with the fields that encode appends. mu is held.
func (c *conn) appendBlock(id uint32, flags http2.Flags, encode func([]byte) []byte) {
	at := len(c.out)
	c.out = encode(appendFrame(c.out, 0, http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, id))
	n := len(c.out) - at - frameHead
	if n <= maxFrame {
		appendFrame(c.out[:at], n, http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, id)
		return
	}
	block := append([]byte(nil), c.out[at+frameHead:]...)
	c.out = append(appendFrame(c.out[:at], maxFrame, http2.FrameHeaders, flags, id), block[:maxFrame]...)
	for block = block[maxFrame:]; ; block = block[maxFrame:] {
		if len(block) <= maxFrame {
			c.out = append(appendFrame(c.out, len(block), http2.FrameContinuation, http2.FlagContinuationEndHeaders, id), block...)
			return
		}
		c.out = append(appendFrame(c.out, maxFrame, http2.FrameContinuation, 0, id), block[:maxFrame]...)
	}
}

// baseList is more than the fields count that every answer has.
const baseList = 512

// tooLong tells whether the client takes no list of fields that is so long. mu is held.
func (c *conn) tooLong(st *status.Status, subtype string, extra []field) bool {
	if c.maxList == 0 {
		return false
	}
	n := baseList + len(subtype) + listSize(extra)
	if st != nil {
		n += len(percent(st.Message()))
	}
	return n > c.maxList
}

var errListTooLong = status.Error(codes.Internal, "transport: trying to send header list size larger than the limit set by peer")

// appendHeader appends the beginning of an answer. mu is held.
func (c *conn) appendHeader(k *call) error {
	k.headerSent = true
	if k.packer == nil && len(k.header) == 0 && !c.tooLong(nil, k.head.subtype, nil) {
		c.appendBlock(k.id, 0, func(b []byte) []byte { return c.enc.answerHead(b, 200, k.head.subtype, nil) })
		return nil
	}
	var extra []field
	if k.packer != nil {
		extra = append(extra, field{"grpc-encoding", k.head.packing})
	}
	extra = append(extra, metadataFields(k.header)...)
	if c.tooLong(nil, k.head.subtype, extra) {
		c.abandon(k)
		return errListTooLong
	}
	c.appendBlock(k.id, 0, func(b []byte) []byte { return c.enc.answerHead(b, 200, k.head.subtype, extra) })
	return nil
}

// abandon resets the stream of a call whose client takes no such answer. mu is held.
func (c *conn) abandon(k *call) {
	c.out = appendReset(c.out, k.id, http2.ErrCodeInternal)
	c.forget(k)
}

// appendEnd appends the status of a call, which is forgotten then. header tells whether a beginning with metadata was appended
// too. mu is held.
func (c *conn) appendEnd(k *call, st *status.Status) (header bool) {
	alone := !k.headerSent
	if alone && len(k.header) > 0 {
		if c.appendHeader(k) != nil {
			return false
		}
		alone, header = false, true
	}
	var extra []field
	if st.Code() != codes.OK || len(k.trailer) > 0 {
		extra = detailFields(st, k.trailer)
	}
	if c.tooLong(st, k.head.subtype, extra) {
		c.abandon(k)
		return header
	}
	c.appendBlock(k.id, http2.FlagHeadersEndStream, func(b []byte) []byte {
		if alone {
			b = c.enc.answerHead(b, 200, k.head.subtype, nil)
		} else {
			b = c.enc.begin(b)
		}
		return c.enc.answerEnd(b, st, extra)
	})
	if !k.halfClosed {
		c.out = appendReset(c.out, k.id, http2.ErrCodeNo)
	}
	c.forget(k)
	c.sentSince.Store(true)
	return header
}

// appendMessage appends the next n bytes of a message. mu is held, and the windows allow it.
func (c *conn) appendMessage(k *call, m *outgoing, n int) {
	c.reserve(n + frameHead*(1+n/maxFrame))
	k.window -= int64(n)
	c.window -= int64(n)
	for n > 0 {
		part := min(n, maxFrame)
		c.out = m.appendNext(appendFrame(c.out, part, http2.FrameData, 0, k.id), part)
		n -= part
	}
	c.sentSince.Store(true)
}

// finish ends a call with a status. Only the first time counts.
func (c *conn) finish(k *call, st *status.Status) {
	c.mu.Lock()
	err := c.awaitRoom(k)
	header := false
	if err == nil {
		header = c.appendEnd(k, st)
		c.flush(true)
	}
	c.mu.Unlock()
	k.end(context.Canceled)
	if err == nil {
		if header {
			k.traceHeader()
		}
		k.traceTrailer()
	}
}

// send sends a message of a call. If more come at once, a short one may wait for the last of them.
func (c *conn) send(k *call, m *outgoing, more bool) error {
	c.mu.Lock()
	first := !k.headerSent
	err := c.awaitRoom(k)
	if err == nil && first {
		err = c.appendHeader(k)
	}
	left := m.left()
	if err == nil && left <= atOnce && c.fits(k, left) {
		c.appendMessage(k, m, left)
		left = 0
	}
	c.sending++
	for p := (*piece)(nil); left > 0 && err == nil; {
		var n int
		if n, err = c.allow(k, left); err != nil {
			break
		}
		left -= n
		switch {
		case n <= maxFrame:
			c.appendMessage(k, m, n)
		case p == nil:
			p = &piece{call: k}
			fallthrough
		default:
			c.sendPiece(p, m, n)
		}
	}
	c.leave(k)
	c.sending--
	if !more || err != nil {
		c.push()
	}
	c.mu.Unlock()
	if err == nil && first {
		k.traceHeader()
	}
	return err
}

// fits tells whether n bytes may be appended at once, without a turn. mu is held.
func (c *conn) fits(k *call, n int) bool {
	return len(c.out) < highWater && k.window >= int64(n) && c.window >= int64(n)
}

// answer sends the one message of a call, and that it has ended well.
func (c *conn) answer(k *call, m *outgoing) error {
	c.mu.Lock()
	n := m.left()
	if n > atOnce || c.sendable(k) != nil || k.headerSent || !c.fits(k, n) || c.appendHeader(k) != nil {
		c.mu.Unlock()
		if err := c.send(k, m, false); err != nil {
			return err
		}
		k.traceSent(m.from, m)
		c.finish(k, okStatus)
		return nil
	}
	c.appendMessage(k, m, n)
	c.appendEnd(k, okStatus)
	c.flush(true)
	c.mu.Unlock()
	k.end(context.Canceled)
	k.traceHeader()
	k.traceSent(m.from, m)
	k.traceTrailer()
	return nil
}

var okStatus = status.New(codes.OK, "")

// grant lets the client send more of a call.
func (c *conn) grant(k *call, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.closed || c.dead {
		return
	}
	c.out = appendWindowUpdate(c.out, k.id, n)
	c.push()
}

// look is the keepalive's: it asks a silent client for a sign of life, and closes the connection if none comes.
func (c *conn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return
	}
	now, last := time.Now(), c.lastRead.Load()
	silent := now.Sub(time.Unix(0, last))
	if c.pinged && last > c.pingedAt.UnixNano() {
		c.pinged = false
	}
	switch {
	case c.pinged && now.Sub(c.pingedAt) >= c.s.o.PingTimeout:
		c.die()
		return
	case c.pinged:
		c.keepalive.Reset(min(c.s.o.PingInterval, c.s.o.PingTimeout-now.Sub(c.pingedAt)))
	case silent >= c.s.o.PingInterval:
		c.out = appendPing(c.out, 0, [8]byte{})
		c.push()
		c.pinged, c.pingedAt = true, now
		c.keepalive.Reset(min(c.s.o.PingInterval, c.s.o.PingTimeout))
	default:
		c.keepalive.Reset(c.s.o.PingInterval - silent)
	}
}

// drain tells the client to make its next calls elsewhere. Those that it sends before it has heard that are taken.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drained != nil || c.closing || c.dead {
		return
	}
	c.out = appendGoAway(c.out, math.MaxInt32, http2.ErrCodeNo, drainText)
	c.out = appendPing(c.out, 0, goAwayPing)
	c.drained = time.AfterFunc(drainTime, c.drainEnd)
	c.push()
}

const drainText = "graceful_stop"

// drainEnd takes no more calls, and has the connection closed when the last has ended.
func (c *conn) drainEnd() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drained == nil || c.closing || c.dead {
		return
	}
	c.drained.Stop()
	c.closing = true
	c.out = appendGoAway(c.out, c.maxID, http2.ErrCodeNo, drainText)
	c.lastWords = len(c.streams) == 0
	c.push()
}
