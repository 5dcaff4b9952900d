package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"time"

	"github.com/trivet-kv/trivet/internal/wire"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A checkpoint travels over a connection of its own: a frame with the MsgSnap (length, protobuf) and the list of files
// (a count, then name and size of each), then for each file frames of data and one with the file's CRC-32C. The receiver
// answers with one frame when it has everything durably and its handler took the message, or with why not.

// SendSnapshot streams the files of dir and m over a connection of their own. Done is called exactly once.
func (t *Transport) SendSnapshot(m *raftpb.Message, dir string, done func(error)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[m.GetTo()]
	var err error
	switch {
	case t.closed || !t.serving:
		err = ErrClosed
	case p == nil:
		err = fmt.Errorf("%w: %x", ErrUnknownPeer, m.GetTo())
	}
	if err != nil {
		go done(err) // at once; done must not be called from within
		return
	}
	t.goLocked(func() {
		start := time.Now()
		t.c.Observer.SnapshotSending(p.id)
		bytes, err := p.sendSnapshot(m, dir)
		took := time.Since(start)
		t.c.Observer.SnapshotSent(p.id, bytes, took, err)
		if err != nil {
			t.c.Logger.Warn("could not send a checkpoint", "peer", hex(p.id), "index", m.GetSnapshot().GetMetadata().GetIndex(), "err", err)
		} else {
			t.c.Logger.Info("sent a checkpoint", "peer", hex(p.id), "index", m.GetSnapshot().GetMetadata().GetIndex(), "bytes", bytes, "took", took)
		}
		done(err)
	})
}

func (p *peer) sendSnapshot(m *raftpb.Message, dir string) (sent int64, err error) {
	files, err := listFiles(p.t.c.FS, dir, "")
	if err != nil {
		return 0, err
	}
	announcement, err := encodeAnnouncement(m, files)
	if err != nil {
		return 0, err
	}
	conn, _, err := p.t.connect(p.ctx, p, streamSnapshot)
	if err != nil {
		return 0, err
	}
	defer p.t.release(conn)
	stop := context.AfterFunc(p.ctx, func() { _ = conn.Close() })
	defer stop()

	// The receiver may refuse while files still flow: its verdict is awaited from the beginning.
	verdict := make(chan error, 1)
	go func() { verdict <- readSnapshotVerdict(conn) }() // ends with the connection, which is closed below
	w := &snapshotWriter{conn: conn, stall: p.t.c.StallTimeout}
	err = w.frame(frameSnapshot, announcement)
	for i := 0; err == nil && i < len(files); i++ {
		var crc uint32
		err = readFile(p.t.c.FS, p.t.c.FS.PathJoin(dir, files[i].name), files[i].size, func(piece []byte) error {
			crc = crc32.Update(crc, castagnoli, piece)
			sent += int64(len(piece))
			p.t.c.Observer.Sent(p.id, len(piece))
			return w.frame(frameSnapshotData, piece)
		})
		if err == nil {
			err = w.frame(frameSnapshotFile, binary.LittleEndian.AppendUint32(nil, crc))
		}
	}
	// What is left is the receiver's last fsync and its handler; or, after an error, its word on why it hung up.
	patience := 10 * p.t.c.StallTimeout
	if err != nil {
		patience = time.Second
	}
	timer := time.AfterFunc(patience, func() { _ = conn.Close() })
	defer timer.Stop()
	v := <-verdict
	if _, told := errors.AsType[*RemoteError](v); err == nil || told {
		err = v
	}
	return sent, err
}

type snapshotWriter struct {
	conn  net.Conn
	stall time.Duration
	out   buffer
}

func (w *snapshotWriter) frame(kind byte, payload []byte) error {
	w.out.reset()
	start := w.out.begin(kind)
	w.out.holes = append(w.out.holes, hole{len(w.out.arena), payload})
	w.out.loose += len(payload)
	w.out.end(start)
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.stall)); err != nil {
		return err
	}
	return w.out.writeTo(w.conn)
}

func readSnapshotVerdict(conn net.Conn) error {
	kind, payload, err := readFrame(bufio.NewReader(conn), 64<<10)
	switch {
	case err != nil:
		return noEOF(err)
	case kind != frameSnapshotDone || len(payload) == 0:
		return fmt.Errorf("%w: a frame of kind %d after a checkpoint", ErrMalformed, kind)
	case payload[0] != 0:
		return &RemoteError{string(payload[1:])}
	}
	return nil
}

func encodeAnnouncement(m *raftpb.Message, files []file) ([]byte, error) {
	raw, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	b := binary.AppendUvarint(nil, uint64(len(raw)))
	b = append(b, raw...)
	b = binary.AppendUvarint(b, uint64(len(files)))
	for _, f := range files {
		b = binary.AppendUvarint(b, uint64(len(f.name)))
		b = append(b, f.name...)
		b = binary.AppendUvarint(b, uint64(f.size))
	}
	return b, nil
}

