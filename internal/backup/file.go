package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/backup/bolt"
	"github.com/trivet-kv/trivet/internal/kv"
)

// File is an open snapshot, or a database of etcd.
type File struct {
	path    string
	f       *os.File
	db      *bolt.File
	buckets map[string]bolt.Bucket
	order   []bolt.Bucket
}

// hasSum reports whether a file of n bytes ends in its SHA-256, as a snapshot does and a database copied from a data
// directory does not: that has whole pages.
func hasSum(n int64) bool { return n%512 == sha256.Size }

// Open opens a file and checks the hash at its end. With skipHash it takes files without one, and does not look at the one
// that is there.
func Open(path string, skipHash bool) (*File, error) {
	return open(path, func(f *os.File, size int64) (int64, error) {
		switch {
		case hasSum(size) && skipHash:
			return size - sha256.Size, nil
		case hasSum(size):
			return size - sha256.Size, checkSum(f, size)
		case !skipHash:
			return 0, errors.New("it has no hash at its end: it was cut short, it is no snapshot, or it was copied from a data directory; only for the last there is --skip-hash-check")
		}
		return size, nil
	})
}

// openAny opens a file, and checks the hash at its end if there is one.
func openAny(path string) (*File, error) {
	return open(path, func(f *os.File, size int64) (int64, error) {
		if !hasSum(size) {
			return size, nil
		}
		return size - sha256.Size, checkSum(f, size)
	})
}

func open(path string, check func(f *os.File, size int64) (int64, error)) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	file := &File{path: path, f: f}
	if err := file.read(check); err != nil {
		return nil, errors.Join(file.wrap(err), f.Close())
	}
	return file, nil
}

func (f *File) read(check func(*os.File, int64) (int64, error)) error {
	info, err := f.f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is not a file")
	}
	size, err := check(f.f, info.Size())
	if err != nil {
		return err
	}
	if f.db, err = bolt.Open(f.f, size); err != nil {
		return err
	}
	if f.order, err = f.db.Buckets(); err != nil {
		return err
	}
	f.buckets = make(map[string]bolt.Bucket)
	for _, b := range f.order {
		f.buckets[b.Name] = b
	}
	for _, name := range []string{bucketKey, bucketMeta} {
		if _, ok := f.buckets[name]; !ok {
			return fmt.Errorf("it is a database without the bucket %q, so it is not etcd's", name)
		}
	}
	return nil
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

func (f *File) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("the snapshot %s cannot be used: %w", f.path, err)
}

// checkSum compares the hash at the end with that of the rest.
func checkSum(f *os.File, size int64) error {
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, size-sha256.Size)); err != nil {
		return err
	}
	want := make([]byte, sha256.Size)
	if _, err := f.ReadAt(want, size-sha256.Size); err != nil {
		return err
	}
	if got := sum.Sum(nil); !bytes.Equal(got, want) {
		return fmt.Errorf("it was changed or damaged since it was taken: the hash at its end is %x and that of its content %x; use another copy", want, got)
	}
	return nil
}

// each visits the rows of a bucket; none if there is no such bucket, as in files of older versions.
func (f *File) each(bucket string, visit func(key, value []byte) error) error {
	b, ok := f.buckets[bucket]
	if !ok {
		return nil
	}
	return b.Each(visit)
}

// get returns a row of a small bucket; nil if it is not there.
func (f *File) get(bucket, key string) (value []byte, err error) {
	err = f.each(bucket, func(k, v []byte) error {
		if string(k) == key {
			value = append([]byte{}, v...)
		}
		return nil
	})
	return value, err
}

// decodeRevision takes a key of the bucket key apart.
func decodeRevision(b []byte) (rev kv.Revision, deleted bool, err error) {
	if len(b) != revisionBytes && (len(b) != revisionBytes+1 || b[revisionBytes] != tombstoneMark) || b[8] != '_' {
		return kv.Revision{}, false, fmt.Errorf("%w: %x is no revision", bolt.ErrDamaged, b)
	}
	rev.Main = int64(binary.BigEndian.Uint64(b))
	rev.Sub = int64(binary.BigEndian.Uint64(b[9:]))
	if rev.Main < 0 || rev.Sub < 0 {
		return kv.Revision{}, false, fmt.Errorf("%w: the revision %s is negative", bolt.ErrDamaged, rev)
	}
	return rev, len(b) > revisionBytes, nil
}

// history visits the rows of the bucket key. What restoring with a bump in etcd leaves, a row without key or value that
// only holds the revision, is visited too.
func (f *File) history(visit func(rev kv.Revision, deleted bool, pair *mvccpb.KeyValue) error) error {
	var pair mvccpb.KeyValue
	return f.each(bucketKey, func(key, value []byte) error {
		rev, deleted, err := decodeRevision(key)
		if err != nil {
			return err
		}
		pair.Reset()
		if err := proto.Unmarshal(value, &pair); err != nil {
			return fmt.Errorf("%w: the change at revision %s cannot be read: %w", bolt.ErrDamaged, rev, err)
		}
		return visit(rev, deleted, &pair)
	})
}

// Status is what can be said of a snapshot. The names are those of etcdutl's JSON.
type Status struct {
	Hash      uint32 `json:"hash"` // over all rows of all buckets
	Revision  int64  `json:"revision"`
	TotalKey  int    `json:"totalKey"`
	TotalSize int64  `json:"totalSize"` // bytes of the database
	Version   string `json:"version"`   // empty for etcd before 3.6
}

// ReadStatus reads a whole file. A hash at its end is checked.
func ReadStatus(path string) (Status, error) {
	f, err := openAny(path)
	if err != nil {
		return Status{}, err
	}
	defer f.Close()
	s, err := f.status()
	return s, f.wrap(err)
}

func (f *File) status() (Status, error) {
	s := Status{TotalSize: f.db.Bytes()}
	v, err := f.get(bucketMeta, metaStorageVersion)
	if err != nil {
		return s, err
	}
	s.Version = string(v)
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	for _, b := range f.order {
		sum.Write([]byte(b.Name))
		if err := b.Each(func(key, value []byte) error {
			sum.Write(key)
			sum.Write(value)
			return nil
		}); err != nil {
			return s, err
		}
	}
	s.Hash = sum.Sum32()
	live := make(map[string]struct{})
	err = f.history(func(rev kv.Revision, deleted bool, pair *mvccpb.KeyValue) error {
		s.Revision = rev.Main
		if deleted {
			delete(live, string(pair.Key))
		} else {
			live[string(pair.Key)] = struct{}{}
		}
		return nil
	})
	s.TotalKey = len(live)
	return s, err
}
