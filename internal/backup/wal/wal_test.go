package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// maker writes a log as etcd does.
type maker struct {
	t     *testing.T
	dir   string
	crc   uint32
	files []*bytes.Buffer
}

func (m *maker) put(kind uint64, data []byte) {
	if kind != kindCRC {
		m.crc = crc32.Update(m.crc, crc32.MakeTable(crc32.Castagnoli), data)
	}
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), kind)
	b = protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.VarintType), uint64(m.crc))
	if data != nil {
		b = protowire.AppendBytes(protowire.AppendTag(b, 3, protowire.BytesType), data)
	}
	length := uint64(len(b))
	if pad := (8 - len(b)%8) % 8; pad > 0 {
		length |= uint64(0x80|pad) << 56
		b = append(b, make([]byte, pad)...)
	}
	out := m.files[len(m.files)-1]
	out.Write(binary.LittleEndian.AppendUint64(nil, length))
	out.Write(b)
}

func (m *maker) cut() {
	m.files = append(m.files, &bytes.Buffer{})
	m.put(kindCRC, nil)
	m.put(kindMetadata, []byte("meta"))
}

func (m *maker) message(kind uint64, v proto.Message) {
	b, err := proto.Marshal(v)
	if err != nil {
		m.t.Fatal(err)
	}
	m.put(kind, b)
}

func (m *maker) entry(index, term uint64) {
	m.message(kindEntry, &raftpb.Entry{Index: &index, Term: &term, Data: bytes.Repeat([]byte(fmt.Sprintf("%d of %d.", index, term)), 20)})
}

func (m *maker) commit(index uint64) { m.message(kindState, &raftpb.HardState{Commit: &index}) }

// write writes the files, with the zeros behind the last that etcd allocates.
func (m *maker) write() {
	for i, f := range m.files {
		b := f.Bytes()
		if i == len(m.files)-1 {
			b = append(bytes.Clone(b), make([]byte, 4096)...)
		}
		if err := os.WriteFile(m.path(i), b, 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *maker) path(i int) string {
	return filepath.Join(m.dir, fmt.Sprintf("%016x-%016x.wal", i+3, i*10))
}

func made(t *testing.T) *maker {
	m := &maker{t: t, dir: t.TempDir()}
	m.cut()
	for i := range uint64(10) {
		m.entry(i+1, 1)
	}
	m.commit(8)
	m.entry(9, 2) // a new leader replaces what was not committed
	m.cut()
	m.entry(10, 2)
	m.entry(11, 2)
	m.put(kindSnapshot, []byte{8, 7, 16, 1})
	m.commit(10)
	m.entry(12, 2)
	m.write()
	return m
}

func TestRead(t *testing.T) {
	m := made(t)
	for after := range uint64(14) {
		log, err := Read(m.dir, after)
		if err != nil {
			t.Fatal(err)
		}
		want := uint64(0)
		if after < 12 {
			want = 12 - after
		}
		if uint64(len(log.Entries)) != want || log.Commit != 10 || log.Snapshot != 7 {
			t.Fatalf("after %d: %d entries, commit %d, snapshot %d", after, len(log.Entries), log.Commit, log.Snapshot)
		}
		for i, e := range log.Entries {
			term := uint64(1)
			if e.Index >= 9 {
				term = 2
			}
			if e.Index != after+uint64(i)+1 || e.Term != term || e.Conf || !bytes.HasPrefix(e.Data, fmt.Appendf(nil, "%d of %d.", e.Index, term)) {
				t.Fatalf("after %d: entry %+v", after, e)
			}
		}
	}
}

// TestTornAndDamaged: what a crash tore off the end is cut; a changed byte, a missing file or a missing beginning is told.
func TestTornAndDamaged(t *testing.T) {
	m := made(t)
	whole, err := os.ReadFile(m.path(1))
	if err != nil {
		t.Fatal(err)
	}
	end := m.files[1].Len()
	for n := 0; n <= end; n += 8 {
		torn := append(bytes.Clone(whole[:n]), make([]byte, len(whole)-n)...)
		if err := os.WriteFile(m.path(1), torn, 0o600); err != nil {
			t.Fatal(err)
		}
		log, err := Read(m.dir, 8)
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("torn at %d: %v", n, err)
		}
		if err == nil && len(log.Entries) > 4 || n == end && (err != nil || len(log.Entries) != 4) {
			t.Fatalf("torn at %d of %d: %d entries, %v", n, end, len(log.Entries), err)
		}
		if err := os.WriteFile(m.path(1), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(m.dir, 8); err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	m.write()
	first, err := os.ReadFile(m.path(0))
	if err != nil {
		t.Fatal(err)
	}
	for i := range first {
		changed := bytes.Clone(first)
		changed[i] ^= 1
		if err := os.WriteFile(m.path(0), changed, 0o600); err != nil {
			t.Fatal(err)
		}
		log, err := Read(m.dir, 0)
		// The kind of a record is not in its checksum; an entry that is none any more leaves a gap, which is told too.
		if err == nil && len(log.Entries) != 12 {
			t.Fatalf("byte %d changed: %d entries and no error", i, len(log.Entries))
		}
	}
	if err := os.Remove(m.path(0)); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(m.dir, 8); err == nil {
		t.Error("the log begins behind the state, and there is no error")
	}
	if _, err := Read(m.dir, 9); err != nil {
		t.Errorf("a log that was cut: %v", err)
	}
	if _, err := Read(t.TempDir(), 0); err == nil {
		t.Error("no log at all: no error")
	}
}

// TestChangedLength changes the length of each record of the last file so that it goes beyond the file: that is no torn end,
// behind which nothing would be missed.
func TestChangedLength(t *testing.T) {
	m := made(t)
	last := len(m.files) - 1
	whole, err := os.ReadFile(m.path(last))
	if err != nil {
		t.Fatal(err)
	}
	end := len(m.files[last].Bytes())
	for at := 0; at < end; {
		size := binary.LittleEndian.Uint64(whole[at:])
		for _, bit := range []int{20, 28, 40, 54} {
			changed := bytes.Clone(whole)
			changed[at+bit/8] ^= 1 << (bit % 8)
			if err := os.WriteFile(m.path(last), changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Read(m.dir, 0); !errors.Is(err, ErrDamaged) && !(bit < 30 && whole[at+9] == kindCRC) {
				t.Errorf("bit %d of the length at %d: %v", bit, at, err)
			}
		}
		at += 8 + int(size&(1<<56-1))
		if size>>63 == 1 {
			at += int(size >> 56 & 7)
		}
	}
}
