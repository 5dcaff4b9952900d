package transport

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
)

// A frame is its payload's length (4 bytes), its kind (1 byte), the CRC-32C of kind and payload (4 bytes) and the
// payload. Numbers are little endian.
const frameHeader = 9

// The kinds of frame.
const (
	frameMessages     = 1 // raft messages back to back
	framePing         = 2 // 8 bytes that come back in a pong
	framePong         = 3 //
	frameCall         = 4 // id (8 bytes), kind (1 byte), body
	frameAnswer       = 5 // id (8 bytes), 0 and the body or 1 and an error's text
	frameSnapshot     = 6 // a MsgSnap and the list of files
	frameSnapshotData = 7 // the next bytes of the files
	frameSnapshotFile = 8 // CRC-32C of the file that ends here (4 bytes)
	frameSnapshotDone = 9 // 0, or 1 and an error's text
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// begin opens a frame in b and returns where it began.
func (b *buffer) begin(kind byte) (start int) {
	start = len(b.arena)
	b.arena = append(b.arena, make([]byte, frameHeader)...)
	b.arena[start+4] = kind
	return start
}

// end closes the frame: it fills in length and checksum.
func (b *buffer) end(start int) {
	n := 0
	crc := crc32.Update(0, castagnoli, b.arena[start+4:start+5])
	b.each(start+frameHeader, func(p []byte) {
		n += len(p)
		crc = crc32.Update(crc, castagnoli, p)
	})
	binary.LittleEndian.PutUint32(b.arena[start:], uint32(n))
	binary.LittleEndian.PutUint32(b.arena[start+5:], crc)
}

// writeTo writes everything in as few system calls as there can be.
func (b *buffer) writeTo(w net.Conn) error {
	if len(b.holes) == 0 {
		_, err := w.Write(b.arena)
		return err
	}
	switch w.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return b.join(w)
	}
	bufs := make(net.Buffers, 0, 2*len(b.holes)+1)
	b.each(0, func(p []byte) {
		if len(p) > 0 {
			bufs = append(bufs, p)
		}
	})
	_, err := bufs.WriteTo(w)
	return err
}

// joinBytes is about what join writes at once.
const joinBytes = 64 << 10

// join writes to a connection that takes one piece at a time, such as TLS, which would make a record and a system call of
// each. Small pieces are copied together.
func (b *buffer) join(w io.Writer) (err error) {
	var out []byte
	flush := func() {
		if err == nil && len(out) > 0 {
			_, err = w.Write(out)
		}
		out = out[:0]
	}
	b.each(0, func(p []byte) {
		switch {
		case err != nil:
		case len(p) >= joinBytes/2:
			flush()
			if err == nil {
				_, err = w.Write(p)
			}
		default:
			if out == nil {
				out = make([]byte, 0, joinBytes)
			}
			if len(out)+len(p) > joinBytes {
				flush()
			}
			out = append(out, p...)
		}
	})
	flush()
	return err
}

// readFrame reads one frame; the payload is the caller's.
func readFrame(r *bufio.Reader, max int) (kind byte, payload []byte, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.LittleEndian.Uint32(h[:]))
	if n < 0 || n > max {
		return 0, nil, fmt.Errorf("%w: a frame of %d bytes where at most %d are taken", ErrMalformed, n, max)
	}
	if payload, err = readPayload(r, n); err != nil {
		return 0, nil, fmt.Errorf("in a frame of %d bytes: %w", n, err)
	}
	crc := crc32.Update(crc32.Update(0, castagnoli, h[4:5]), castagnoli, payload)
	if want := binary.LittleEndian.Uint32(h[5:]); crc != want {
		return 0, nil, fmt.Errorf("%w: a frame of %d bytes has checksum %08x where %08x was announced", ErrMalformed, n, crc, want)
	}
	return h[4], payload, nil
}

// readPayload takes memory only as bytes arrive: an announced length costs its sender something.
func readPayload(r *bufio.Reader, n int) ([]byte, error) {
	const step = 4 << 20
	if n <= step {
		p := make([]byte, n)
		_, err := io.ReadFull(r, p)
		return p, noEOF(err)
	}
	p := make([]byte, 0, step)
	for len(p) < n {
		have, more := len(p), min(n-len(p), max(step, len(p)))
		p = append(p, make([]byte, more)...)
		if _, err := io.ReadFull(r, p[have:]); err != nil {
			return nil, noEOF(err)
		}
	}
	return p, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
