package transport

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// slowConn takes a write when the test says so.
type slowConn struct {
	net.Conn
	release chan error // what a write comes to
	mu      sync.Mutex
	writes  [][]byte
	closed  bool
}

func (c *slowConn) Write(p []byte) (int, error) {
	err := <-c.release
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	c.writes = append(c.writes, slices.Clone(p))
	return len(p), nil
}

func (c *slowConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func (c *slowConn) SetWriteDeadline(time.Time) error { return nil }

// Answers that come while one is being written leave together behind it, each whole, and one that finds too much waits.
func TestAnswersLeaveTogether(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		conn, told := &slowConn{release: make(chan error)}, 0
		c := newInConn(&Transport{c: Config{StallTimeout: time.Second, Observer: Observer{Sent: func(_ uint64, n int) { told += n }}}}, 7, conn)
		answered := make(chan error, 20)
		answer := func(id uint64, body []byte) { go func() { answered <- c.answer(id, body, nil) }() }
		answer(0, []byte("first"))
		synctest.Wait()
		for id := uint64(1); id < 10; id++ {
			answer(id, fmt.Appendf(nil, "body %d", id))
		}
		synctest.Wait()
		if n := len(answered); n != 9 {
			t.Fatalf("%d have gone on, want all but the one who writes", n)
		}
		answer(10, make([]byte, maxBatch))
		synctest.Wait()
		answer(11, []byte("waits"))
		synctest.Wait()
		if n := len(answered); n != 10 {
			t.Fatalf("%d have gone on: what is not written is not bounded", n)
		}
		for range 3 {
			conn.release <- nil
			synctest.Wait()
		}
		if n := len(answered); n != 12 {
			t.Fatalf("%d have gone on, want all", n)
		}
		if len(conn.writes) != 3 {
			t.Fatalf("%d writes", len(conn.writes))
		}
		all := bytes.Join(conn.writes, nil)
		if told != len(all) {
			t.Errorf("%d bytes were told of, %d were sent", told, len(all))
		}
		r, ids := bufio.NewReader(bytes.NewReader(all)), map[uint64]bool{}
		for range 12 {
			kind, payload, err := readFrame(r, 2*maxBatch)
			if err != nil || kind != frameAnswer || len(payload) < 9 || payload[8] != 0 {
				t.Fatalf("kind %d, %d bytes, %v", kind, len(payload), err)
			}
			id := binary.LittleEndian.Uint64(payload)
			if body := string(payload[9:]); 0 < id && id < 10 && body != fmt.Sprint("body ", id) {
				t.Errorf("answer %d is %q", id, body)
			}
			ids[id] = true
		}
		if len(ids) != 12 {
			t.Errorf("the answers of %v", ids)
		}

		// A broken connection is closed, so that its reader ends, and nobody waits for it.
		gone := errors.New("gone")
		answer(20, nil)
		synctest.Wait()
		answer(21, make([]byte, maxBatch))
		synctest.Wait()
		answer(22, nil)
		synctest.Wait()
		conn.release <- gone
		synctest.Wait()
		if n := len(answered); n != 15 || !conn.closed {
			t.Errorf("%d have gone on, closed: %t", n, conn.closed)
		}
		if err := c.answer(23, nil, nil); !errors.Is(err, gone) {
			t.Errorf("afterwards: %v", err)
		}
	})
}
