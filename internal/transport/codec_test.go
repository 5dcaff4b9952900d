package transport

import (
	"bufio"
	"bytes"
	"math/rand/v2"
	"net"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func maybe(r *rand.Rand) *uint64 {
	switch r.IntN(4) {
	case 0:
		return nil
	case 1:
		return new(r.Uint64())
	}
	return new(r.Uint64N(1000) + 1)
}

func randomData(r *rand.Rand) []byte {
	sizes := []int{0, 1, 100, inlineBytes - 1, inlineBytes, 3 * inlineBytes}
	b := make([]byte, sizes[r.IntN(len(sizes))])
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	if len(b) == 0 {
		return nil
	}
	return b
}

var sendableTypes = func() (ts []raftpb.MessageType) {
	for n := range raftpb.MessageType_name {
		if t := raftpb.MessageType(n); sendable(t) {
			ts = append(ts, t)
		}
	}
	return ts
}()

func randomMessage(r *rand.Rand) *raftpb.Message {
	m := &raftpb.Message{
		Type: sendableTypes[r.IntN(len(sendableTypes))].Enum(), To: new(uint64(2)), From: new(uint64(1)),
		Term: maybe(r), LogTerm: maybe(r), Index: maybe(r), Commit: maybe(r), Vote: maybe(r), RejectHint: maybe(r),
		Context: randomData(r),
	}
	if r.IntN(4) == 0 {
		m.Reject = new(true)
	}
	if r.IntN(5) == 0 {
		m.From = new(uint64(9))
	}
	index, term := r.Uint64N(100), r.Uint64N(5)
	for range r.IntN(5) {
		index += max(1, r.Uint64N(10)/8)
		term += r.Uint64N(10) / 9
		e := &raftpb.Entry{Type: raftpb.EntryType(r.IntN(3)).Enum(), Data: randomData(r)}
		if index != 0 && m.GetType() != raftpb.MsgProp {
			e.Index = new(index)
			if term != 0 {
				e.Term = new(term)
			}
		}
		m.Entries = append(m.Entries, e)
	}
	return m
}

// TestRoundTrip: what is encoded is decoded, through frames with several messages, and nothing is left over.
func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var sent []*raftpb.Message
		var b buffer
		for range 1 + r.IntN(2) { // two frames in one buffer
			start := b.begin(frameMessages)
			for range 1 + r.IntN(5) {
				m := randomMessage(r)
				sent = append(sent, m)
				appendMessage(&b, m, 1)
			}
			b.end(start)
		}
		var flat bytes.Buffer
		b.each(0, func(p []byte) { flat.Write(p) })
		if flat.Len() != b.len() {
			t.Fatalf("%d bytes came out of a buffer of %d", flat.Len(), b.len())
		}
		var got []*raftpb.Message
		in := bufio.NewReader(&flat)
		for flat.Len() > 0 || in.Buffered() > 0 {
			kind, payload, err := readFrame(in, 1<<20)
			if err != nil || kind != frameMessages {
				t.Fatalf("frame of kind %d: %v", kind, err)
			}
			if err := decodeMessages(payload, 1, 2, func(m *raftpb.Message) { got = append(got, m) }); err != nil {
				t.Fatal(err)
			}
		}
		if len(got) != len(sent) {
			t.Fatalf("%d messages of %d arrived", len(got), len(sent))
		}
		for i, m := range sent {
			zeroToNil(m)
			if !proto.Equal(m, got[i]) {
				t.Fatalf("sent %v\n got %v", m, got[i])
			}
		}
	}
}

// zeroToNil removes fields that are set to zero: they mean the same.
func zeroToNil(m *raftpb.Message) {
	for _, f := range []**uint64{&m.Term, &m.LogTerm, &m.Index, &m.Commit, &m.Vote, &m.RejectHint} {
		if *f != nil && **f == 0 {
			*f = nil
		}
	}
}

// TestFrameDamage: a frame with any byte changed is refused.
func TestFrameDamage(t *testing.T) {
	var b buffer
	start := b.begin(frameMessages)
	appendMessage(&b, &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(uint64(1)), Entries: []*raftpb.Entry{{Data: []byte("abc")}}}, 1)
	b.end(start)
	for i := range b.arena {
		for _, flip := range []byte{1, 0x80} {
			damaged := bytes.Clone(b.arena)
			damaged[i] ^= flip
			if _, _, err := readFrame(bufio.NewReader(bytes.NewReader(damaged)), 1<<20); err == nil {
				t.Errorf("a frame with byte %d changed was taken", i)
			}
		}
	}
}

