package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// Ask makes one call of whichever member listens at addr. The caller need not be a member, nor know the cluster: this is how
// one that is to join learns of it. Which calls are answered to strangers is the handler's to say. Dial is TCP if nil.
func Ask(ctx context.Context, dial func(ctx context.Context, addr string) (net.Conn, error), addr string, kind byte, body []byte) ([]byte, error) {
	c := Config{Dial: dial}
	c.setDefaults()
	conn, err := c.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	raw := conn
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if o, ok := conn.(Opener); ok {
		if conn, err = o.Open(ctx); err != nil {
			return nil, askError(ctx, err)
		}
	}
	if _, err := c.greet(conn, 0, streamAsk, nil); err != nil {
		return nil, askError(ctx, err)
	}
	var out buffer
	start := out.begin(frameCall)
	out.arena = binary.LittleEndian.AppendUint64(out.arena, 1)
	out.byte(kind)
	out.arena = append(out.arena, body...)
	out.end(start)
	if err := out.writeTo(conn); err != nil {
		return nil, askError(ctx, err)
	}
	got, payload, err := readFrame(bufio.NewReader(conn), c.MaxFrameBytes)
	switch {
	case err != nil:
		return nil, askError(ctx, err)
	case got != frameAnswer || len(payload) < 9:
		return nil, fmt.Errorf("%w: a frame of kind %d and %d bytes as an answer", ErrMalformed, got, len(payload))
	case payload[8] != 0:
		return nil, &RemoteError{printable(string(payload[9:]))}
	}
	return payload[9:], nil
}

func askError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// serveAsk answers one call of a stranger. The connection has a minute for all of it.
func (c *inConn) serveAsk() {
	if c.conn.SetDeadline(time.Now().Add(time.Minute)) != nil {
		return
	}
	const maxAsk = 64 << 10
	kind, payload, err := readFrame(bufio.NewReader(c.conn), maxAsk)
	if err == nil && (kind != frameCall || len(payload) < 9) {
		err = errors.New("it did not ask")
	}
	if err != nil {
		c.t.c.Logger.Warn("a stranger's question could not be read", "remote", c.conn.RemoteAddr(), "err", err)
		return
	}
	answer, err := c.t.h.Serve(c.t.ctx, 0, payload[8], payload[9:])
	_ = c.answer(binary.LittleEndian.Uint64(payload), answer, err) // who asked notices
}

// ownAddrs is where this member is: by the table of members, and as it was started. The table may be the older of the two: a member
// that was told to move, and died before it had applied that, has the old address there, and so may those who look for it.
func (t *Transport) ownAddrs() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return joined(t.addrs, t.c.Addrs)
}
