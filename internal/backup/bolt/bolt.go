// Package bolt reads and writes files of bbolt, the store of etcd. It reads those that nobody vouches for: backups that were cut short, that lay on
// bad disks, or that are no such files at all. The library itself trusts its file: on a damaged one it panics, reads
// beyond the end of the mapping, or follows a circle of pages until the stack ends. Here whatever the bytes are, the answer
// is what they hold or ErrDamaged with the page, memory stays bounded, and the file is only read.
//
// Writer writes a file in one go, which the library, made for changing files, does at several times the cost; what it wrote
// the library takes for its own.
//
// Attacked by FuzzFile, which changes files that the library wrote, by the tests that read what the library wrote, and by
// TestLibraryTakesWhatIsWritten, which has the library read, check and change what Writer wrote.
package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
)

// ErrDamaged says that the file is no bbolt file, or not a whole one. It is wrapped with the place.
var ErrDamaged = errors.New("damaged")

const (
	magic         = 0xED0CDAED
	fileVersion   = 2
	pageHeader    = 16
	metaBytes     = 64
	elementBytes  = 16
	bucketHeader  = 16
	minPage       = 512
	maxPage       = 1 << 20
	maxBlock      = 512 << 20 // bytes of a page with its overflow: more than any value that etcd takes
	maxDepth      = 32
	flagBranch    = 1
	flagLeaf      = 2
	flagMeta      = 4
	flagFreelist  = 16
	elementBucket = 1
)

// File is an open file.
type File struct {
	r        io.ReaderAt
	size     int64
	pageSize int64
	pages    uint64 // none has a number of this or more
	root     uint64
}

// Bucket is one of the file's buckets.
type Bucket struct {
	Name   string
	f      *File
	root   uint64
	inline []byte // the bucket's only page, if root is 0
}

// Open looks at the first two pages of a file of size bytes. What follows the last page is not looked at.
func Open(r io.ReaderAt, size int64) (*File, error) {
	f := &File{r: r, size: size}
	first, firstTx, err := f.readMeta(0)
	if err == nil {
		*f = first
	}
	// The second page begins where the first ends; if the first is damaged, at the size that most machines use.
	sizes := []int64{first.pageSize}
	if err != nil {
		sizes = []int64{4096, 16384, 65536, 8192, 32768}
	}
	for _, at := range sizes {
		second, tx, secondErr := f.readMeta(at)
		if secondErr == nil && second.pageSize == at && (err != nil || tx > firstTx) {
			*f, err = second, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if want := int64(f.pages) * f.pageSize; f.pages > uint64(size) || want > size {
		return nil, fmt.Errorf("%w: it has %d bytes and should have %d: the end is missing", ErrDamaged, size, want)
	}
	return f, nil
}

// readMeta reads the page at an offset that says how the file is made up, and the number of the transaction that wrote it.
func (f *File) readMeta(at int64) (File, uint64, error) {
	b := make([]byte, pageHeader+metaBytes)
	if _, err := f.r.ReadAt(b, at); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: it has only %d bytes", ErrDamaged, f.size)
		}
		return File{}, 0, err
	}
	m := b[pageHeader:]
	u32 := func(i int) uint32 { return binary.LittleEndian.Uint32(m[i:]) }
	u64 := func(i int) uint64 { return binary.LittleEndian.Uint64(m[i:]) }
	switch {
	case binary.BigEndian.Uint32(m) == magic:
		return File{}, 0, fmt.Errorf("%w: it was written on a machine of the other byte order", ErrDamaged)
	case u32(0) != magic:
		return File{}, 0, fmt.Errorf("%w: it does not begin as a database of etcd does", ErrDamaged)
	case u32(4) != fileVersion:
		return File{}, 0, fmt.Errorf("%w: its format is %d, known is %d", ErrDamaged, u32(4), fileVersion)
	}
	sum := fnv.New64a()
	sum.Write(m[:56])
	pageSize := int64(u32(8))
	if sum.Sum64() != u64(56) || pageSize < minPage || pageSize > maxPage || pageSize&(pageSize-1) != 0 {
		return File{}, 0, fmt.Errorf("%w: the page at byte %d, which says how it is made up, has a wrong checksum", ErrDamaged, at)
	}
	return File{r: f.r, size: f.size, pageSize: pageSize, root: u64(16), pages: u64(40)}, u64(48), nil
}

// Bytes is how long the file is, from its first page to its last.
func (f *File) Bytes() int64 { return int64(f.pages) * f.pageSize }

// Buckets returns the buckets of the file in the order of their names.
func (f *File) Buckets() ([]Bucket, error) {
	var all []Bucket
	err := f.walk(f.root, nil, func(key, value []byte, bucket bool) error {
		if !bucket {
			return fmt.Errorf("%w: there is a key %q outside of any bucket", ErrDamaged, key)
		}
		if len(value) < bucketHeader {
			return fmt.Errorf("%w: the bucket %q is cut short", ErrDamaged, key)
		}
		b := Bucket{Name: string(key), f: f, root: binary.LittleEndian.Uint64(value)}
		if b.root == 0 {
			b.inline = bytes.Clone(value[bucketHeader:])
		}
		all = append(all, b)
		return nil
	})
	return all, err
}

