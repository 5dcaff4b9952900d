package transport

import (
	"net"
	"syscall"

	"go.etcd.io/raft/v3/raftpb"
)

// outlet is a stream's connection: one writes to it at a time. Most messages are written by the stream's goroutine, so that those
// that come together leave together. Those that somebody waits for, and that come alone, are written by whoever sends them: to
// wake a goroutine costs more, and takes longer. That never waits for the network either. What the connection does not take at
// once goes first when the stream's goroutine writes next.
type outlet struct {
	raw syscall.RawConn // nil: over TLS, or in a test, only the stream's goroutine writes

	// stream.mu guards these.
	writing bool
	wanted  bool // the stream's goroutine found somebody else writing
	rest    []byte

	out buffer // of whoever writes past the stream's goroutine
}

func newOutlet(conn net.Conn) *outlet {
	o := &outlet{}
	switch c := conn.(type) {
	case *net.TCPConn:
		o.raw, _ = c.SyscallConn()
	case *net.UnixConn:
		o.raw, _ = c.SyscallConn()
	}
	return o
}

// awaited reports whether somebody waits for a message and nothing else: those about reads. (Acknowledgements of entries had
// better gather, as the entries did.)
func awaited(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
		return true
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp:
		return len(m.Context) > 0
	}
	return false
}

// pass writes a message at once if nothing is queued and nobody writes; else it is to be queued.
func (s *stream) pass(m *raftpb.Message) bool {
	s.mu.Lock()
	o := s.outlet
	if !s.up || o.raw == nil || o.writing || len(s.queue)+len(s.calls)+len(o.rest) > 0 {
		s.mu.Unlock()
		return false
	}
	o.writing = true
	s.mu.Unlock()

	start := o.out.begin(frameMessages)
	appendMessage(&o.out, m, s.p.t.c.ID)
	o.out.end(start)
	passed := len(o.out.holes) == 0
	var rest []byte
	if passed {
		n := writeSome(o.raw, o.out.arena)
		rest = append(rest, o.out.arena[n:]...)
		s.p.t.c.Observer.Sent(s.p.id, o.out.len())
	}
	o.out.reset()

	s.mu.Lock()
	o.rest, o.writing = rest, false
	more := o.wanted || len(rest) > 0 || len(s.queue)+len(s.calls) > 0
	o.wanted = false
	s.mu.Unlock()
	if more {
		s.nudge()
	}
	return passed
}

// writeSome writes what the connection takes now. Errors come again for whoever writes next.
func writeSome(raw syscall.RawConn, p []byte) (written int) {
	_ = raw.Write(func(fd uintptr) bool {
		for written < len(p) {
			n, err := syscall.Write(int(fd), p[written:])
			if n > 0 {
				written += n
			}
			if err != nil && err != syscall.EINTR || err == nil && n <= 0 {
				break
			}
		}
		return true
	})
	return written
}
