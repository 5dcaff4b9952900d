package front

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// This file is what each kind of frame does. All of it runs in the reader.

func (c *conn) takeHeaders(f frame, p []byte) error {
	if f.id == 0 {
		return connError{http2.ErrCodeProtocol, "HEADERS without a stream"}
	}
	p, err := unpad(f, p)
	if err != nil {
		return err
	}
	if f.flags.Has(http2.FlagHeadersPriority) {
		if len(p) < 5 {
			return connError{http2.ErrCodeFrameSize, "HEADERS that is too short for its priority"}
		}
		p = p[5:]
	}
	if f.flags.Has(http2.FlagHeadersEndHeaders) {
		return c.begin(f, p)
	}
	c.block = append(c.block[:0], p...)
	c.blockOf, c.blocks = f, 1
	return nil
}

func (c *conn) takeContinuation(f frame, p []byte) error {
	if c.blockOf.id == 0 {
		return connError{http2.ErrCodeProtocol, "CONTINUATION of nothing"}
	}
	c.blocks++
	if c.blocks > maxContinuations || len(c.block)+len(p) > maxHeaderBlock {
		return connError{http2.ErrCodeEnhanceYourCalm, "header fields are too long"}
	}
	c.block = append(c.block, p...)
	if !f.flags.Has(http2.FlagContinuationEndHeaders) {
		return nil
	}
	head, block := c.blockOf, c.block
	c.blockOf, c.block = frame{}, nil
	return c.begin(head, block)
}

// begin begins a call.
func (c *conn) begin(f frame, block []byte) error {
	h, timeout, code, err := c.heads.read(block)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if f.id%2 != 1 || f.id <= c.maxID {
		c.mu.Unlock()
		return connError{http2.ErrCodeProtocol, fmt.Sprintf("received an illegal stream id: %d", f.id)}
	}
	c.maxID = f.id
	ended := f.flags.Has(http2.FlagHeadersEndStream)
	switch {
	case c.closing || c.dead:
		c.mu.Unlock() // the client was told that it is not served
		return nil
	case h == nil:
		c.out = appendReset(c.out, f.id, code)
		c.owe()
		c.mu.Unlock()
		return nil
	case h.refuse != nil:
		c.refuse(f.id, h, h.refuse, ended)
		c.mu.Unlock()
		return nil
	case c.s.o.MaxStreams > 0 && len(c.streams) >= int(c.s.o.MaxStreams):
		c.out = appendReset(c.out, f.id, http2.ErrCodeRefusedStream)
		c.owe()
		c.mu.Unlock()
		return nil
	case h.notPost != nil:
		c.refuse(f.id, h, h.notPost, ended)
		c.mu.Unlock()
		return nil
	case timeout == 0:
		c.refuse(f.id, h, tooLate, ended)
		c.mu.Unlock()
		return nil
	}
	k := newCall(c, f.id, h, c.initial)
	k.headBytes = f.length
	c.streams[f.id] = k
	if h.unary() {
		c.unary++
	}
	c.last = k
	k.halfClosed = ended
	now := ended || !h.unary()
	k.dispatched = now
	c.mu.Unlock()
	if ended {
		k.broken, k.in.ended = io.EOF, io.EOF
	}
	if timeout > 0 {
		k.arm(timeout)
	}
	if now {
		c.s.dispatch(k)
	}
	return nil
}

var tooLate = &refusal{http: 200, st: status.New(codes.DeadlineExceeded, context.DeadlineExceeded.Error())}

// arm sets the deadline of a call.
func (k *call) arm(timeout time.Duration) {
	k.deadline = time.Now().Add(timeout)
	t := time.AfterFunc(timeout, k.expire)
	k.mu.Lock()
	k.timer = t
	k.mu.Unlock()
}

// expire ends a call at its deadline. The client, which set it, needs no status.
func (k *call) expire() {
	c := k.c
	c.mu.Lock()
	late := !k.closed
	if late {
		c.drop(k)
		if !c.dead {
			c.out = appendReset(c.out, k.id, http2.ErrCodeCancel)
		}
		c.push()
	}
	c.mu.Unlock()
	if late {
		k.end(context.DeadlineExceeded)
	}
}

