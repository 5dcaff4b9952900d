package transport

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// startTCP runs two members on loopback and waits until they have found each other.
func startTCP(tb testing.TB) (a, b *peerSpec) {
	tb.Helper()
	var listeners [2]net.Listener
	peers := map[uint64][]string{}
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		listeners[i] = l
		peers[uint64(i+1)] = []string{l.Addr().String()}
	}
	var out [2]*peerSpec
	for i := range out {
		fs := vfs.NewMem()
		tr, err := New(Config{ClusterID: 1, ID: uint64(i + 1), Peers: peers, Listeners: listeners[i : i+1], FS: fs, Incoming: "incoming"})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = tr.Close() })
		out[i] = &peerSpec{tr, &recorder{}, fs, &lockedBuffer{}}
	}
	for _, s := range out {
		s.Transport.Serve(s.recorder)
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		out[0].recorder.mu.Lock()
		up := len(out[0].events) > 0 && out[0].events[len(out[0].events)-1] == "up 2"
		out[0].recorder.mu.Unlock()
		if up {
			return out[0], out[1]
		}
		if time.Since(start) > time.Minute {
			tb.Fatal("the members have not found each other")
		}
	}
}

// startOne runs one member, whose peers the test plays. It sends nothing of its own for an hour.
func startOne(t *testing.T, id uint64, peers map[uint64][]string, dial func(context.Context, string) (net.Conn, error)) *Transport {
	t.Helper()
	tr, err := New(Config{ClusterID: 1, ID: id, Peers: peers, FS: vfs.NewMem(), Incoming: "incoming", Dial: dial, Keepalive: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	tr.Serve(&recorder{})
	return tr
}

// TestTCP: the pipes of the other tests stand for the real thing: messages, a checkpoint, and the death of a process.
func TestTCP(t *testing.T) {
	a, b := startTCP(t)
	for i := range uint64(100) {
		a.Send([]*raftpb.Message{heartbeat(1, 2), appendOf(1, 2, i+1, make([]byte, 10_000))})
		time.Sleep(100 * time.Microsecond)
	}
	writeCheckpoint(t, a.fs, "checkpoint")
	sent := make(chan error, 1)
	a.SendSnapshot(snapshotOf(1, 2, 10), "checkpoint", func(err error) { sent <- err })
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	compareCheckpoint(t, b.fs, b.snapshots[0])
	for start := time.Now(); b.received() < 200; time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatalf("%d messages of 200 arrived", b.received())
		}
	}
	index := uint64(0)
	for _, m := range b.kept() {
		if m.GetType() == raftpb.MsgApp {
			if index++; m.Entries[0].GetIndex() != index {
				t.Errorf("append %d arrived as number %d", m.Entries[0].GetIndex(), index)
			}
		}
	}
	a.heard()
	start := time.Now()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for heard := ""; heard != "down 2 gone=true"; time.Sleep(time.Millisecond) {
		a.recorder.mu.Lock()
		if n := len(a.events); n > 0 {
			heard = a.events[n-1]
		}
		a.recorder.mu.Unlock()
		if time.Since(start) > time.Minute {
			t.Fatalf("the death of the peer was not noticed: %s", a.heard())
		}
	}
}

// BenchmarkTCP is one append of 20 KiB and its small answer, there and back over loopback.
func BenchmarkTCP(bench *testing.B) {
	a, b := startTCP(bench)
	got := make(chan struct{}, 1)
	b.recorder.onMessage = func(m *raftpb.Message) { b.Send([]*raftpb.Message{heartbeat(2, 1)}) }
	var n atomic.Int64
	a.recorder.onMessage = func(*raftpb.Message) { n.Add(1); got <- struct{}{} }
	data := make([]byte, 20<<10)
	bench.ReportAllocs()
	for bench.Loop() {
		a.Send([]*raftpb.Message{appendOf(1, 2, 1, data)})
		<-got
	}
}
