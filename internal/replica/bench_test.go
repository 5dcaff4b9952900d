package replica

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/raftlog"
	"github.com/trivet-kv/trivet/internal/transport"
)

// sink is a state machine that only wakes who waits for a command.
type sink struct {
	*toy
	mu      sync.Mutex
	waiting map[string]chan struct{}
}

func (s *sink) Apply(entries []command.Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		if len(e.Data) == 0 {
			continue
		}
		if err := command.Batch(e.Data, func(_ uint64, cmd []byte) error {
			if ch := s.waiting[string(cmd)]; ch != nil {
				delete(s.waiting, string(cmd))
				close(ch)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// startBench runs three members over loopback TCP with logs in memory.
func startBench(b *testing.B) (rs []*Replica, sinks []*sink) {
	peers := map[uint64][]string{}
	var listeners []net.Listener
	for id := range uint64(3) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		listeners = append(listeners, l)
		peers[id+1] = []string{l.Addr().String()}
	}
	for i, l := range listeners {
		id := uint64(i + 1)
		fs := vfs.NewMem()
		log, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "log", SegmentBytes: 4 << 20})
		if err != nil {
			b.Fatal(err)
		}
		tr, err := transport.New(transport.Config{ClusterID: 1, ID: id, Peers: peers, Listeners: []net.Listener{l}, FS: fs, Incoming: "incoming"})
		if err != nil {
			b.Fatal(err)
		}
		s := &sink{toy: &toy{}, waiting: map[string]chan struct{}{}}
		r, err := Start(Config{ID: id, Origin: id, Log: raftLog{log}, Machine: s, Transport: tr, Applied: Position{1, 1},
			ConfState: EncodeConfState([]uint64{1, 2, 3}, nil), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil {
			b.Fatal(err)
		}
		tr.Serve(peerHandler{r})
		b.Cleanup(func() {
			r.Stop()
			_ = tr.Close()
			_ = log.Close()
		})
		rs, sinks = append(rs, r), append(sinks, s)
	}
	for rs[0].Status().Leader == 0 {
		time.Sleep(time.Millisecond)
	}
	return rs, sinks
}

// BenchmarkPropose is one command of 300 bytes through a closed loop of clients spread over three members.
func BenchmarkPropose(b *testing.B) {
	for _, clients := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			rs, sinks := startBench(b)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for c := range clients {
				wg.Go(func() {
					r, s := rs[c%3], sinks[c%3]
					for i := range b.N / clients {
						cmd := fmt.Appendf(make([]byte, 0, 300), "%d-%d", c, i)[:300]
						ch := make(chan struct{})
						s.mu.Lock()
						s.waiting[string(cmd)] = ch
						s.mu.Unlock()
						if err := r.Propose(b.Context(), nil, cmd); err != nil {
							b.Error(err)
							return
						}
						<-ch
					}
				})
			}
			wg.Wait()
		})
	}
}

// BenchmarkRead is one linearizable read on one of three members.
func BenchmarkRead(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			rs, _ := startBench(b)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for c := range clients {
				wg.Go(func() {
					for range b.N / clients {
						if err := rs[c%3].ReadBarrier(b.Context(), nil); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func (peerHandler) Removed(uint64) {}
