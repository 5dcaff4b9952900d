package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// A connection begins with the dialler's hello: the 8 bytes of magic, protocol version (1 byte), length (2 bytes), and so
// many bytes: cluster id, dialler's id, id of the member it wants (8 bytes each), stream (1 byte), and the version of its
// software, perhaps followed by a zero byte and its addresses, with commas between. The acceptor answers with magic, protocol version, a byte of verdict, length (2 bytes) and a text: its
// software's version, or why it refuses. Numbers are little endian. Both sides log a refusal.
const (
	magic           = "TRIVETP\n"
	protocolVersion = 1
	helloBytes      = 25 // without the version text
	maxHelloText    = 1024
)

// The streams of a pair of members.
const (
	streamSmall    = 1 // everything but appends; calls
	streamAppends  = 2 // appends and forwarded proposals, in order
	streamSnapshot = 3 // one checkpoint
	streamAsk      = 4 // one call of somebody who is no member, or does not know it yet (ask.go)
)

// The verdicts of an acceptor.
const (
	verdictWelcome = 0
	verdictRefused = 1
	verdictRemoved = 2
)

// RefusedError is a peer's answer to a connection that it does not want.
type RefusedError struct {
	Reason  string
	Removed bool // from the cluster
}

func (e *RefusedError) Error() string { return "refused by the peer: " + e.Reason }

type hello struct {
	cluster, from, to uint64
	stream            byte
	version           string
	addrs             []string
}

func (h hello) encode() []byte {
	b := make([]byte, 0, 64)
	b = append(b, magic...)
	b = append(b, protocolVersion)
	text := h.version
	for i, mark := 0, "\x00"; i < len(h.addrs) && len(text)+1+len(h.addrs[i]) <= maxHelloText; i, mark = i+1, "," {
		text += mark + h.addrs[i]
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(helloBytes+len(text)))
	for _, id := range [...]uint64{h.cluster, h.from, h.to} {
		b = binary.LittleEndian.AppendUint64(b, id)
	}
	b = append(b, h.stream)
	return append(b, text...)
}

// errStranger means that whoever dialled does not speak this protocol at all.
var errStranger = errors.New("not a Trivet peer")

// beginsTLS tells a TLS record that holds a handshake.
func beginsTLS(head []byte) bool { return len(head) > 1 && head[0] == 0x16 && head[1] == 3 }

// readHello reads the dialler's hello. An error of protocol version comes back as a text for the dialler.
func readHello(r io.Reader) (h hello, refusal string, err error) {
	head := make([]byte, len(magic)+3)
	if _, err := io.ReadFull(r, head[:len(magic)]); err != nil {
		return hello{}, "", err
	}
	if beginsTLS(head) {
		return hello{}, "", fmt.Errorf("%w: it began with TLS, and this port is without; give all members peer URLs with the same scheme", errStranger)
	}
	if string(head[:len(magic)]) != magic {
		return hello{}, "", fmt.Errorf("%w: it began with %q", errStranger, head[:len(magic)])
	}
	if _, err := io.ReadFull(r, head[len(magic):]); err != nil {
		return hello{}, "", noEOF(err)
	}
	if v := head[len(magic)]; v != protocolVersion {
		return hello{}, fmt.Sprintf("it speaks version %d of the peer protocol, this member version %d", v, protocolVersion), nil
	}
	n := int(binary.LittleEndian.Uint16(head[len(magic)+1:]))
	if n < helloBytes || n > helloBytes+maxHelloText {
		return hello{}, "", fmt.Errorf("%w: a hello of %d bytes", ErrMalformed, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return hello{}, "", noEOF(err)
	}
	version, addrs, _ := strings.Cut(string(b[helloBytes:]), "\x00")
	h = hello{
		cluster: binary.LittleEndian.Uint64(b),
		from:    binary.LittleEndian.Uint64(b[8:]),
		to:      binary.LittleEndian.Uint64(b[16:]),
		stream:  b[24],
		version: printable(version),
	}
	if addrs != "" {
		h.addrs = strings.Split(printable(addrs), ",")
	}
	return h, "", nil
}

// printable keeps a stranger's text from writing into the log what it likes.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

func encodeVerdict(verdict byte, text string) []byte {
	text = text[:min(len(text), maxHelloText)]
	b := append([]byte(magic), protocolVersion, verdict)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}

func readVerdict(r io.Reader) (version string, err error) {
	head := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", fmt.Errorf("waiting for the peer's greeting: %w", noEOF(err))
	}
	if string(head[:len(magic)]) != magic {
		return "", fmt.Errorf("what listens at the peer's address is %w: it began with %q", errStranger, head[:len(magic)])
	}
	b := make([]byte, min(int(binary.LittleEndian.Uint16(head[len(magic)+2:])), maxHelloText))
	if _, err := io.ReadFull(r, b); err != nil {
		return "", noEOF(err)
	}
	if verdict := head[len(magic)+1]; verdict != verdictWelcome {
		return "", &RefusedError{Reason: printable(string(b)), Removed: verdict == verdictRemoved}
	}
	return printable(string(b)), nil
}