// refuse answers a call that is not begun. mu is held.
func (c *conn) refuse(id uint32, h *head, r *refusal, ended bool) {
	if r.http == 0 {
		c.out = appendReset(c.out, id, r.code)
		c.owe()
		return
	}
	extra := detailFields(r.st, nil)
	c.appendBlock(id, http2.FlagHeadersEndStream, func(b []byte) []byte {
		return c.enc.answerEnd(c.enc.answerHead(b, r.http, h.subtype, nil), r.st, extra)
	})
	if !ended {
		c.out = appendReset(c.out, id, http2.ErrCodeNo)
	}
	c.owe()
}

func (c *conn) takeData(f frame, p []byte) error {
	if f.id == 0 {
		return connError{http2.ErrCodeProtocol, "DATA without a stream"}
	}
	p, err := unpad(f, p)
	if err != nil {
		return err
	}
	if c.received += f.length; c.received > connWindow {
		return connError{http2.ErrCodeFlowControl, "more was sent than the connection's window allows"}
	}
	if c.received >= connWindow/4 {
		c.mu.Lock()
		if !c.dead {
			c.out = appendWindowUpdate(c.out, 0, c.received)
			c.owe()
		}
		c.mu.Unlock()
		c.received = 0
	}
	k := c.last
	if k == nil || k.id != f.id {
		c.mu.Lock()
		k = c.streams[f.id]
		idle := f.id > c.maxID
		c.mu.Unlock()
		if idle {
			return connError{http2.ErrCodeProtocol, "DATA on a stream that was not begun"}
		}
		if k == nil {
			return nil // on its way when the call ended
		}
	}
	if errors.Is(k.in.ended, io.EOF) {
		c.reset(f.id, http2.ErrCodeStreamClosed)
		return nil
	}
	return k.takeData(f, p)
}

// takeData gives a call what it was sent.
func (k *call) takeData(f frame, p []byte) error {
	c := k.c
	if f.flags.Has(http2.FlagDataEndStream) && k.head.method != nil && k.head.method.stream != nil {
		// Before its handler can see the end, and answer.
		c.mu.Lock()
		k.halfClosed = true
		c.mu.Unlock()
	}
	k.mu.Lock()
	if k.err != nil {
		k.mu.Unlock()
		return nil
	}
	k.allowance -= f.length
	over := k.allowance < 0
	k.credit += f.length - len(p) // padding is taken already
	k.unread += len(p)
	grant := k.in.take(k, p)
	if f.flags.Has(http2.FlagDataEndStream) {
		k.in.finish(k)
	}
	ready := k.broken != nil || len(k.messages) > 1
	k.arrived.Signal()
	k.mu.Unlock()
	if over {
		c.reset(f.id, http2.ErrCodeFlowControl)
		return nil
	}
	if c.unread.Add(int64(len(p))) > unreadMessages*int64(c.s.o.MaxRecvBytes+streamWindow) {
		return connError{http2.ErrCodeEnhanceYourCalm, "too much of what was sent is not taken by the calls"}
	}
	if grant > 0 {
		c.grant(k, grant)
	}
	ended := errors.Is(k.in.ended, io.EOF)
	if !ended && (!ready || k.head.method == nil || k.head.method.stream != nil) {
		return nil
	}
	c.mu.Lock()
	k.halfClosed = k.halfClosed || ended
	now := ready && !k.dispatched && !k.closed
	if now {
		k.dispatched = true
	}
	c.mu.Unlock()
	if now {
		c.s.dispatch(k)
	}
	return nil
}

func (c *conn) takeReset(f frame, p []byte) error {
	if len(p) != 4 {
		return connError{http2.ErrCodeFrameSize, "RST_STREAM of a wrong length"}
	}
	c.mu.Lock()
	k := c.streams[f.id]
	if f.id == 0 || k == nil && f.id > c.maxID {
		c.mu.Unlock()
		return connError{http2.ErrCodeProtocol, "RST_STREAM of a stream that was not begun"}
	}
	if k != nil {
		c.drop(k)
		c.pause()
	}
	c.mu.Unlock()
	if k != nil {
		k.end(context.Canceled)
	}
	return nil
}

