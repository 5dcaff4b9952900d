package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// sampleLog makes a log of several segments with every kind of record, cleanly closed or not, and gives its model.
func sampleLog(t testing.TB, fs vfs.FS, clean bool) model {
	t.Helper()
	l := mustOpen(t, Options{FS: fs, Dir: "log", SegmentBytes: minSegmentBytes})
	m := model{}
	write := func(w Write) {
		w.Sync = true
		appendWait(t, l, w)
		m = m.after(w)
	}
	write(Write{Reset: &Position{5, 1}, HardState: newHardState(1, 2, 5)})
	for i := range uint64(8) {
		write(Write{Entries: entriesFrom(6+i*2, 2, 500, 2), HardState: newHardState(2, 1, 5+i*2)})
	}
	write(Write{Entries: entriesFrom(15, 3, 500, 3)})
	for i := range uint64(4) {
		write(Write{Entries: entriesFrom(18+i*3, 3, 90, 3)})
	}
	closed := func() {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if clean {
		closed()
	} else {
		t.Cleanup(closed) // the test has copied the files by then
	}
	return m
}

// cloneWith copies the log's files to a new file system, one of them with other contents.
func cloneWith(t testing.TB, fs vfs.FS, name string, contents []byte) vfs.FS {
	t.Helper()
	out := vfs.NewMem()
	if err := out.MkdirAll("log", 0o700); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("log")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b := readFile(t, fs, "log/"+n)
		if n == name {
			b = contents
		}
		f, err := out.OpenReadWrite("log/"+n, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return out
}

func liveNames(t testing.TB, fs vfs.FS) []string {
	t.Helper()
	files, err := listDir(fs, "log")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, seq := range files.live {
		names = append(names, segmentName(seq, liveSuffix))
	}
	return names
}

// TestEveryFlippedByte flips bytes all over a cleanly closed log: Open either refuses, with file and offset, and changes
// nothing, or finds exactly what was there. It never loses or invents anything.
func TestEveryFlippedByte(t *testing.T) {
	fs := vfs.NewMem()
	m := sampleLog(t, fs, true)
	stride := 3
	if testing.Short() {
		stride = 7
	}
	refused, same := 0, 0
	for _, name := range liveNames(t, fs) {
		b := readFile(t, fs, "log/"+name)
		for i := 0; i < len(b); i += stride {
			if i >= headerUsedBytes && i < segmentHeaderBytes {
				continue
			}
			bad := bytes.Clone(b)
			bad[i] ^= 1 << (i % 8)
			broken := cloneWith(t, fs, name, bad)
			l, err := Open(Options{FS: broken, Dir: "log", SegmentBytes: minSegmentBytes})
			var damage *DamageError
			var version *VersionError
			switch {
			case err == nil:
				if d := diff(l, m, 0); d != "" {
					t.Fatalf("%s byte %d: opened, but %s", name, i, d)
				}
				_ = l.Close()
				same++
			case errors.As(err, &damage):
				if damage.File != "log/"+name || damage.Offset > int64(i) || int64(i)-damage.Offset > 600 {
					t.Fatalf("%s byte %d: %v", name, i, err)
				}
				refused++
			case errors.As(err, &version) && i >= 8 && i < 10: // the upper half of a version says that it is none
				refused++
			default:
				t.Fatalf("%s byte %d: %v", name, i, err)
			}
			if err != nil && !bytes.Equal(readFile(t, broken, "log/"+name), bad) {
				t.Fatalf("%s byte %d: the refused log was changed", name, i)
			}
		}
	}
	t.Logf("%d flips refused, %d harmless", refused, same)
	if refused < 1000/stride {
		t.Errorf("only %d flips refused", refused)
	}
}

// TestVersionOrDamage: a header of another layout is that of a newer version only if it gives a version that there may ever be.
func TestVersionOrDamage(t *testing.T) {
	fs := vfs.NewMem()
	sampleLog(t, fs, true)
	name := liveNames(t, fs)[0]
	for at, newer := range []bool{8: true, 9: true, 10: false, 11: false} {
		if at < 8 {
			continue
		}
		b := bytes.Clone(readFile(t, fs, "log/"+name))
		b[at] ^= 0x40
		_, err := Open(Options{FS: cloneWith(t, fs, name, b), Dir: "log", SegmentBytes: minSegmentBytes})
		var damage *DamageError
		var version *VersionError
		if errors.As(err, &version) != newer || errors.As(err, &damage) == newer {
			t.Errorf("with byte %d changed: %v", at, err)
		}
	}
}

// TestTornOrDamaged flips bytes of a log that was not closed: what the last sync point covers is refused; the last group,
// which nothing proves to have been synced, is cut as a whole with a warning or silently, never in part.
func TestTornOrDamaged(t *testing.T) {
	fs := vfs.NewMem()
	m := sampleLog(t, fs, false)
	names := liveNames(t, fs)
	name := names[len(names)-1]
	b := readFile(t, fs, "log/"+name)
	var ends []int64 // of the writes in the last segment
	if err := Read(fs, "log", func(r Record) error {
		if r.File == "log/"+name && r.Kind != KindSegment && r.End {
			ends = append(ends, r.Offset+r.Bytes)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	last, before := ends[len(ends)-1], ends[len(ends)-2]
	for i := int64(segmentHeaderBytes); i < last; i += 3 {
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		var log bytes.Buffer
		l, err := Open(Options{FS: cloneWith(t, fs, name, bad), Dir: "log", SegmentBytes: minSegmentBytes,
			Logger: slog.New(slog.NewTextHandler(&log, nil))})
		var damage *DamageError
		if i < before {
			if err == nil { // padding
				if d := diff(l, m, 0); d != "" {
					t.Fatalf("byte %d: %s", i, d)
				}
				_ = l.Close()
			} else if !errors.As(err, &damage) {
				t.Fatalf("byte %d: %v", i, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("byte %d of the last group: %v", i, err)
		}
		if got, _ := l.LastIndex(); got != 26 && got != 29 {
			t.Fatalf("byte %d of the last group: last index is %d", i, got)
		} else if got == 26 && !strings.Contains(log.String(), "torn tail") {
			t.Fatalf("byte %d: no warning in %q", i, log.String())
		}
		_ = l.Close()
	}
}

// TestDamageText wants the file, the offset and the way out in the text.
func TestDamageText(t *testing.T) {
	fs := vfs.NewMem()
	sampleLog(t, fs, true)
	name := liveNames(t, fs)[0]
	b := readFile(t, fs, "log/"+name)
	b[5000] ^= 1
	_, err := Open(Options{FS: cloneWith(t, fs, name, b), Dir: "log", SegmentBytes: minSegmentBytes})
	for _, want := range []string{"log/" + name, "offset 4", "remove the member", "restore a backup"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

// TestMissingOrShortFiles takes files away or cuts them short.
func TestMissingOrShortFiles(t *testing.T) {
	fs := vfs.NewMem()
	m := sampleLog(t, fs, true)
	names := liveNames(t, fs)
	if len(names) < 3 {
		t.Fatalf("only %q", names)
	}
	gone := cloneWith(t, fs, "", nil)
	if err := gone.Remove("log/" + names[1]); err != nil {
		t.Fatal(err)
	}
	var damage *DamageError
	if _, err := Open(Options{FS: gone, Dir: "log", SegmentBytes: minSegmentBytes}); !errors.As(err, &damage) ||
		damage.File != "log/"+names[1] {
		t.Errorf("a missing segment gives %v", err)
	}
	// The newest one, which no other segment names.
	last := names[len(names)-1]
	lost := cloneWith(t, fs, "", nil)
	if err := lost.Remove("log/" + last); err != nil {
		t.Fatal(err)
	}
	before, _ := lost.List("log")
	if _, err := Open(Options{FS: lost, Dir: "log", SegmentBytes: minSegmentBytes}); !errors.As(err, &damage) || damage.File != "log/"+last {
		t.Errorf("without its newest segment the log gives %v", err)
	}
	if after, _ := lost.List("log"); len(after) != len(before) {
		t.Errorf("refusing a log changed it: %q, then %q", before, after)
	}
	if err := Read(lost, "log", func(Record) error { return nil }); !errors.As(err, &damage) || damage.File != "log/"+last {
		t.Errorf("reading a log without its newest segment gives %v", err)
	}
	// A log of before the note was made opens, and has one afterwards.
	old := cloneWith(t, fs, "", nil)
	if err := old.Remove("log/" + newestName); err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, Options{FS: old, Dir: "log", SegmentBytes: minSegmentBytes}).Close(); err != nil {
		t.Fatal(err)
	}
	if noted, err := newestNoted(old, "log"); err != nil || segmentName(noted, liveSuffix) < last {
		t.Errorf("an old log's newest segment is noted as %d, %v", noted, err)
	}
	for _, name := range names {
		b := readFile(t, fs, "log/"+name)
		for _, size := range []int{0, 10, 200, 4096, len(b) - 1} {
			_, err := Open(Options{FS: cloneWith(t, fs, name, b[:size]), Dir: "log", SegmentBytes: minSegmentBytes})
			if !errors.As(err, &damage) {
				t.Errorf("%s cut to %d bytes gives %v", name, size, err)
			}
		}
	}
	// Segments that were exchanged.
	_, err := Open(Options{FS: cloneWith(t, fs, names[0], readFile(t, fs, "log/"+names[1])), Dir: "log"})
	if !errors.As(err, &damage) {
		t.Errorf("an exchanged segment gives %v", err)
	}
	// Files of others are left alone, and ours that mean nothing go away.
	odd := cloneWith(t, fs, "", nil)
	for _, n := range []string{"README", "1.log", "spare.tmp", "big.tmp", names[0][:16] + freeSuffix, "0000000000000099.free"} {
		f, err := odd.OpenReadWrite("log/"+n, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.WriteAt([]byte("x"), 0)
		_ = f.Close()
	}
	l := mustOpen(t, Options{FS: odd, Dir: "log", SegmentBytes: minSegmentBytes})
	if d := diff(l, m, 0); d != "" {
		t.Error(d)
	}
	_ = l.Close()
	left, _ := odd.List("log")
	if len(left) != len(names)+3 { // README, 1.log and newest
		t.Errorf("left: %q", left)
	}
}

// TestReadShowsEverything compares Read with what was written, on a clean and on a torn log, and that it changes nothing.
func TestReadShowsEverything(t *testing.T) {
	fs := vfs.NewMem()
	sampleLog(t, fs, true)
	count := map[Kind]int{}
	var last Record
	read := func(fs vfs.FS) error {
		clear(count)
		return Read(fs, "log", func(r Record) error {
			count[r.Kind]++
			if r.Kind == KindEntry && (r.Index == 0 || len(r.Data) == 0 || r.Bytes < int64(len(r.Data))) {
				return fmt.Errorf("bad record %+v", r)
			}
			last = r
			return nil
		})
	}
	if err := read(fs); err != nil {
		t.Fatal(err)
	}
	if n := len(liveNames(t, fs)); count[KindSegment] != n || count[KindEntry] != 31 || count[KindHardState] != 9 ||
		count[KindReset] != 1 || count[KindTruncate] != 1 || count[KindClosed] != 1 || last.Kind != KindClosed {
		t.Errorf("%v, last %v", count, last.Kind)
	}
	if err := Read(vfs.NewMem(), "log", nil); err == nil {
		t.Error("a directory that is not there was read")
	}
	stop := errors.New("enough")
	if err := Read(fs, "log", func(Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("visit's error: %v", err)
	}

	torn := vfs.NewMem()
	sampleLog(t, torn, false)
	names := liveNames(t, torn)
	name := names[len(names)-1]
	b := readFile(t, torn, "log/"+name)
	end := bytes.LastIndexFunc(b, func(r rune) bool { return r != 0 })
	b[end-5] ^= 1
	torn = cloneWith(t, torn, name, b).(*vfs.MemFS)
	if err := read(torn); err != nil || last.Kind != KindTorn || count[KindEntry] != 30 {
		t.Errorf("torn: %v, %v, last %+v", err, count, last)
	}
	if !bytes.Equal(readFile(t, torn, "log/"+name), b) {
		t.Error("read changed the file")
	}

	bad := readFile(t, fs, "log/"+names[1])
	bad[20] ^= 1
	var damage *DamageError
	if err := read(cloneWith(t, fs, names[1], bad)); !errors.As(err, &damage) || count[KindSegment] != 1 || count[KindEntry] == 0 {
		t.Errorf("damaged header: %v, %v", err, count)
	}
}

// TestSaltIsDrawnAnew: every use of a file has a salt that nobody can know before, in one log and between logs: a client
// that knows all else about the log could otherwise put bytes into a value that pass for a record of another segment.
func TestSaltIsDrawnAnew(t *testing.T) {
	seen := map[uint64]string{0: "none"}
	for _, name := range []string{"first", "second"} {
		mem := vfs.NewMem()
		sampleLog(t, mem, true)
		for _, file := range liveNames(t, mem) {
			h, reason := decodeSegmentHeader(readFile(t, mem, "log/"+file))
			if reason != "" {
				t.Fatal(reason)
			}
			if of, known := seen[h.seal.salt]; known {
				t.Errorf("%s of the %s log has the salt %x, as %s", file, name, h.seal.salt, of)
			}
			seen[h.seal.salt] = file + " of the " + name
		}
	}
	if len(seen) < 5 {
		t.Fatalf("only %d segments", len(seen)-1)
	}
}

// TestStaleRecordsNeverValidate takes each record of a segment and puts it where it does not belong: another offset, another
// segment, the same segment in another life of the file.
func TestStaleRecordsNeverValidate(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	here := seal{salt: r.Uint64(), seq: 5}
	e := encoder{seal: here, base: 4096, durable: 4096}
	e.entry(newEntry(1, 1, []byte("hello")), flagEnd)
	if _, ok := here.decodeHeader(e.buf, 4096); !ok {
		t.Fatal("a good record does not validate")
	}
	for range 100_000 {
		off := int64(r.IntN(1<<26)) &^ 7
		others := []seal{{here.salt, r.Uint64N(1 << 40)}, {r.Uint64(), here.seq}}
		for _, s := range others {
			if _, ok := s.decodeHeader(e.buf, 4096); ok {
				t.Fatalf("validates under %+v", s)
			}
		}
		if _, ok := here.decodeHeader(e.buf, off); ok && off != 4096 {
			t.Fatalf("validates at %d", off)
		}
	}
}

// TestHeaderContradicts gives a segment a valid header that does not go on where the segment before it ended.
func TestHeaderContradicts(t *testing.T) {
	fs := vfs.NewMem()
	sampleLog(t, fs, true)
	name := liveNames(t, fs)[1]
	for what, change := range map[string]func(*segmentHeader){
		"index":      func(h *segmentHeader) { h.base.Index++ },
		"term":       func(h *segmentHeader) { h.base.Term++ },
		"hard state": func(h *segmentHeader) { h.hardState = newHardState(9, 9, 9) },
		"end":        func(h *segmentHeader) { h.prevEnd -= 8 },
		"size":       func(h *segmentHeader) { h.size = 5 },
	} {
		b := readFile(t, fs, "log/"+name)
		h, reason := decodeSegmentHeader(b)
		if reason != "" {
			t.Fatal(reason)
		}
		change(&h)
		copy(b, h.encode())
		_, err := Open(Options{FS: cloneWith(t, fs, name, b), Dir: "log", SegmentBytes: minSegmentBytes})
		if damage := new(DamageError); !errors.As(err, &damage) {
			t.Errorf("wrong %s: %v", what, err)
		}
	}
}
