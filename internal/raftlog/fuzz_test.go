package raftlog

import (
	"bytes"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// FuzzSegment gives Open and Read arbitrary bytes as a segment: an error or a log, never a panic, never a huge allocation.
// fix makes the fuzzer's changes valid, so that it gets behind the checksums.
func FuzzSegment(f *testing.F) {
	fs := vfs.NewMem()
	sampleLog(f, fs, true)
	for _, name := range liveNames(f, fs) {
		b := readFile(f, fs, "log/"+name)
		f.Add(b, false)
		f.Add(append(b[:96:96], b[segmentHeaderBytes:]...), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix {
			b = fixSegment(b)
		}
		mem := vfs.NewMem()
		if err := mem.MkdirAll("log", 0o700); err != nil {
			t.Fatal(err)
		}
		file, err := mem.OpenReadWrite("log/0000000000000001.log", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = file.WriteAt(b, 0) // Write may change b
		_ = file.Close()
		rerr := Read(mem, "log", func(Record) error { return nil })
		if after := readFile(t, mem, "log/0000000000000001.log"); !bytes.Equal(after, b) {
			t.Fatal("read changed the file")
		}
		l, err := Open(Options{FS: mem, Dir: "log", SegmentBytes: minSegmentBytes})
		var damage *DamageError
		var version *VersionError
		if err != nil {
			if !errors.As(err, &damage) && !errors.As(err, &version) {
				t.Fatal(err)
			}
			return
		}
		if rerr != nil {
			t.Fatalf("opened, but reading gave %v", rerr)
		}
		first, _ := l.FirstIndex()
		last, _ := l.LastIndex()
		if first <= last {
			if es, err := l.Entries(first, last+1, 1<<40); err != nil || uint64(len(es)) != last+1-first {
				t.Fatalf("%d entries of [%d, %d]: %v", len(es), first, last, err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// fixSegment takes fuzzed bytes as a header and a row of records and makes all checksums right.
func fixSegment(b []byte) []byte {
	out := make([]byte, 16<<10)
	copy(out, b[:min(len(b), headerUsedBytes)])
	copy(out, segmentHeader{seal: seal{seq: 1, salt: 9}, size: 16 << 10, base: Position{5, 1}}.encode())
	n := min(len(b), 96)
	copy(out[segmentHeaderBytes:], b[n:])
	s := seal{seq: 1, salt: 9}
	for off := int64(segmentHeaderBytes); off+recordHeaderBytes <= int64(len(out)); {
		h := out[off:]
		length := int64(h[8]) | int64(h[9]&3)<<8
		if off+recordHeaderBytes+length > int64(len(out)) {
			break
		}
		h[9], h[10], h[11] = h[9]&3, 0, 0
		h[14], h[15] = 0, 0
		e := encoder{seal: s, base: off, durable: int64(h[12]) | int64(h[13])<<8}
		start := e.begin()
		e.buf = append(e.buf, h[recordHeaderBytes:recordHeaderBytes+length]...)
		e.finish(start, Kind(h[20]), h[21])
		copy(out[off:], e.buf)
		off += int64(len(e.buf))
	}
	return out
}

// FuzzRecord decodes an arbitrary payload and, if that succeeds, encodes it again and decodes the same.
func FuzzRecord(f *testing.F) {
	f.Add(uint8(1), []byte{0, 1, 2, 'x'})
	f.Add(uint8(2), []byte{1, 2, 3})
	f.Add(uint8(3), []byte{1, 0x80, 0x80, 1})
	f.Add(uint8(5), []byte{})
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		r := Record{Kind: Kind(kind)}
		if decodePayload(&r, payload) != nil {
			return
		}
		s := seal{1, 2}
		e := encoder{seal: s, base: 4096}
		switch r.Kind {
		case KindEntry:
			e.entry(&raftpb.Entry{Index: &r.Index, Term: &r.Term, Type: &r.Type, Data: r.Data}, 0)
		case KindHardState:
			e.hardState(r.HardState, 0)
		case KindTruncate, KindReset:
			e.position(r.Position, r.Kind, 0)
		case KindClosed:
			e.closed()
		}
		h, ok := s.decodeHeader(e.buf, 4096)
		got := e.buf[recordHeaderBytes:][:h.length]
		if !ok || h.kind != r.Kind || h.bytes() != int64(len(e.buf)) || crc32.Checksum(got, castagnoli) != h.payloadCRC {
			t.Fatalf("%+v does not decode", h)
		}
		again := Record{Kind: r.Kind}
		if err := decodePayload(&again, got); err != nil || again.Index != r.Index || again.Term != r.Term ||
			again.Type != r.Type || !bytes.Equal(again.Data, r.Data) || again.Position != r.Position ||
			!sameHardState(again.HardState, r.HardState) {
			t.Fatalf("%+v became %+v: %v", r, again, err)
		}
	})
}
