package backup

import (
	"errors"
	"fmt"
	"os"

	"go.etcd.io/bbolt"
)

// batchBytes is how much of a file is put into one transaction: what it takes of memory, two or three times over.
const batchBytes = 4 << 20

// pageBytes is the page size of the files, whatever the machine's.
const pageBytes = 4096

// fileWriter writes a bbolt file bucket by bucket, each in the order of its keys. Nothing is synced: a crash leaves a file
// that is removed at the next start.
type fileWriter struct {
	db    *bbolt.DB
	tx    *bbolt.Tx
	name  string
	now   *bbolt.Bucket
	size  int    // in tx
	arena []byte // values of tx, which must stay until it is committed
	// pause is called between transactions.
	pause func() error
}

func newFileWriter(path string, pause func() error) (*fileWriter, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		NoSync: true, NoGrowSync: true, NoFreelistSync: true, PageSize: pageBytes, NoStatistics: true,
		FreelistType: bbolt.FreelistMapType,
	})
	if err != nil {
		return nil, fmt.Errorf("make the snapshot file: %w", err)
	}
	w := &fileWriter{db: db, pause: pause}
	for _, name := range buckets {
		if err := w.bucket(name); err != nil {
			return nil, errors.Join(err, w.close())
		}
	}
	return w, nil
}

func (w *fileWriter) begin() (err error) {
	if w.tx == nil {
		w.tx, err = w.db.Begin(true)
	}
	return err
}

// bucket makes name the bucket that put writes to.
func (w *fileWriter) bucket(name string) (err error) {
	if err := w.begin(); err != nil {
		return err
	}
	if w.now, err = w.tx.CreateBucketIfNotExists([]byte(name)); err != nil {
		return err
	}
	w.name = name
	w.now.FillPercent = 1 // rows come in order
	return nil
}

func (w *fileWriter) put(key, value []byte) error {
	if w.tx == nil {
		if err := w.bucket(w.name); err != nil {
			return err
		}
	}
	if len(w.arena)+len(value) > cap(w.arena) {
		w.arena = make([]byte, 0, max(batchBytes/4, len(value))) // the one before is held by the transaction
	}
	at := len(w.arena)
	w.arena = append(w.arena, value...)
	if err := w.now.Put(key, w.arena[at:len(w.arena):len(w.arena)]); err != nil {
		return err
	}
	if w.size += len(key) + len(value) + 64; w.size < batchBytes {
		return nil
	}
	return w.commit()
}

func (w *fileWriter) commit() error {
	if w.tx == nil {
		return nil
	}
	err := w.tx.Commit()
	w.tx, w.now, w.size, w.arena = nil, nil, 0, nil
	if err != nil {
		return err
	}
	return w.pause()
}

// finish ends the file.
func (w *fileWriter) finish() error { return errors.Join(w.commit(), w.close()) }

func (w *fileWriter) close() error {
	if w.tx != nil {
		_ = w.tx.Rollback()
		w.tx = nil
	}
	return w.db.Close()
}

// hexID is how etcd writes an id as a key.
func hexID(id uint64) []byte { return fmt.Appendf(nil, "%x", id) }

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
