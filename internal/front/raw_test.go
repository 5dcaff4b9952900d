package front_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// raw is a client that says frame by frame what a test wants to say.
type raw struct {
	t    testing.TB
	conn net.Conn
	fr   *http2.Framer
	enc  *hpack.Encoder
	buf  bytes.Buffer

	log   map[uint32]*strings.Builder // what came on each stream; 0: on the connection
	body  map[uint32][]byte
	ended map[uint32]bool
	eof   bool

	ping   [8]byte // the server's last
	pinged bool
}

const wait = 20 * time.Second

func dial(t testing.TB, addr string, settings ...http2.Setting) *raw {
	t.Helper()
	return dialWith(t, addr, func(r *raw) { r.ok(r.fr.WriteSettings(settings...)) })
}

// dialWith says the preface and what first says, or, if that is nil, nothing.
func dialWith(t testing.TB, addr string, first func(*raw)) *raw {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return speak(t, conn, first)
}

// speak is dialWith on a connection that is there.
func speak(t testing.TB, conn net.Conn, first func(*raw)) *raw {
	t.Helper()
	t.Cleanup(func() { _ = conn.Close() })
	r := &raw{
		t: t, conn: conn, fr: http2.NewFramer(conn, conn),
		log: make(map[uint32]*strings.Builder), body: make(map[uint32][]byte), ended: make(map[uint32]bool),
	}
	r.fr.AllowIllegalWrites, r.fr.AllowIllegalReads = true, false
	r.fr.SetMaxReadFrameSize(1 << 20)
	r.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.fr.MaxHeaderListSize = 16 << 20
	r.enc = hpack.NewEncoder(&r.buf)
	if first != nil {
		r.write([]byte(http2.ClientPreface))
		first(r)
	}
	return r
}

// ok is for what writing returns: the server may have closed, and what it said before that is looked at.
func (r *raw) ok(error) {}

func (r *raw) write(b []byte) {
	_, err := r.conn.Write(b)
	r.ok(err)
}

// block encodes fields, given as names and values in turn.
func (r *raw) block(fields ...string) []byte {
	r.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := r.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			r.t.Fatal(err)
		}
	}
	return bytes.Clone(r.buf.Bytes())
}

// fields are those of a call of a method, with more behind them.
func fields(method string, more ...string) []string {
	return append([]string{
		":method", "POST", ":scheme", "http", ":path", "/test.Test/" + method, ":authority", "member",
		"content-type", "application/grpc", "user-agent", "raw", "te", "trailers",
	}, more...)
}

func (r *raw) headers(id uint32, end bool, fields ...string) {
	r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.block(fields...), EndStream: end, EndHeaders: true}))
}

// msg is a message with its head.
func msg(body string) []byte { return formatted(0, body) }

func formatted(format byte, body string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{format}, uint32(len(body)))
	return append(b, body...)
}

func (r *raw) data(id uint32, end bool, b []byte) {
	for len(b) > 16384 {
		r.ok(r.fr.WriteData(id, false, b[:16384]))
		b = b[16384:]
	}
	r.ok(r.fr.WriteData(id, end, b))
}

// call makes a whole unary call.
func (r *raw) call(id uint32, method, body string, more ...string) {
	r.headers(id, false, fields(method, more...)...)
	r.data(id, true, msg(body))
}

func (r *raw) note(id uint32, format string, args ...any) {
	b := r.log[id]
	if b == nil {
		b = new(strings.Builder)
		r.log[id] = b
	}
	fmt.Fprintf(b, format+"\n", args...)
}

