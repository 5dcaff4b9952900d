package transport

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

func numbered(kind raftpb.MessageType, from, to, number uint64) *raftpb.Message {
	return &raftpb.Message{Type: kind.Enum(), From: new(from), To: new(to), Term: new(uint64(1)),
		Context: binary.LittleEndian.AppendUint64(nil, number)}
}

// TestPass: messages that are written past the stream's goroutine, by many at once and beside those that it writes, arrive whole
// and once. Over pipes, as over TLS, nothing is written past it.
func TestPass(t *testing.T) {
	const senders, each = 8, 300
	a, b := startTCP(t)
	var mu sync.Mutex
	seen := map[uint64]int{}
	all := make(chan struct{})
	b.onMessage = func(m *raftpb.Message) {
		mu.Lock()
		defer mu.Unlock()
		if len(m.Context) == 8 {
			seen[binary.LittleEndian.Uint64(m.Context)]++
		}
		if len(seen) == senders*each {
			select {
			case <-all:
			default:
				close(all)
			}
		}
	}
	var passed atomic.Int64
	var wg sync.WaitGroup
	for s := range uint64(senders) {
		wg.Go(func() {
			small := a.peer(2).small
			for i := range uint64(each) {
				switch m := numbered(raftpb.MsgReadIndex, 1, 2, s*each+i); {
				case s%2 == 0: // a forwarded command's acknowledgement, say: of a kind that waits
					a.Send([]*raftpb.Message{numbered(raftpb.MsgTimeoutNow, 1, 2, s*each+i)})
				case small.pass(m):
					passed.Add(1)
				default:
					a.Send([]*raftpb.Message{m})
				}
				time.Sleep(50 * time.Microsecond)
			}
		})
	}
	wg.Wait()
	select {
	case <-all:
	case <-time.After(time.Minute):
		t.Errorf("%d of %d messages arrived", len(seen), senders*each)
	}
	for number, times := range seen {
		if times != 1 {
			t.Errorf("message %d arrived %d times", number, times)
		}
	}
	if passed.Load() == 0 {
		t.Error("none was passed")
	}
}

// TestPassNeverWaits: a peer that does not read holds nobody up, and what its connection took of a message, and what it did not,
// arrives in one piece when it reads on.
func TestPassNeverWaits(t *testing.T) {
	for _, behind := range []int{0, 100} {
		t.Run(fmt.Sprintf("%d queued behind", behind), func(t *testing.T) { testPassNeverWaits(t, behind) })
	}
}

func testPassNeverWaits(t *testing.T, behind int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// Member 2 takes member 1's connections and does not read the one for small messages until it is told to.
	b := &Transport{c: Config{ClusterID: 1, ID: 2}}
	b.c.setDefaults()
	read, got := make(chan struct{}), make(chan uint64, 1<<20)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
				h, err := b.c.welcome(conn, func(hello) (byte, string) { return verdictWelcome, "" })
				if err != nil || h.stream != streamSmall {
					return
				}
				<-read
				b.h = &recorder{onMessage: func(m *raftpb.Message) { got <- binary.LittleEndian.Uint64(m.Context) }}
				_ = newInConn(b, 1, conn).read()
			}()
		}
	}()
	a := startOne(t, 1, map[uint64][]string{2: {l.Addr().String()}}, func(ctx context.Context, addr string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
		}
		return conn, err
	})
	small := a.peer(2).small
	for start := time.Now(); !small.pass(numbered(raftpb.MsgReadIndex, 1, 2, 0)); time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("the members have not found each other")
		}
	}
	n := uint64(1)
	for full := false; !full; n++ {
		if !small.pass(numbered(raftpb.MsgReadIndex, 1, 2, n)) {
			t.Fatal("not passed though nothing waits")
		}
		small.mu.Lock()
		full = len(small.outlet.rest) > 0
		small.mu.Unlock()
	}
	for range behind {
		a.Send([]*raftpb.Message{numbered(raftpb.MsgReadIndex, 1, 2, n)})
		n++
	}
	close(read)
	for want := range n {
		select {
		case number := <-got:
			if number != want {
				t.Fatalf("message %d came in the place of %d", number, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("message %d of %d did not come", want, n)
		}
	}
}
