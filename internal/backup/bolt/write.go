package bolt

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
)

// Sizes that Writer uses.
const (
	writePage   = 4096          // of the files, whatever the machine's page size
	inlineBytes = writePage / 4 // a bucket up to this size lies in its row, as in the library's files
	writeBuffer = 256 << 10
	freelistAt  = 2 // page of the list of free pages, which is empty
)

// Writer writes a file from its first page to its last: each bucket once, and its rows in the order of their keys. So no page
// is written twice, none is free, and what it keeps in memory is one page for each level of a tree, however long the file
// becomes. The file is one of the library's own form: it may be changed by the library afterwards.
type Writer struct {
	f       io.WriterAt
	out     *bufio.Writer
	next    uint64 // the page that is written next
	now     *tree
	name    string
	buckets []written
	err     error // the first of all; nothing is written after it
}

// written is a bucket that is done: the root of its tree, or its only page.
type written struct {
	name   string
	root   uint64
	inline []byte
}

// NewWriter begins a file.
func NewWriter(f io.WriterAt) *Writer {
	w := &Writer{f: f, next: freelistAt}
	w.out = bufio.NewWriterSize(io.NewOffsetWriter(f, freelistAt*writePage), writeBuffer)
	w.page(flagFreelist, 0, nil, nil)
	return w
}

// Bucket ends the bucket before and begins one, which must not have been there.
func (w *Writer) Bucket(name string) error {
	w.endBucket()
	if name == "" || slices.ContainsFunc(w.buckets, func(b written) bool { return b.name == name }) {
		w.fail(fmt.Errorf("the bucket %q is written twice or has no name", name))
	}
	w.now, w.name = &tree{w: w}, name
	return w.err
}

// Put writes a row of the bucket that was begun last. It keeps neither key nor value.
func (w *Writer) Put(key, value []byte) error {
	if w.now == nil {
		w.fail(errors.New("a row outside of any bucket"))
	}
	if w.err != nil {
		return w.err
	}
	if len(key) == 0 || w.now.begun && bytes.Compare(key, w.now.last) <= 0 {
		w.fail(fmt.Errorf("bucket %q: the key %x comes after %x", w.name, key, w.now.last))
		return w.err
	}
	w.now.last, w.now.begun = append(w.now.last[:0], key...), true
	w.now.add(0, 0, key, value, 0)
	return w.err
}

// Finish ends the file and returns how long it is. Nothing is synced.
func (w *Writer) Finish() (int64, error) {
	w.endBucket()
	slices.SortFunc(w.buckets, func(a, b written) int { return bytes.Compare([]byte(a.name), []byte(b.name)) })
	root := &tree{w: w}
	for _, b := range w.buckets {
		header := make([]byte, bucketHeader, bucketHeader+len(b.inline))
		binary.LittleEndian.PutUint64(header, b.root)
		root.add(0, elementBucket, []byte(b.name), append(header, b.inline...), 0)
	}
	at := root.end()
	if w.err == nil {
		w.err = w.out.Flush()
	}
	// Of the two descriptions the second is the older one; both are of the same tree.
	for i := range 2 {
		w.meta(i, at)
	}
	return int64(w.next) * writePage, w.err
}

func (w *Writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *Writer) endBucket() {
	if w.now == nil || w.err != nil {
		return
	}
	b := written{name: w.name}
	if leaf := w.now.only(); leaf != nil {
		b.inline = leaf
	} else {
		b.root = w.now.end()
	}
	w.buckets, w.now = append(w.buckets, b), nil
}

// page writes a page, with as many pages behind it as its content needs, and returns its number.
func (w *Writer) page(flags uint16, count int, fixed, data []byte) uint64 {
	if w.err != nil {
		return 0
	}
	id, size := w.next, pageHeader+len(fixed)+len(data)
	pages := max(1, (size+writePage-1)/writePage)
	w.next += uint64(pages)
	for _, b := range [][]byte{header(id, flags, count, pages-1), fixed, data, zeros[:pages*writePage-size]} {
		if _, err := w.out.Write(b); err != nil {
			w.fail(err)
		}
	}
	return id
}

var zeros [writePage]byte