// Each shows visit the rows of the bucket in the order of their keys. The slices are valid until visit returns; an error of
// visit ends it and is returned as it is.
func (b *Bucket) Each(visit func(key, value []byte) error) error {
	err := b.f.walk(b.root, b.inline, func(key, value []byte, bucket bool) error {
		if bucket {
			return fmt.Errorf("%w: there is a bucket %q in it", ErrDamaged, key)
		}
		return visit(key, value)
	})
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("bucket %q: %w", b.Name, err)
	}
	return err
}

// walk visits the elements of the leaves below a page.
func (f *File) walk(root uint64, inline []byte, visit func(key, value []byte, bucket bool) error) error {
	w := walk{f: f, visit: visit, left: f.pages}
	if root != 0 {
		return w.page(root, 0)
	}
	if len(inline) < pageHeader {
		return fmt.Errorf("%w: a page is cut short", ErrDamaged)
	}
	if p := (page{inline}); p.flags() != flagLeaf {
		return fmt.Errorf("%w: a bucket of one page has flags %#x", ErrDamaged, p.flags())
	}
	return w.leaf(page{inline})
}

type walk struct {
	f       *File
	visit   func(key, value []byte, bucket bool) error
	left    uint64 // pages that a tree can still have: no page is in it twice
	buffers [maxDepth][]byte
	last    []byte
	begun   bool
}

func (w *walk) page(id uint64, depth int) error {
	if depth == maxDepth || w.left == 0 {
		return fmt.Errorf("%w: page %d: the pages refer to one another in a circle", ErrDamaged, id)
	}
	w.left--
	p, err := w.f.read(id, &w.buffers[depth])
	if err != nil {
		return err
	}
	switch p.flags() {
	case flagLeaf:
		err = w.leaf(p)
	case flagBranch:
		if p.count() == 0 {
			return fmt.Errorf("%w: page %d leads nowhere", ErrDamaged, id)
		}
		for i := range p.count() {
			e, err := p.element(i)
			if err != nil {
				return fmt.Errorf("page %d: %w", id, err)
			}
			if err := w.page(binary.LittleEndian.Uint64(e[8:]), depth+1); err != nil {
				return err
			}
		}
		return nil
	default:
		return fmt.Errorf("%w: page %d is neither branch nor leaf (flags %#x)", ErrDamaged, id, p.flags())
	}
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return err
}

func (w *walk) leaf(p page) error {
	for i := range p.count() {
		e, err := p.element(i)
		if err != nil {
			return err
		}
		flags := binary.LittleEndian.Uint32(e)
		key, value, err := p.pair(i, e)
		if err != nil {
			return err
		}
		if w.begun && bytes.Compare(key, w.last) <= 0 {
			return fmt.Errorf("%w: the keys are out of order", ErrDamaged)
		}
		w.last, w.begun = append(w.last[:0], key...), true
		if err := w.visit(key, value, flags&elementBucket != 0); err != nil {
			return err
		}
	}
	return nil
}

// page is the bytes of one page and its overflow.
type page struct{ b []byte }

func (p page) flags() uint16 { return binary.LittleEndian.Uint16(p.b[8:]) }
func (p page) count() int    { return int(binary.LittleEndian.Uint16(p.b[10:])) }

// element returns the fixed part of the element i.
func (p page) element(i int) ([]byte, error) {
	at := pageHeader + i*elementBytes
	if at+elementBytes > len(p.b) {
		return nil, fmt.Errorf("%w: %d elements do not fit in", ErrDamaged, p.count())
	}
	return p.b[at : at+elementBytes], nil
}

// pair returns key and value of the leaf's element i, whose fixed part is e.
func (p page) pair(i int, e []byte) (key, value []byte, err error) {
	pos, keyLen, valueLen := binary.LittleEndian.Uint32(e[4:]), binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
	from := uint64(pageHeader+i*elementBytes) + uint64(pos)
	to := from + uint64(keyLen) + uint64(valueLen)
	if to > uint64(len(p.b)) {
		return nil, nil, fmt.Errorf("%w: element %d ends beyond the page", ErrDamaged, i)
	}
	middle := from + uint64(keyLen)
	return p.b[from:middle:middle], p.b[middle:to:to], nil
}

// read reads a page into buffer.
func (f *File) read(id uint64, buffer *[]byte) (page, error) {
	if id < 2 || id >= f.pages {
		return page{}, fmt.Errorf("%w: it refers to page %d of %d", ErrDamaged, id, f.pages)
	}
	b := grow(*buffer, int(f.pageSize))
	*buffer = b
	if err := f.readAt(b, id); err != nil {
		return page{}, err
	}
	if got := binary.LittleEndian.Uint64(b); got != id {
		return page{}, fmt.Errorf("%w: page %d says that it is page %d", ErrDamaged, id, got)
	}
	overflow := uint64(binary.LittleEndian.Uint32(b[12:]))
	if overflow == 0 {
		return page{b}, nil
	}
	whole := int64(overflow+1) * f.pageSize
	if id+overflow >= f.pages || whole > maxBlock {
		return page{}, fmt.Errorf("%w: page %d goes on for %d pages", ErrDamaged, id, overflow)
	}
	b = grow(b, int(whole))
	*buffer = b
	return page{b}, f.readAt(b, id)
}

func (f *File) readAt(b []byte, id uint64) error {
	_, err := f.r.ReadAt(b, int64(id)*f.pageSize)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: page %d lies beyond the end of the file", ErrDamaged, id)
	}
	return err
}

func grow(b []byte, n int) []byte { return slices.Grow(b[:0], n)[:n] }