// one reads one frame and notes it, but for what servers may do as they like: settings, windows, and pings of their own.
func (r *raw) one() bool {
	r.t.Helper()
	_ = r.conn.SetReadDeadline(time.Now().Add(wait))
	f, err := r.fr.ReadFrame()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		r.t.Fatal("the server said nothing more; so far:\n" + r.String())
	}
	if err != nil {
		r.eof = true
		return false
	}
	id := f.Header().StreamID
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		var list []string
		for _, h := range f.Fields {
			list = append(list, fmt.Sprintf("%s=%q", h.Name, h.Value))
		}
		sort.Strings(list)
		r.note(id, "HEADERS %s", strings.Join(list, " "))
		r.ended[id] = r.ended[id] || f.StreamEnded()
		if f.StreamEnded() {
			r.note(id, "END")
		}
	case *http2.DataFrame:
		r.body[id] = append(r.body[id], f.Data()...)
		if f.StreamEnded() {
			r.ended[id] = true
			r.note(id, "END with data")
		}
	case *http2.RSTStreamFrame:
		r.ended[id] = true
		r.note(id, "RST %v", f.ErrCode)
	case *http2.GoAwayFrame:
		text, _, _ := strings.Cut(string(f.DebugData()), ". headers frame:") // grpc-go shows the frame
		r.note(0, "GOAWAY %d %v %q", f.LastStreamID, f.ErrCode, text)
	case *http2.PingFrame:
		if f.IsAck() {
			r.note(0, "PONG %x", f.Data)
		} else {
			r.ping, r.pinged = f.Data, true
		}
	case *http2.SettingsFrame:
		if !f.IsAck() {
			r.ok(r.fr.WriteSettingsAck())
		}
	}
	return true
}

// until reads until all of these streams have ended, or the connection has.
func (r *raw) until(ids ...uint32) {
	r.t.Helper()
	for {
		open := false
		for _, id := range ids {
			open = open || !r.ended[id]
		}
		if !open || !r.one() {
			return
		}
	}
}

// untilNoted reads until something was noted on a stream.
func (r *raw) untilNoted(id uint32, text string) {
	r.t.Helper()
	for r.log[id] == nil || !strings.Contains(r.log[id].String(), text) {
		if !r.one() {
			r.t.Fatalf("the connection ended before %q on stream %d:\n%s", text, id, r)
		}
	}
}

// untilBody reads until so many bytes have come on a stream.
func (r *raw) untilBody(id uint32, n int) {
	r.t.Helper()
	for len(r.body[id]) < n {
		if !r.one() {
			r.t.Fatalf("the connection ended after %d bytes of %d", len(r.body[id]), n)
		}
	}
}

// untilSum reads until so many bytes have come on all streams together.
func (r *raw) untilSum(n int) {
	r.t.Helper()
	for {
		sum := 0
		for _, b := range r.body {
			sum += len(b)
		}
		if sum >= n {
			return
		}
		if !r.one() {
			r.t.Fatalf("the connection ended after %d bytes of %d", sum, n)
		}
	}
}

// sync reads until the server has answered a ping, so that it has taken all that was said before.
func (r *raw) sync() {
	r.t.Helper()
	data := [8]byte{'s', 'y', 'n', 'c', byte(len(r.log))}
	r.ok(r.fr.WritePing(false, data))
	r.untilNoted(0, fmt.Sprintf("PONG %x", data))
}

// untilEOF reads to the end of the connection.
func (r *raw) untilEOF() {
	r.t.Helper()
	for r.one() {
	}
}

// String is all that came, but for the pings.
func (r *raw) String() string {
	var ids []uint32
	for id := range r.log {
		ids = append(ids, id)
	}
	for id := range r.body {
		if r.log[id] == nil {
			ids = append(ids, id)
		}
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	var out strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&out, "-- %d\n", id)
		if b := r.body[id]; len(b) > 300 {
			fmt.Fprintf(&out, "%d bytes, CRC %08x\n", len(b), crc32.ChecksumIEEE(b))
		} else if len(b) > 0 {
			fmt.Fprintf(&out, "%q\n", b)
		}
		if r.log[id] != nil {
			for line := range strings.Lines(r.log[id].String()) {
				if !strings.HasPrefix(line, "PONG") {
					out.WriteString(line)
				}
			}
		}
	}
	return out.String()
}
