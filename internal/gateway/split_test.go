package gateway

import (
	"io"
	"log/slog"
	"net"
	"testing"
	"time"
)

func split(t *testing.T, silent time.Duration) (*splitter, func() net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSplitter(Door{Listener: l, Plain: true}, true, true, silent, slog.New(slog.DiscardHandler))
	t.Cleanup(s.close)
	return s, func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
}

func TestSplit(t *testing.T) {
	s, dial := split(t, time.Minute)
	for text, to := range map[string]*handoff{
		"GET / HTTP/1.1\r\n": s.http,
		"POST /v3/kv/range":  s.http,
		"PRI * HTTP/1.1\r\n": s.http,
		"PR":                 nil, // not decided yet
		string(preface):      nil,
		string(preface) + "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05":                         nil, // half of its settings
		string(preface) + "\x00\x00\x00\x04\x00\x00\x00\x00\x00and more":                         s.grpc,
		string(preface) + "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00and more": s.grpc,
	} {
		c := dial()
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if to == nil {
			continue
		}
		got, err := to.Accept()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len(text))
		if _, err := io.ReadFull(got, b); err != nil || string(b) != text {
			t.Errorf("%q became %q, %v", text, b, err)
		}
		_ = got.Close()
	}
}

// A connection that says nothing, or half of the preface, is closed when its time is up, and holds no other up; so is one
// whose settings never come, and at once one that sends something else in their place.
func TestSilentConnectionsAreClosed(t *testing.T) {
	s, dial := split(t, 50*time.Millisecond)
	silent, half, whole, other := dial(), dial(), dial(), dial()
	for c, text := range map[net.Conn]string{
		half: string(preface[:10]), whole: string(preface), other: string(preface) + "and more of it",
	} {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	talks := dial()
	if _, err := talks.Write([]byte("GET /")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.http.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{silent, half, whole, other} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the server sent something")
		}
	}
	if n := len(s.slots); n != 0 {
		t.Errorf("%d places are still taken", n)
	}
}
