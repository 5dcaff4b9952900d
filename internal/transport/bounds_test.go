package transport

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"
)

// TestBodiesAreBounded: what a stranger asks, and what a peer sends, is refused by the length that it announces, before any of
// it is read (E#22147), and so is a call that this member would make.
func TestBodiesAreBounded(t *testing.T) {
	for _, c := range []struct {
		what   string
		to     uint64
		stream byte
		frame  []byte // its beginning
		asked  bool
	}{
		{"a stranger's question of 64 KiB", 0, streamAsk, frameOf(frameCall, 64<<10), true},
		{"a stranger's question of more", 0, streamAsk, announce(frameCall, 64<<10+1), false},
		{"a peer's call as long as frames may be", 2, streamSmall, frameOf(frameCall, 1<<20), true},
		{"a peer's call that is longer", 2, streamSmall, announce(frameCall, 1<<20+1), false},
		{"a call of 4 GiB", 2, streamSmall, announce(frameCall, 1<<32-1), false},
	} {
		inBubble(t, func(t *testing.T) {
			p := newPipes()
			b := startPeer(t, p, 2, func(c *Config) { c.MaxFrameBytes = 1 << 20 })
			defer b.Close()
			asked := false
			b.serve = func(context.Context, uint64, byte, []byte) ([]byte, error) {
				asked = true
				return nil, nil
			}
			if _, err := b.Call(t.Context(), 1, 7, make([]byte, 1<<20)); err == nil || !strings.Contains(err.Error(), "at most") {
				t.Errorf("a call longer than a frame: %v", err)
			}
			conn, err := p.dial(t.Context(), "m2")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			dialler := Config{ClusterID: 0xc1, ID: 1}
			dialler.setDefaults()
			if _, err := dialler.greet(conn, c.to, c.stream, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(c.frame); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 100)
			n, err := conn.Read(answer)
			if c.asked != asked || asked != (n > 0 && err == nil) {
				t.Errorf("%s: served %t, and answered %x, %v", c.what, asked, answer[:n], err)
			}
		})
	}
}

// frameOf is a frame with a payload of n zeros.
func frameOf(kind byte, n int) []byte {
	var b buffer
	start := b.begin(kind)
	b.arena = append(b.arena, make([]byte, n)...)
	b.end(start)
	return b.arena
}

// announce is the beginning of a frame whose payload is to be n bytes.
func announce(kind byte, n uint32) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, n), kind, 0, 0, 0, 0)
}
