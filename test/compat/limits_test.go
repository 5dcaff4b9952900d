package compat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/cluster"
)

// TestLimits sets the limits of connections and requests, and what a member listens on, and sees both systems do the same.
func TestLimits(t *testing.T) {
	if *tlsFlag {
		t.Skip("the connections of this test are without TLS")
	}
	var seen [2][]string
	for i, s := range []*target{systems.etcd, systems.trivet} {
		seen[i] = limitsOf(t, s)
		t.Logf("%s:\n%s", s.name, strings.Join(seen[i], "\n"))
	}
	if len(seen[0]) != len(seen[1]) {
		t.Fatalf("%d and %d answers", len(seen[0]), len(seen[1]))
	}
	for i := range seen[0] {
		if seen[0][i] != seen[1][i] {
			t.Errorf("etcd:   %s\nTrivet: %s", seen[0][i], seen[1][i])
		}
	}
}

// alone starts one member of a system.
func alone(t *testing.T, s *target, extra ...string) *cluster.Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, filepath.Join(t.TempDir(), s.name), 1, s.command, append(extra, s.extra...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.Members[0]
}

// limitsOf says what a system does, a line for each thing.
func limitsOf(t *testing.T, s *target) (seen []string) {
	note := func(what string, v any) { seen = append(seen, fmt.Sprintf("%s: %v", what, v)) }
	dir, err := os.MkdirTemp("", "limits-") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	m := alone(t, s, "--max-request-bytes=10000", "--max-txn-ops=3", "--max-concurrent-streams=4",
		"--grpc-keepalive-min-time=1h", "--grpc-keepalive-interval=1s", "--grpc-keepalive-timeout=1s", "--socket-reuse-port")
	conn, err := m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, n := range []int{9000, 9900, 10000, 12000, 500_000, 600_000} {
		_, err := pb.NewKVClient(conn).Put(t.Context(), &pb.PutRequest{Key: []byte("k"), Value: make([]byte, n)})
		note(fmt.Sprintf("a put of %d bytes", n), told(err))
	}
	// Each counts what it writes to its log beside the value; to the byte that is its own business.
	note("the shortest put that is too large, in hundreds", (9932+sort.Search(100, func(n int) bool {
		_, err := pb.NewKVClient(conn).Put(t.Context(), &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 9900+n)})
		return err != nil
	}))/100)
	for n := 2; n <= 4; n++ {
		r := &pb.TxnRequest{}
		for i := range n {
			r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: fmt.Append(nil, i)}}})
		}
		_, err := pb.NewKVClient(conn).Txn(t.Context(), r)
		note(fmt.Sprintf("a transaction of %d", n), told(err))
	}
	note("settings", dialFrames(t, m.Client).settings())
	note("pings too often, without a call", dialFrames(t, m.Client).pings(5, time.Millisecond))
	f := dialFrames(t, m.Client)
	f.open(t)
	note("pings too often, during a call", f.pings(5, time.Millisecond))
	note("a client that does not answer pings", dialFrames(t, m.Client).silent())
	note("the port again, shared", reuse(m.Client, true))
	note("the port again, not shared", reuse(m.Client, false))

	lenient := alone(t, s, "--grpc-keepalive-min-time=1ms", "--grpc-keepalive-interval=0s")
	f = dialFrames(t, lenient.Client)
	f.open(t)
	note("pings that are allowed", f.pings(8, 5*time.Millisecond))
	note("the port of one that does not share, shared", reuse(lenient.Client, true))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web, socket := l.Addr().String(), filepath.Join(dir, "s")
	l.Close()
	apart := alone(t, s, "--listen-client-http-urls=http://"+web+",unix://"+socket)
	note("a client URL beside those for HTTP", served(t, "tcp", apart.Client))
	note("a URL for HTTP", served(t, "tcp", web))
	note("a unix socket for HTTP", served(t, "unix", socket))
	note("a client URL", served(t, "tcp", lenient.Client))
	return seen
}

// told is what a caller is told.
func told(err error) string {
	if err == nil {
		return "done"
	}
	s := status.Convert(err)
	return fmt.Sprintf("%v: %s", s.Code(), s.Message())
}

// reuse binds the address of a member a second time.
func reuse(address string, shared bool) string {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if shared {
			_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return errors.Unwrap(errors.Unwrap(err)).Error()
	}
	l.Close()
	return "bound"
}

// frames is a connection of HTTP/2 of which every frame is seen.
type frames struct {
	net.Conn
	*http2.Framer
}

// dialFrames connects as a gRPC client does.
func dialFrames(t *testing.T, address string) *frames {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := &frames{c, http2.NewFramer(c, c)}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// settings are those that the server sends, but for sizes of buffers.
func (f *frames) settings() string {
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return err.Error()
		}
		if s, ok := fr.(*http2.SettingsFrame); ok && !s.IsAck() {
			n, ok := s.Value(http2.SettingMaxConcurrentStreams)
			return fmt.Sprintf("streams %d %v", n, ok)
		}
	}
}

// open begins a watch and leaves it open.
func (f *frames) open(t *testing.T) {
	t.Helper()
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/etcdserverpb.Watch/Watch"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		if err := e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
}

// pings sends n pings, each after the answer to the one before, and says how many are answered and how it ends.
func (f *frames) pings(n int, pause time.Duration) string {
	for i := range n {
		time.Sleep(pause)
		if err := f.WritePing(false, [8]byte{byte(i + 1)}); err != nil {
			return fmt.Sprintf("%d answered, then the connection is closed", i)
		}
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				return fmt.Sprintf("%d answered, then the connection is closed", i)
			}
			if p, ok := fr.(*http2.PingFrame); ok && p.IsAck() && p.Data[0] == byte(i+1) {
				break
			}
			if g, ok := fr.(*http2.GoAwayFrame); ok {
				return fmt.Sprintf("%d answered, then GOAWAY %v %q", i, g.ErrCode, g.DebugData())
			}
		}
	}
	return "all answered"
}

// silent answers nothing and says what the server does.
func (f *frames) silent() string {
	var did []string
	for {
		fr, err := f.ReadFrame()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return strings.Join(append(did, "nothing more"), ", ")
		case err != nil:
			return strings.Join(append(did, "closed"), ", ")
		}
		if p, ok := fr.(*http2.PingFrame); ok && !p.IsAck() && p.Data != [8]byte{2, 4, 16, 16, 9, 14, 7, 7} { // one that measures the line
			did = append(did, "ping")
		}
		if g, ok := fr.(*http2.GoAwayFrame); ok {
			did = append(did, "GOAWAY "+g.ErrCode.String())
		}
	}
}

// served says what of HTTP and gRPC is served at an address.
func served(t *testing.T, network, address string) string {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, "") }}}
	var said []string
	for _, path := range []string{"/version", "/health", "/metrics", "/v3/kv/range"} {
		a, err := c.Get("http://x" + path)
		if err != nil {
			said = append(said, path+" none")
			continue
		}
		a.Body.Close()
		said = append(said, fmt.Sprintf("%s %d", path, a.StatusCode))
	}
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = pb.NewKVClient(conn).Range(t.Context(), &pb.RangeRequest{Key: []byte("k")})
	return strings.Join(said, ", ") + ", gRPC " + regexp.MustCompile(`:.*`).ReplaceAllString(told(err), "")
}