func decodeAnnouncement(b []byte, sender, receiver uint64) (*raftpb.Message, []file, error) {
	c := wire.NewReader(b)
	m, err := decodeSnapshotMessage(c.Bytes(), sender, receiver)
	if err != nil {
		return nil, nil, err
	}
	n := c.Uvarint()
	if n > maxFiles {
		return nil, nil, fmt.Errorf("%w: a checkpoint of %d files", ErrMalformed, n)
	}
	files := make([]file, 0, min(n, 1024))
	for range n {
		files = append(files, file{string(c.Bytes()), int64(c.Uvarint())})
		if c.Failed() {
			return nil, nil, fmt.Errorf("%w: a cut list of files", ErrMalformed)
		}
	}
	return m, files, checkFiles(files)
}

// receiveSnapshot takes one checkpoint and answers.
func (c *inConn) receiveSnapshot() {
	start := time.Now()
	c.t.c.Observer.SnapshotReceiving(c.from)
	m, bytes, err := c.takeSnapshot(bufio.NewReaderSize(c.conn, 256<<10))
	took := time.Since(start)
	c.t.c.Observer.SnapshotReceived(c.from, bytes, took, err)
	if err == nil {
		c.t.c.Logger.Info("received a checkpoint", "peer", hex(c.from), "index", m.GetSnapshot().GetMetadata().GetIndex(), "bytes", bytes, "took", took)
		_ = c.write(frameSnapshotDone, []byte{0})
		return
	}
	c.t.c.Logger.Warn("could not receive a checkpoint", "peer", hex(c.from), "bytes", bytes, "err", err)
	text := err.Error()
	_ = c.write(frameSnapshotDone, []byte{1}, []byte(text[:min(len(text), 32<<10)]))
}

func (c *inConn) takeSnapshot(r *bufio.Reader) (m *raftpb.Message, received int64, err error) {
	next := func(want byte) ([]byte, error) {
		if err := c.conn.SetReadDeadline(time.Now().Add(c.t.c.StallTimeout)); err != nil {
			return nil, err
		}
		kind, payload, err := readFrame(r, 16<<20)
		if err == nil && kind != want {
			err = fmt.Errorf("%w: a frame of kind %d where one of kind %d was due", ErrMalformed, kind, want)
		}
		c.t.c.Observer.Received(c.from, frameHeader+len(payload))
		return payload, err
	}
	announcement, err := next(frameSnapshot)
	if err != nil {
		return nil, 0, err
	}
	m, files, err := decodeAnnouncement(announcement, c.from, c.t.c.ID)
	if err != nil {
		return nil, 0, err
	}
	meta := m.GetSnapshot().GetMetadata()
	s, err := c.t.stage(c.from, meta.GetTerm(), meta.GetIndex())
	if err != nil {
		return m, 0, err
	}
	defer c.t.unstage()
	defer func() {
		if err != nil {
			s.abort()
		}
	}()
	var syncing time.Duration
	for _, f := range files {
		if err := s.create(f.name); err != nil {
			return m, received, err
		}
		for left := f.size; left > 0; {
			piece, err := next(frameSnapshotData)
			if err != nil {
				return m, received, err
			}
			if left -= int64(len(piece)); left < 0 || len(piece) == 0 {
				return m, received, fmt.Errorf("%w: file %s is not as long as announced", ErrMalformed, f.name)
			}
			received += int64(len(piece))
			if err := s.write(piece); err != nil {
				return m, received, err
			}
		}
		sum, err := next(frameSnapshotFile)
		if err != nil {
			return m, received, err
		}
		if len(sum) != 4 || binary.LittleEndian.Uint32(sum) != s.crc {
			return m, received, fmt.Errorf("%w: file %s arrived with checksum %08x", ErrMalformed, f.name, s.crc)
		}
		begin := time.Now()
		if err := s.finish(); err != nil {
			return m, received, err
		}
		syncing += time.Since(begin)
	}
	begin := time.Now()
	dir, err := s.commit(files)
	if err != nil {
		return m, received, err
	}
	c.t.c.Observer.SnapshotSynced(syncing + time.Since(begin))
	fs := c.t.c.FS
	return m, received, c.t.h.ReceiveSnapshot(m, dir, func() { _ = fs.RemoveAll(dir) })
}

// stage opens a place for a checkpoint. One is received at a time: two would compete for the disk, and only the newer
// one would be of use.
func (t *Transport) stage(from, term, index uint64) (*staging, error) {
	t.mu.Lock()
	if t.staging {
		t.mu.Unlock()
		return nil, errors.New("another checkpoint is being received")
	}
	t.staging = true
	t.stagings++
	name := fmt.Sprintf("%x-%d-%d-%d", from, term, index, t.stagings)
	t.mu.Unlock()
	s, err := newStaging(t.c.FS, t.c.Incoming, name)
	if err != nil {
		t.unstage()
	}
	return s, err
}

func (t *Transport) unstage() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.staging = false
}
