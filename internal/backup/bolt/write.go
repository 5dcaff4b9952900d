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
	writePage   = 4096 // of the files, whatever the machine's page size
	writeBuffer = 64 << 10
	firstPage   = 2 // behind the two that describe the file
	wholePage   = writePage - pageHeader
)

// Writer writes a file from its first byte to its last, so that it need not be a file: each bucket once, and its rows in the
// order of their keys. What it keeps in memory is one page for each level of a tree, however long the file becomes. The file is one
// of the library's own form: it may be changed by the library afterwards.
//
// The first pages say where the root is, how long the file is, and where the list of free pages is. None of that is known
// before the rows are written, so all is given a place at the end of as many pages as there will be at most. The pages that are not
// needed are zero and in the list.
type Writer struct {
	out     *bufio.Writer
	next    uint64 // the page that is written next
	list    uint64 // the first page of the list of free pages, behind the last that may be written
	root    uint64 // the last page of the file
	now     *tree
	name    string
	buckets []written
	err     error // the first of all; nothing is written after it
}

// written is a bucket that is done.
type written struct {
	name string
	root uint64
}

// NewWriter begins a file whose buckets need at most so many pages.
func NewWriter(f io.Writer, pages uint64) *Writer {
	w := &Writer{out: bufio.NewWriterSize(f, writeBuffer), next: firstPage, list: firstPage + pages, root: rootAt(pages)}
	// Of the two descriptions the second is the older one; both are of the same tree.
	w.meta(0)
	w.meta(1)
	return w
}

// listPages is how many pages the list has that may name so many.
func listPages(free uint64) uint64 { return (pageHeader + 8*(free+1) + writePage - 1) / writePage }

// rootAt is the last page of a file whose buckets need at most so many pages.
func rootAt(pages uint64) uint64 { return firstPage + pages + listPages(pages) }

// FileBytes is how long a file becomes whose buckets need at most so many pages.
func FileBytes(pages uint64) int64 { return int64(rootAt(pages)+1) * writePage }

// Pages ends the bucket that was begun last, and returns how many pages the buckets have taken.
func (w *Writer) Pages() (uint64, error) {
	w.endBucket()
	return w.next - firstPage, w.err
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

// Finish ends the file.
func (w *Writer) Finish() error {
	w.endBucket()
	slices.SortFunc(w.buckets, func(a, b written) int { return bytes.Compare([]byte(a.name), []byte(b.name)) })
	root := &tree{w: w}
	for _, b := range w.buckets {
		root.add(0, elementBucket, []byte(b.name), binary.LittleEndian.AppendUint64(make([]byte, 0, bucketHeader), b.root)[:bucketHeader], 0)
	}
	if len(root.levels) > 1 {
		w.fail(fmt.Errorf("the names of %d buckets do not fit on a page", len(w.buckets)))
	}
	w.free()
	w.next = w.root
	root.end()
	if w.err == nil {
		w.err = w.out.Flush()
	}
	return w.err
}

// free writes the pages that were not needed, and the list of them.
func (w *Writer) free() {
	var list []byte
	n := int(w.list - w.next)
	count := n
	if n >= maxCount { // then the first number is the count
		count = maxCount
		list = binary.LittleEndian.AppendUint64(list, uint64(n))
	}
	for ; w.next < w.list && w.err == nil; w.next++ {
		list = binary.LittleEndian.AppendUint64(list, w.next)
		if _, err := w.out.Write(zeros[:]); err != nil {
			w.fail(err)
		}
	}
	w.block(w.list, flagFreelist, count, int(w.root-w.list), nil, list)
}

// maxCount is the largest count that a page's header has room for.
const maxCount = 1<<16 - 1

func (w *Writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *Writer) endBucket() {
	if w.now == nil || w.err != nil {
		return
	}
	w.buckets, w.now = append(w.buckets, written{w.name, w.now.end()}), nil
}

// page writes a page, with as many pages behind it as its content needs, and returns its number.
func (w *Writer) page(flags uint16, count int, fixed, data []byte) uint64 {
	if w.err != nil {
		return 0
	}
	pages := pagesOf(len(fixed) + len(data))
	id := w.next
	if w.next += uint64(pages); id < w.list && w.next > w.list {
		w.fail(fmt.Errorf("the rows need more than the %d pages that they were given", w.list-firstPage))
		return 0
	}
	w.block(id, flags, count, pages, fixed, data)
	return id
}

// pagesOf is how many pages a page with so much content is.
func pagesOf(content int) int { return max(1, (pageHeader+content+writePage-1)/writePage) }

// block writes a page that is as long as several.
func (w *Writer) block(id uint64, flags uint16, count, pages int, fixed, data []byte) {
	if w.err != nil {
		return
	}
	left := pages*writePage - pageHeader - len(fixed) - len(data)
	for _, b := range [][]byte{header(id, flags, count, pages-1), fixed, data} {
		if _, err := w.out.Write(b); err != nil {
			w.fail(err)
		}
	}
	for ; left > 0; left -= writePage {
		if _, err := w.out.Write(zeros[:min(left, writePage)]); err != nil {
			w.fail(err)
		}
	}
}

var zeros [writePage]byte

func header(id uint64, flags uint16, count, overflow int) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, pageHeader), id)
	b = binary.LittleEndian.AppendUint16(b, flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(count))
	return binary.LittleEndian.AppendUint32(b, uint32(overflow))
}

// meta writes a page that describes the file.
func (w *Writer) meta(id int) {
	b := header(uint64(id), flagMeta, 0, 0)
	for _, n := range []uint32{magic, fileVersion, writePage, 0} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	transaction := uint64(2 - id)
	for _, n := range []uint64{w.root, 0, w.list, w.root + 1, transaction} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	sum := fnv.New64a()
	sum.Write(b[pageHeader:])
	b = binary.LittleEndian.AppendUint64(b, sum.Sum64())
	if _, err := w.out.Write(append(b, zeros[len(b):]...)); err != nil {
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
