package backup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/trivet-kv/trivet/internal/backup/bolt"
)

// pieceBytes is how much of a file is written between two pauses at most, unless one row is longer.
const pieceBytes = 64 << 10

// fileWriter writes a bbolt file bucket by bucket, each in the order of its keys. Nothing is synced: a crash leaves a file
// that is removed at the next start.
type fileWriter struct {
	f    *os.File
	w    *bolt.Writer
	name string
	todo []string // buckets that were not written; each file has all
	size int      // of the piece
	// pause is called between pieces.
	pause func() error
}

func newFileWriter(path string, pause func() error) (*fileWriter, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the snapshot file: %w", err)
	}
	return &fileWriter{f: f, w: bolt.NewWriter(f), todo: slices.Clone(buckets), pause: pause}, nil
}

// bucket makes name the bucket that put writes to. A bucket is not gone back to.
func (w *fileWriter) bucket(name string) error {
	if w.name == name {
		return nil
	}
	w.name = name
	w.todo = slices.DeleteFunc(w.todo, func(n string) bool { return n == name })
	return w.w.Bucket(name)
}

func (w *fileWriter) put(key, value []byte) error {
	if err := w.w.Put(key, value); err != nil {
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

// finish ends the file.
func (w *fileWriter) finish() error {
	for len(w.todo) > 0 {
		if err := w.bucket(w.todo[0]); err != nil {
			return errors.Join(err, w.close())
		}
	}
	err := w.pause()
	if err == nil {
		_, err = w.w.Finish()
	}
	return errors.Join(err, w.close())
}

func (w *fileWriter) close() error { return w.f.Close() }

// hexID is how etcd writes an id as a key.
func hexID(id uint64) string { return strconv.FormatUint(id, 16) }

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
