package raftlog

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// model is the dumb log: a slice.
type model struct {
	before  Position
	entries []*raftpb.Entry
	hs      *raftpb.HardState
}

func (m model) last() uint64 { return m.before.Index + uint64(len(m.entries)) }

func (m model) term(i uint64) uint64 {
	if i == m.before.Index {
		return m.before.Term
	}
	return m.entries[i-m.before.Index-1].GetTerm()
}

// after gives the model after one more write.
func (m model) after(w Write) model {
	if w.Reset != nil {
		m.before, m.entries = *w.Reset, nil
	}
	if len(w.Entries) > 0 {
		keep := w.Entries[0].GetIndex() - m.before.Index - 1
		m.entries = slices.Concat(m.entries[:keep], w.Entries)
	}
	if w.HardState != nil {
		m.hs = w.HardState
	}
	return m
}

func newEntry(index, term uint64, data []byte) *raftpb.Entry {
	return &raftpb.Entry{Index: &index, Term: &term, Type: raftpb.EntryNormal.Enum(), Data: data}
}

func newHardState(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: &term, Vote: &vote, Commit: &commit}
}

// randomWrite makes a write that may follow m: appends, overwrites, resets, hard states, nothing. safe is the highest
// index that was cut: nothing at or before it is overwritten.
func randomWrite(r *rand.Rand, m model, safe uint64) Write {
	term := max(m.hs.GetTerm(), m.term(m.last()))
	w := Write{Sync: r.IntN(3) > 0}
	if r.IntN(40) == 0 {
		term += uint64(r.IntN(2))
		w.Reset = &Position{Index: m.last() + uint64(r.IntN(50)), Term: max(term, 1)}
		m = m.after(w)
	}
	if r.IntN(6) > 0 {
		next := m.last() + 1
		if low := max(m.before.Index, safe) + 1; r.IntN(8) == 0 && next > low {
			term++ // another leader overwrites
			next = low + uint64(r.IntN(int(next-low)))
			if r.IntN(4) > 0 {
				next = max(next, m.last()-min(m.last(), 3))
			}
		}
		for n := 1 + r.IntN(4); n > 0; n-- {
			w.Entries = append(w.Entries, newEntry(next, max(term, 1), randomData(r)))
			next++
		}
	}
	if r.IntN(3) == 0 {
		w.HardState = newHardState(max(term, 1), uint64(r.IntN(4)), m.hs.GetCommit()+uint64(r.IntN(2)))
	}
	return w
}

func randomData(r *rand.Rand) []byte {
	var n int
	switch r.IntN(40) {
	case 0:
		n = r.IntN(20000) // more than a test's segment
	case 1, 2, 3, 4:
		n = r.IntN(3000)
	case 5, 6:
		return nil
	default:
		n = r.IntN(100)
	}
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

// diff says how l differs from m, "" if it does not. Entries up to cut may be missing.
func diff(l *Log, m model, cut uint64) string {
	for {
		first, _ := l.FirstIndex()
		d := diffFrom(l, first, m, cut)
		if again, _ := l.FirstIndex(); again == first { // else a cut came between
			return d
		}
	}
}

func diffFrom(l *Log, first uint64, m model, cut uint64) string {
	last, _ := l.LastIndex()
	if !sameHardState(l.HardState(), m.hs) {
		return fmt.Sprintf("hard state is %v, want %v", l.HardState(), m.hs)
	}
	if last != m.last() {
		return fmt.Sprintf("last index is %d, want %d", last, m.last())
	}
	if first-1 < m.before.Index || first-1 > max(m.before.Index, cut) {
		return fmt.Sprintf("first index is %d, want between %d and %d", first, m.before.Index+1, max(m.before.Index, cut)+1)
	}
	for i := first - 1; i <= last; i++ {
		if term, err := l.Term(i); err != nil || term != m.term(i) {
			return fmt.Sprintf("term of %d is %d (%v), want %d", i, term, err, m.term(i))
		}
	}
	if first > last {
		return ""
	}
	got, err := l.Entries(first, last+1, 1<<62)
	if err != nil {
		return fmt.Sprintf("entries: %v", err)
	}
	return diffEntries(got, m.entries[first-m.before.Index-1:])
}

func diffEntries(got, want []*raftpb.Entry) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d entries, want %d", len(got), len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		if g.GetIndex() != w.GetIndex() || g.GetTerm() != w.GetTerm() || g.GetType() != w.GetType() || !bytes.Equal(g.Data, w.Data) {
			return fmt.Sprintf("entry %d: index %d term %d type %v and %d bytes, want index %d term %d type %v and %d bytes", i,
				g.GetIndex(), g.GetTerm(), g.GetType(), len(g.Data), w.GetIndex(), w.GetTerm(), w.GetType(), len(w.Data))
		}
	}
	return ""
}

// stepFS calls step before every operation that changes the file system; an error from it is the operation's.
type stepFS struct {
	vfs.FS
	mu   sync.Mutex
	step func(op string) error
	read func() // called before each ReadAt, may be nil
}

func (f *stepFS) before(op string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.step(op)
}

func (f *stepFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	if _, err := f.FS.Stat(name); oserror.IsNotExist(err) {
		if err := f.before("create " + name); err != nil {
			return nil, err
		}
	}
	file, err := f.FS.OpenReadWrite(name, c, o...)
	if err != nil {
		return nil, err
	}
	return &stepFile{file, f, name}, nil
}

func (f *stepFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &stepFile{file, f, name}, nil
}

func (f *stepFS) Rename(from, to string) error {
	if err := f.before("rename " + from + " " + to); err != nil {
		return err
	}
	return f.FS.Rename(from, to)
}

func (f *stepFS) Remove(name string) error {
	if err := f.before("remove " + name); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

type stepFile struct {
	vfs.File
	fs   *stepFS
	name string
}

func (f *stepFile) ReadAt(p []byte, off int64) (int, error) {
	if f.fs.read != nil {
		f.fs.read()
	}
	return f.File.ReadAt(p, off)
}

func (f *stepFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.before(fmt.Sprintf("write %s %d+%d", f.name, off, len(p))); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *stepFile) Sync() error {
	if err := f.fs.before("sync " + f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *stepFile) SyncData() error {
	if err := f.fs.before("syncdata " + f.name); err != nil {
		return err
	}
	return f.File.SyncData()
}

func mustOpen(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// appendWait appends w and waits until it is done.
func appendWait(t testing.TB, l *Log, w Write) {
	t.Helper()
	done := make(chan struct{})
	w.Done = func() { close(done) }
	l.Append(w)
	select {
	case <-done:
	case err := <-l.Failed():
		t.Fatal(err)
	}
}