func (c *conn) takeSettings(f frame, p []byte) error {
	if f.id != 0 {
		return connError{http2.ErrCodeProtocol, "SETTINGS on a stream"}
	}
	if f.flags.Has(http2.FlagSettingsAck) {
		if len(p) != 0 {
			return connError{http2.ErrCodeFrameSize, "SETTINGS that acknowledge and set"}
		}
		return nil
	}
	if len(p)%6 != 0 {
		return connError{http2.ErrCodeFrameSize, "SETTINGS of a wrong length"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(p) > 0; p = p[6:] {
		if err := c.set(http2.SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	if !c.dead {
		c.out = appendFrame(c.out, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
		c.owe()
	}
	return nil
}

// set takes one setting of the client. mu is held.
func (c *conn) set(id http2.SettingID, v uint32) error {
	if err := (http2.Setting{ID: id, Val: v}).Valid(); err != nil {
		code := http2.ErrCodeProtocol
		if id == http2.SettingInitialWindowSize {
			code = http2.ErrCodeFlowControl
		}
		return connError{code, "a setting has a value that it cannot have"}
	}
	switch id {
	case http2.SettingHeaderTableSize:
		c.enc.resize(v)
	case http2.SettingMaxHeaderListSize:
		c.maxList = int(min(max(v, 1), math.MaxInt32))
	case http2.SettingInitialWindowSize:
		delta := int64(v) - c.initial
		c.initial = int64(v)
		for _, k := range c.streams {
			k.window += delta // which may leave less than nothing
			if k.window > math.MaxInt32 {
				return connError{http2.ErrCodeFlowControl, "a window became larger than 2^31-1"}
			}
			if delta > 0 {
				k.may.Signal()
			}
		}
	}
	return nil
}

func (c *conn) takeWindowUpdate(f frame, p []byte) error {
	if len(p) != 4 {
		return connError{http2.ErrCodeFrameSize, "WINDOW_UPDATE of a wrong length"}
	}
	n := int64(binary.BigEndian.Uint32(p) & math.MaxInt32)
	c.mu.Lock()
	if f.id == 0 {
		defer c.mu.Unlock()
		if c.window += n; n == 0 || c.window > math.MaxInt32 {
			return windowError(n)
		}
		c.wakeFirst()
		return nil
	}
	k, idle := c.streams[f.id], f.id > c.maxID
	wrong := n == 0
	if k != nil && !wrong {
		k.window += n
		wrong = k.window > math.MaxInt32
		k.may.Signal()
	}
	c.mu.Unlock()
	switch {
	case idle:
		return connError{http2.ErrCodeProtocol, "WINDOW_UPDATE of a stream that was not begun"}
	case wrong:
		c.reset(f.id, windowError(n).code)
	}
	return nil
}

func windowError(n int64) connError {
	if n == 0 {
		return connError{http2.ErrCodeProtocol, "WINDOW_UPDATE of nothing"}
	}
	return connError{http2.ErrCodeFlowControl, "a window became larger than 2^31-1"}
}

// goAwayPing is what a client answers when it has heard that it is to go elsewhere.
var goAwayPing = [8]byte{'t', 'r', 'i', 'v', 'e', 't', 'g', 'o'}

// maxStrikes is how many pings in a row may come too early.
const maxStrikes = 2

func (c *conn) takePing(f frame, p []byte) error {
	if len(p) != 8 {
		return connError{http2.ErrCodeFrameSize, "PING of a wrong length"}
	}
	if f.id != 0 {
		return connError{http2.ErrCodeProtocol, "PING on a stream"}
	}
	data := [8]byte(p)
	if f.flags.Has(http2.FlagPingAck) {
		if data == goAwayPing {
			c.drainEnd()
		}
		return nil
	}
	c.mu.Lock()
	if !c.dead {
		c.pongs = append(c.pongs, data)
		c.owe()
	}
	calls := len(c.streams)
	c.mu.Unlock()
	now := time.Now()
	since := now.Sub(c.lastPing)
	c.lastPing = now
	switch {
	case c.sentSince.CompareAndSwap(true, false):
		c.strikes = 0
		return nil
	case calls == 0 && since < idlePingTime, calls > 0 && since < c.s.o.PingMinTime:
		c.strikes++
	}
	if c.strikes > maxStrikes {
		return connError{http2.ErrCodeEnhanceYourCalm, "too_many_pings"}
	}
	return nil
}

// idlePingTime is how often a client without calls may ping.
const idlePingTime = 2 * time.Hour
