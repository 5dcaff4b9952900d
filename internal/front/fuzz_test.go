package front_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/trivet-kv/trivet/internal/front"
)

// script is a connection whose client says what it was given and then closes.
type script struct {
	say    *bytes.Reader
	mu     sync.Mutex
	said   bytes.Buffer // by the server
	closed chan struct{}
	once   sync.Once
}

func (s *script) Read(p []byte) (int, error) {
	select {
	case <-s.closed:
		return 0, net.ErrClosed
	default:
		return s.say.Read(p)
	}
}

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.Write(p)
}

func (s *script) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// scripts is a listener of them.
type scripts chan net.Conn

func (s scripts) Accept() (net.Conn, error) {
	c, ok := <-s
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (s scripts) Close() error   { return nil }
func (s scripts) Addr() net.Addr { return &net.TCPAddr{} }

// recorder is a raw client that only writes, into a buffer.
func recorder(t testing.TB, talk func(*raw)) []byte {
	var out bytes.Buffer
	r := &raw{t: t, fr: http2.NewFramer(&out, nil), conn: nil, body: map[uint32][]byte{}, eof: true}
	r.fr.AllowIllegalWrites = true
	r.enc = hpack.NewEncoder(&r.buf)
	_ = r.fr.WriteSettings()
	talk(r)
	return out.Bytes()
}

// FuzzConnection says anything behind a preface. The connection must end, with nothing but well-formed frames said on it.
func FuzzConnection(f *testing.F) {
	for _, talk := range []func(*raw){
		func(r *raw) { r.call(1, "Echo", "x"); r.call(3, "Meta", "x"); r.call(5, "None", "") },
		func(r *raw) {
			r.headers(1, false, fields("Bidi", "grpc-timeout", "1H", "x-bin", "AAA", "grpc-encoding", "gzip")...)
			r.data(1, false, msg("abc"))
			r.data(1, true, formatted(1, zipped("abc")))
			_ = r.fr.WriteRSTStream(1, 0)
		},
		func(r *raw) {
			_ = r.fr.WriteSettings(window(3), http2.Setting{ID: http2.SettingHeaderTableSize, Val: 10}, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1000})
			r.call(1, "Give", "100000")
			_ = r.fr.WriteWindowUpdate(1, 5)
			_ = r.fr.WriteWindowUpdate(0, 5)
			_ = r.fr.WriteSettings(window(100))
			_ = r.fr.WritePing(false, [8]byte{})
			_ = r.fr.WriteGoAway(0, 0, nil)
			_ = r.fr.WritePriority(1, http2.PriorityParam{Weight: 1})
			_ = r.fr.WriteDataPadded(1, true, []byte("x"), make([]byte, 10))
		},
		func(r *raw) {
			b := r.block(fields("Echo")...)
			_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:10], PadLength: 3})
			_ = r.fr.WriteContinuation(1, true, b[10:])
		},
	} {
		f.Add(recorder(f, talk))
	}
	s := newService()
	close(s.open)
	srv := front.New(front.Options{Codec: bytesCodec{}, MaxRecvBytes: maxRecv, MaxStreams: 100})
	srv.RegisterService(s.desc(), s)
	l := make(scripts)
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()
	f.Cleanup(func() {
		close(l)
		<-served
		srv.Stop()
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &script{say: bytes.NewReader(append([]byte(http2.ClientPreface), data...)), closed: make(chan struct{})}
		l <- c
		<-c.closed
		c.mu.Lock()
		defer c.mu.Unlock()
		wellFormed(t, c.said.Bytes())
	})
}

// wellFormed checks what a server said: frames that decode, and nothing behind the end of a stream.
func wellFormed(t *testing.T, said []byte) {
	fr := http2.NewFramer(nil, bytes.NewReader(said))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	over := make(map[uint32]bool)
	for {
		f, err := fr.ReadFrame()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("the server said %q: %v", said, err)
		}
		id := f.Header().StreamID
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if over[id] {
				t.Fatalf("HEADERS behind the end of stream %d", id)
			}
			over[id] = f.StreamEnded()
		case *http2.DataFrame:
			if over[id] {
				t.Fatalf("DATA behind the end of stream %d", id)
			}
			over[id] = f.StreamEnded()
		case *http2.RSTStreamFrame:
			over[id] = true
		}
	}
}