func header(id uint64, flags uint16, count, overflow int) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, pageHeader), id)
	b = binary.LittleEndian.AppendUint16(b, flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(count))
	return binary.LittleEndian.AppendUint32(b, uint32(overflow))
}

// meta writes the page that describes the file, once to page 0 and once to page 1.
func (w *Writer) meta(id int, root uint64) {
	if w.err != nil {
		return
	}
	b := header(uint64(id), flagMeta, 0, 0)
	for _, n := range []uint32{magic, fileVersion, writePage, 0} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	transaction := uint64(2 - id)
	for _, n := range []uint64{root, 0, freelistAt, w.next, transaction} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	sum := fnv.New64a()
	sum.Write(b[pageHeader:])
	b = binary.LittleEndian.AppendUint64(b, sum.Sum64())
	if _, err := w.f.WriteAt(append(b, zeros[len(b):]...), int64(id)*writePage); err != nil {
		w.fail(err)
	}
}

// tree is a tree under construction: the page that is being filled on each level, leaves first. A page that is full is written
// and gets its place on the page of the level above.
type tree struct {
	w      *Writer
	levels []*level
	last   []byte // key
	begun  bool
}

type level struct {
	count int
	fixed []byte // of the elements; where their data is, is counted from the first data so far
	data  []byte
	first []byte // key
}

// add puts an element on a level: a row of a leaf, or the page below.
func (t *tree) add(at int, flags uint32, key, value []byte, child uint64) {
	if at == len(t.levels) {
		t.levels = append(t.levels, &level{})
	}
	l := t.levels[at]
	full := pageHeader+len(l.fixed)+elementBytes+len(l.data)+len(key)+len(value) > writePage
	// A branch has two pages below it at least, as long as keys are no longer than a page.
	if full && l.count > min(at, 1) {
		t.flush(at)
	}
	if l.count == 0 {
		l.first = append(l.first[:0], key...)
	}
	l.count++
	if at == 0 {
		for _, n := range []uint32{flags, uint32(len(l.data)), uint32(len(key)), uint32(len(value))} {
			l.fixed = binary.LittleEndian.AppendUint32(l.fixed, n)
		}
	} else {
		l.fixed = binary.LittleEndian.AppendUint32(l.fixed, uint32(len(l.data)))
		l.fixed = binary.LittleEndian.AppendUint32(l.fixed, uint32(len(key)))
		l.fixed = binary.LittleEndian.AppendUint64(l.fixed, child)
	}
	l.data = append(append(l.data, key...), value...)
}

// place makes the places of the elements' data count from the elements themselves, as the format has it.
func (l *level) place(leaf bool) {
	at := 0
	if leaf {
		at = 4 // behind the flags
	}
	for i := range l.count {
		b := l.fixed[i*elementBytes+at:]
		binary.LittleEndian.PutUint32(b, binary.LittleEndian.Uint32(b)+uint32(len(l.fixed)-i*elementBytes))
	}
}

// flush writes the page of a level and names it on the level above.
func (t *tree) flush(at int) {
	id := t.write(at)
	l := t.levels[at]
	t.add(at+1, 0, l.first, nil, id)
	l.count, l.fixed, l.data = 0, l.fixed[:0], l.data[:0]
}

func (t *tree) write(at int) uint64 {
	l, flags := t.levels[at], uint16(flagBranch)
	if at == 0 {
		flags = flagLeaf
	}
	l.place(at == 0)
	return t.w.page(flags, l.count, l.fixed, l.data)
}

// end writes what is left and returns the root.
func (t *tree) end() uint64 {
	if len(t.levels) == 0 {
		return t.w.page(flagLeaf, 0, nil, nil)
	}
	at := 0
	for ; at < len(t.levels)-1; at++ {
		t.flush(at)
	}
	return t.write(at)
}

// only returns the tree as the one page that lies in its bucket's row, nil if it is too long for that.
func (t *tree) only() []byte {
	l := &level{}
	switch {
	case len(t.levels) > 1:
		return nil
	case len(t.levels) == 1:
		l = t.levels[0]
	}
	if pageHeader+len(l.fixed)+len(l.data) > inlineBytes {
		return nil
	}
	l.place(true)
	return slices.Concat(header(0, flagLeaf, l.count, 0), l.fixed, l.data)
}
