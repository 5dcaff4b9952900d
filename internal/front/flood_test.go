package front_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// blocks says something again and again without reading a word, and fails if the server takes all of it: 96 MiB, which no
// socket's buffers hold.
func (r *raw) blocks(say func()) {
	r.t.Helper()
	r.sync() // so that its settings are not to be acknowledged meanwhile
	var buf bytes.Buffer
	old := r.fr
	r.fr = http2.NewFramer(&buf, nil)
	r.fr.AllowIllegalWrites = true
	defer func() { r.fr = old }()
	for sent := 0; sent < 96<<20; {
		for buf.Len() < 64<<10 {
			say()
		}
		_ = r.conn.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := r.conn.Write(buf.Bytes())
		sent += n
		buf.Next(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			_ = r.conn.SetWriteDeadline(time.Time{})
			go r.write(bytes.Clone(buf.Bytes())) // the rest of the last piece
			return
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	r.t.Fatal("the server took all that it was told, though nobody took what it answered")
}

// A client that does not read answers is not read any more, whatever it asks for; nothing piles up. When it reads again, it
// gets all answers.
func TestNobodyReads(t *testing.T) {
	t.Run("calls", func(t *testing.T) {
		t.Parallel()
		_, _, addr := start(t, true, options{})
		r := dial(t, addr)
		id := uint32(1)
		text := strings.Repeat("x", 1000)
		r.blocks(func() {
			r.call(id, "Fail", text)
			id += 2
		})
		for i := uint32(1); i < id; i += 2 {
			r.until(i)
			if r.eof {
				t.Fatalf("the connection ended before the answer to call %d of %d", i, id)
			}
		}
	})
	t.Run("pings", func(t *testing.T) {
		t.Parallel()
		_, _, addr := start(t, true, options{minTime: time.Nanosecond})
		r := dial(t, addr)
		r.call(1, "Wait", "")
		r.blocks(func() { r.ok(r.fr.WritePing(false, [8]byte{})) })
	})
	t.Run("settings", func(t *testing.T) {
		t.Parallel()
		_, _, addr := start(t, true, options{})
		r := dial(t, addr)
		r.blocks(func() { r.ok(r.fr.WriteSettings()) })
	})
	t.Run("refusals", func(t *testing.T) {
		t.Parallel()
		_, _, addr := start(t, true, options{})
		r := dial(t, addr)
		id := uint32(1)
		r.blocks(func() {
			r.headers(id, true, fields("Echo", "connection", "x")...)
			id += 2
		})
	})
	t.Run("resets", func(t *testing.T) {
		t.Parallel()
		_, _, addr := start(t, true, options{})
		r := dial(t, addr)
		r.call(1, "Echo", "x")
		r.until(1)
		r.blocks(func() { r.ok(r.fr.WriteRawFrame(http2.FramePriority, 0, 1, []byte{1})) })
	})
}

// A client that calls and cancels in a loop has no more handlers than one that only calls.
func TestRapidReset(t *testing.T) {
	const most = 50
	s, _, addr := start(t, true, options{maxStreams: most})
	r := dial(t, addr)
	const calls = 2000
	for i := range uint32(calls) {
		id := 2*i + 1
		r.call(id, "Hold", "")
		r.ok(r.fr.WriteRSTStream(id, http2.ErrCodeCancel))
	}
	for deadline := time.Now().Add(wait); s.held.Load() < most; {
		if time.Now().After(deadline) {
			t.Fatalf("%d handlers run", s.held.Load())
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	if n := s.held.Load(); n > most+2 {
		t.Errorf("%d handlers run for a connection that may have %d calls", n, most)
	}
	close(s.open)
	r.call(2*calls+1, "Echo", "goes on")
	r.until(2*calls + 1)
	if got := string(r.body[2*calls+1]); got != string(msg("goes on")) {
		t.Errorf("it said:\n%s", r)
	}
}

// What calls do not take of what they are sent is bounded.
func TestMuchUnread(t *testing.T) {
	_, _, addr := start(t, true, options{})
	r := dial(t, addr)
	r.sync()    // so that only the other goroutine writes
	go func() { // it does not wait for windows, which are given as bytes come
		for i := range uint32(400) {
			r.headers(2*i+1, false, fields("Deaf")...)
			r.data(2*i+1, false, bytes.Repeat(msg(string(pattern(1000))), 128))
		}
	}()
	r.untilNoted(0, "GOAWAY")
	if got := r.String(); !strings.Contains(got, "ENHANCE_YOUR_CALM") {
		t.Errorf("it said:\n%s", got)
	}
}
