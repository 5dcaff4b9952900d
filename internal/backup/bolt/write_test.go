package bolt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// written writes a file of buckets with rows of sizes by chance, and returns what it holds as read does.
func writeFile(t *testing.T, path string, r *rand.Rand, rows []int, largest int) string {
	t.Helper()
	type row struct{ key, value []byte }
	all, pages := make([][]row, len(rows)), uint64(0)
	for b, n := range rows {
		var plan Plan
		for i := range n {
			key := binary.BigEndian.AppendUint64(nil, uint64(i))
			key = append(key, bytes.Repeat([]byte{'k'}, r.IntN(1+largest/40))...)
			value := bytes.Repeat([]byte{byte(i)}, r.IntN(1+r.IntN(1+largest)))
			all[b] = append(all[b], row{key, value})
			plan.Add(len(key), len(value))
		}
		pages += plan.Pages()
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := NewWriter(f, pages)
	var want bytes.Buffer
	for b := range rows {
		name := fmt.Sprintf("bucket-%03d", b)
		fmt.Fprintf(&want, "[%s]\n", name)
		if err := w.Bucket(name); err != nil {
			t.Fatal(err)
		}
		for _, row := range all[b] {
			fmt.Fprintf(&want, "%s=%x\n", row.key, row.value)
			if err := w.Put(row.key, row.value); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != FileBytes(pages) {
		t.Fatalf("%v, %v, said to be %d bytes long", info, err, FileBytes(pages))
	}
	return want.String()
}

// libraryRead is what the library reads, after its own check of the whole file.
func libraryRead(t *testing.T, db *bbolt.DB) string {
	t.Helper()
	var got bytes.Buffer
	if err := db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			fmt.Fprintf(&got, "[%s]\n", name)
			return b.ForEach(func(k, v []byte) error { fmt.Fprintf(&got, "%s=%x\n", k, v); return nil })
		})
	}); err != nil {
		t.Fatal(err)
	}
	return got.String()
}

// TestLibraryTakesWhatIsWritten: buckets of no row to trees of three and four levels, rows of no byte to many pages. The
// library finds nothing wrong, reads the same, and goes on: it deletes, changes and adds rows, and the file stays sound.
func TestLibraryTakesWhatIsWritten(t *testing.T) {
	many := make([]int, 90)
	for i := range many {
		many[i] = i % 5
	}
	for name, c := range map[string]struct {
		rows    []int
		largest int
	}{
		"no bucket": {nil, 0}, "empty buckets": {[]int{0, 0, 0}, 0}, "small": {[]int{3, 0, 1, 40, 15}, 60},
		"a tree": {[]int{0, 30000, 7}, 40}, "long keys": {[]int{3000}, 20000}, "long values": {[]int{2, 60, 1}, 300000},
		"many buckets": {many, 30},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, uint64(len(c.rows))))
			path := filepath.Join(t.TempDir(), "db")
			want := writeFile(t, path, r, c.rows, c.largest)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := read(b); err != nil || got != want {
				t.Fatalf("our reader: %v, and the same rows: %t", err, got == want)
			}
			db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			}()
			if got := libraryRead(t, db); got != want {
				t.Fatal("the library reads other rows")
			}
			for b, n := range c.rows {
				if err := db.Update(func(tx *bbolt.Tx) error { return changeSome(tx.Bucket(fmt.Appendf(nil, "bucket-%03d", b)), r, n) }); err != nil {
					t.Fatal(err)
				}
				if b > 20 {
					break
				}
			}
			libraryRead(t, db)
		})
	}
}

func changeSome(b *bbolt.Bucket, r *rand.Rand, rows int) error {
	var keys [][]byte
	if err := b.ForEach(func(k, _ []byte) error { keys = append(keys, bytes.Clone(k)); return nil }); err != nil {
		return err
	}
	for i, k := range keys {
		// In the first half nearly everything goes, so that pages are joined; in the second a row now and then.
		if i < rows/2 && r.IntN(50) > 0 || r.IntN(50) == 0 {
			if err := b.Delete(k); err != nil {
				return err
			}
		}
	}
	for range 200 {
		if err := b.Put(binary.BigEndian.AppendUint64(nil, r.Uint64N(uint64(2*rows+10))), make([]byte, r.IntN(500))); err != nil {
			return err
		}
	}
	return nil
}

// TestWriterRefuses what is no file: rows out of order, a bucket twice, a row outside of any.
func TestWriterRefuses(t *testing.T) {
	for name, write := range map[string]func(w *Writer) error{
		"out of order":   func(w *Writer) error { _ = w.Bucket("a"); _ = w.Put([]byte("b"), nil); return w.Put([]byte("a"), nil) },
		"twice":          func(w *Writer) error { _ = w.Bucket("a"); _ = w.Put([]byte("b"), nil); return w.Put([]byte("b"), nil) },
		"an empty key":   func(w *Writer) error { _ = w.Bucket("a"); return w.Put(nil, nil) },
		"a bucket twice": func(w *Writer) error { _ = w.Bucket("a"); _ = w.Bucket("b"); return w.Bucket("a") },
		"more than planned": func(w *Writer) error {
			_ = w.Bucket("a")
			_ = w.Put([]byte("b"), make([]byte, 3*writePage))
			_, err := w.Pages()
			return err
		},
		"outside of a bucket": func(w *Writer) error { return w.Put([]byte("a"), nil) },
	} {
		w := NewWriter(io.Discard, 2)
		if err := write(w); err == nil {
			t.Errorf("%s: taken", name)
		}
		if err := w.Finish(); err == nil {
			t.Errorf("%s: the file was ended as if it were whole", name)
		}
	}
}

// TestPlan: the bound holds whatever the order of the rows, and is not far off for rows that are alike.
func TestPlan(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 5))
		var plan Plan
		sizes := make([]int, r.IntN(3000))
		least, spread := r.IntN(1000), 1+r.IntN(100)<<r.IntN(9)
		for i := range sizes {
			sizes[i] = least + r.IntN(1+r.IntN(spread))
			plan.Add(18, sizes[i])
		}
		for range 3 {
			r.Shuffle(len(sizes), func(i, j int) { sizes[i], sizes[j] = sizes[j], sizes[i] })
			w := NewWriter(io.Discard, plan.Pages())
			_ = w.Bucket("a")
			for i, n := range sizes {
				_ = w.Put(binary.BigEndian.AppendUint64(make([]byte, 10), uint64(i)), make([]byte, n))
			}
			used, err := w.Pages()
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if least > 100 && spread < 100 && plan.Pages() > used+used/4+4 {
				t.Errorf("seed %d: %d pages were planned for %d", seed, plan.Pages(), used)
			}
		}
	}
}
