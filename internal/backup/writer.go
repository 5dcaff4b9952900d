package backup

import (
	"io"
	"maps"
	"slices"
	"strconv"

	"github.com/trivet-kv/trivet/internal/backup/bolt"
)

// pieceBytes is how much of a file is written between two pauses at most, unless one row is longer.
const pieceBytes = 64 << 10

// fileWriter writes a bbolt file bucket by bucket, each in the order of its keys.
type fileWriter struct {
	*bolt.Writer
	name string
	todo []string // buckets that were not written; each file has all
	size int      // of the piece
	// pause is called between pieces.
	pause func() error
}

func newFileWriter(w io.Writer, pages uint64, pause func() error) *fileWriter {
	return &fileWriter{Writer: bolt.NewWriter(w, pages), todo: slices.Clone(buckets), pause: pause}
}

// bucket makes name the bucket that put writes to. A bucket is not gone back to.
func (w *fileWriter) bucket(name string) error {
	if w.name == name {
		return nil
	}
	w.name = name
	w.todo = slices.DeleteFunc(w.todo, func(n string) bool { return n == name })
	return w.Bucket(name)
}

func (w *fileWriter) put(key, value []byte) error {
	if err := w.Put(key, value); err != nil {
		return err
	}
	if w.size += len(key) + len(value); w.size < pieceBytes {
		return nil
	}
	w.size = 0
	return w.pause()
}

// putAll writes a whole bucket of few rows.
func (w *fileWriter) putAll(bucket string, rows map[string][]byte) error {
	if err := w.bucket(bucket); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		if err := w.put([]byte(key), rows[key]); err != nil {
			return err
		}
	}
	return nil
}

// rest writes the buckets that have no rows.
func (w *fileWriter) rest() error {
	for len(w.todo) > 0 {
		if err := w.bucket(w.todo[0]); err != nil {
			return err
		}
	}
	return w.pause()
}

// hexID is how etcd writes an id as a key.
func hexID(id uint64) string { return strconv.FormatUint(id, 16) }