// greet is the dialler's half of the handshake.
func (c *Config) greet(conn net.Conn, to uint64, stream byte, addrs []string) (version string, err error) {
	if err := conn.SetDeadline(time.Now().Add(c.HandshakeTimeout)); err != nil {
		return "", err
	}
	h := hello{cluster: c.ClusterID, from: c.ID, to: to, stream: stream, version: c.Version, addrs: addrs}
	if _, err := conn.Write(h.encode()); err != nil {
		return "", err
	}
	if version, err = readVerdict(conn); err != nil {
		return "", err
	}
	return version, conn.SetDeadline(time.Time{})
}

// welcome is the acceptor's half. It answers strangers and those it refuses before it returns an error.
func (c *Config) welcome(conn net.Conn, verdictOn func(hello) (verdict byte, refusal string)) (hello, error) {
	if err := conn.SetDeadline(time.Now().Add(c.HandshakeTimeout)); err != nil {
		return hello{}, err
	}
	h, refusal, err := readHello(conn)
	if errors.Is(err, errStranger) {
		_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n" +
			"This port is for the other members of a Trivet cluster. Clients use the client URLs.\n"))
	}
	if err != nil {
		return hello{}, err
	}
	verdict := byte(verdictRefused)
	if refusal == "" {
		verdict, refusal = c.judge(h, verdictOn)
	}
	text := c.Version
	if refusal != "" {
		text = refusal
	}
	if _, err := conn.Write(encodeVerdict(verdict, text)); err != nil {
		return hello{}, err
	}
	if refusal != "" {
		return hello{}, fmt.Errorf("refused a connection of member %x (version %q): %s", h.from, h.version, refusal)
	}
	return h, conn.SetDeadline(time.Time{})
}

func (c *Config) judge(h hello, verdictOn func(hello) (byte, string)) (verdict byte, refusal string) {
	if h.stream == streamAsk {
		return verdictWelcome, ""
	}
	if refusal := c.refuse(h); refusal != "" {
		return verdictRefused, refusal
	}
	return verdictOn(h)
}

func (c *Config) refuse(h hello) string {
	switch {
	case h.cluster != c.ClusterID:
		return fmt.Sprintf("cluster ID mismatch: it belongs to cluster %x, this member to cluster %x", h.cluster, c.ClusterID)
	case h.to != c.ID:
		return fmt.Sprintf("it looks for member %x, but this address is member %x's: check the peer URLs of both", h.to, c.ID)
	case h.from == c.ID:
		return fmt.Sprintf("it says that it is member %x, which is this member: two members share one data directory's identity", h.from)
	case h.stream != streamSmall && h.stream != streamAppends && h.stream != streamSnapshot:
		return fmt.Sprintf("it asks for a stream of kind %d, which this version does not know", h.stream)
	}
	return ""
}