// TestWriteTo: data that is not copied arrives in its place.
func TestWriteTo(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 3*inlineBytes)
	m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Entries: []*raftpb.Entry{
		{Type: raftpb.EntryNormal.Enum(), Index: new(uint64(7)), Data: big}, {Type: raftpb.EntryNormal.Enum(), Index: new(uint64(8)), Data: []byte("small")},
	}}
	var b buffer
	start := b.begin(frameMessages)
	appendMessage(&b, m, 1)
	b.end(start)
	if len(b.holes) != 1 || &b.holes[0].bytes[0] != &big[0] {
		t.Fatalf("large data was copied: %d holes", len(b.holes))
	}
	near, far := net.Pipe()
	go func() {
		_ = b.writeTo(near)
		_ = near.Close()
	}()
	_, payload, err := readFrame(bufio.NewReader(far), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := decodeMessages(payload, 1, 2, func(got *raftpb.Message) {
		if !proto.Equal(m, got) {
			t.Errorf("got %v", got)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func FuzzFrames(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		var b buffer
		start := b.begin(frameMessages)
		appendMessage(&b, randomMessage(r), 1)
		b.end(start)
		var flat []byte
		b.each(0, func(p []byte) { flat = append(flat, p...) })
		f.Add(flat)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReader(bytes.NewReader(in))
		for {
			_, payload, err := readFrame(r, 1<<16)
			if err != nil {
				return
			}
			fuzzPayload(t, payload)
		}
	})
}

// FuzzMessages skips the checksum, which random bytes seldom pass.
func FuzzMessages(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		var b buffer
		appendMessage(&b, randomMessage(r), 1)
		var flat []byte
		b.each(0, func(p []byte) { flat = append(flat, p...) })
		f.Add(flat)
	}
	f.Fuzz(fuzzPayload)
}

// fuzzPayload: whatever can be decoded can be encoded again and decodes to the same.
func fuzzPayload(t *testing.T, payload []byte) {
	var ms []*raftpb.Message
	if decodeMessages(payload, 1, 2, func(m *raftpb.Message) { ms = append(ms, m) }) != nil {
		return
	}
	for _, m := range ms {
		again, err := copyMessage(m, 1, 2)
		if err != nil {
			t.Fatalf("%v: %v", m, err)
		}
		zeroToNil(m)
		zeroToNil(again)
		if !proto.Equal(m, again) {
			t.Fatalf("decoded %v, then %v", m, again)
		}
	}
}

func FuzzAnnouncement(f *testing.F) {
	m := &raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: new(uint64(1)), To: new(uint64(2)), Snapshot: &raftpb.Snapshot{
		Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(5)), Term: new(uint64(2)), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}}},
	}}
	b, err := encodeAnnouncement(m, []file{{"a", 1}, {"d/b", 0}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		m, files, err := decodeAnnouncement(in, 1, 2)
		if err == nil && (m.GetTo() != 2 || checkFiles(files) != nil) {
			t.Fatalf("took %v and %v", m, files)
		}
	})
}

func TestCheckFiles(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "/x", "a/../../x", "a//b", "a/", "a\x00", "c:x", `a\b`} {
		if checkFiles([]file{{name, 1}}) == nil {
			t.Errorf("a file named %q was taken", name)
		}
	}
	if checkFiles([]file{{"a", 1}, {"a", 2}}) == nil {
		t.Error("two files of one name were taken")
	}
	if err := checkFiles([]file{{"a", 1}, {"b/c.sst", 0}, {"...", 1}}); err != nil {
		t.Error(err)
	}
}

func BenchmarkAppendDecode(b *testing.B) {
	m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(3)),
		Index: new(uint64(1000)), LogTerm: new(uint64(3)), Commit: new(uint64(990))}
	for i := range uint64(4) {
		m.Entries = append(m.Entries, &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: new(uint64(3)), Index: new(1001 + i), Data: make([]byte, 300)})
	}
	var out buffer
	b.ReportAllocs()
	for b.Loop() {
		out.reset()
		start := out.begin(frameMessages)
		appendMessage(&out, m, 1)
		out.end(start)
		if err := decodeMessages(out.arena[frameHeader:], 1, 2, func(*raftpb.Message) {}); err != nil {
			b.Fatal(err)
		}
	}
}
