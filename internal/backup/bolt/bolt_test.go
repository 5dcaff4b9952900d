package bolt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// library writes a file with the library: small and large values, deletions, buckets of one page and of many.
func library(t testing.TB, keys int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: 4096, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		if err := db.Update(func(tx *bbolt.Tx) error {
			for _, name := range []string{"empty", "key", "small"} {
				b, err := tx.CreateBucketIfNotExists([]byte(name))
				if err != nil {
					return err
				}
				n := map[string]int{"key": keys, "small": 3}[name]
				for i := range n {
					key := fmt.Appendf(nil, "%s-%05d", name, i*3+round)
					if err := b.Put(key, bytes.Repeat([]byte{byte(i)}, i*i%9000)); err != nil {
						return err
					}
					if i%7 == 0 {
						if err := b.Delete(fmt.Appendf(nil, "%s-%05d", name, i)); err != nil {
							return err
						}
					}
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read is all that a file holds.
func read(b []byte) (string, error) {
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return "", err
	}
	all, err := f.Buckets()
	var out bytes.Buffer
	for _, bucket := range all {
		fmt.Fprintf(&out, "[%s]\n", bucket.Name)
		if e := bucket.Each(func(k, v []byte) error { fmt.Fprintf(&out, "%s=%x\n", k, v); return nil }); e != nil && err == nil {
			err = e
		}
	}
	return out.String(), err
}

func TestReadsWhatTheLibraryWrote(t *testing.T) {
	b := library(t, 400)
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o400, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var want bytes.Buffer
	if err := db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			fmt.Fprintf(&want, "[%s]\n", name)
			return b.ForEach(func(k, v []byte) error { fmt.Fprintf(&want, "%s=%x\n", k, v); return nil })
		})
	}); err != nil {
		t.Fatal(err)
	}
	// A snapshot has 32 bytes behind its last page.
	for _, more := range []int{0, 32} {
		got, err := read(append(bytes.Clone(b), make([]byte, more)...))
		if err != nil || got != want.String() {
			t.Errorf("with %d bytes more: %v, and other rows than the library's: %t", more, err, got != want.String())
		}
	}
}

// TestDamage cuts a file everywhere and changes every byte of what is not a user's: never is there a panic, never an end
// that does not come, and never an error of another kind.
func TestDamage(t *testing.T) {
	b := library(t, 30)
	whole, err := read(b)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	b = b[:f.Bytes()] // the library makes files longer than they need be
	for n := 0; n < len(b); n += 509 {
		if _, err := read(b[:n]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(b), err)
		}
	}
	silent := 0
	for i := range b {
		if i%4096 > 100 && i%997 != 0 { // the heads of pages byte by byte, their rest now and then
			continue
		}
		c := bytes.Clone(b)
		c[i] ^= 1 << (i % 8)
		got, err := read(c)
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if err == nil && got != whole {
			silent++ // within keys and values nothing but the hash of the whole file can tell
		}
	}
	if silent == 0 {
		t.Error("no change of a value was met: the test does not reach them")
	}
}

// TestCircle makes a branch point to itself and to its parent.
func TestCircle(t *testing.T) {
	b := library(t, 400)
	found := false
	for at := 2 * 4096; at < len(b); at += 4096 {
		p := page{b[at : at+4096]}
		if id := uint64(at / 4096); p.flags() != flagBranch || b[at] != byte(id) {
			continue
		}
		found = true
		c := bytes.Clone(b)
		copy(c[at+pageHeader+8:], c[at:at+8]) // the first child is the page itself
		if _, err := read(c); err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("page %d: %v", at/4096, err)
		}
	}
	if !found {
		t.Fatal("the file has no branch page")
	}
}

func FuzzFile(f *testing.F) {
	b := library(f, 20)
	f.Add(0, byte(1), len(b))
	f.Add(4096+16, byte(1), len(b))
	f.Fuzz(func(t *testing.T, at int, x byte, n int) {
		c := bytes.Clone(b)
		if n >= 0 && n < len(c) {
			c = c[:n]
		}
		if at >= 0 && at < len(c) {
			c[at] ^= x
		}
		if _, err := read(c); err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	})
}
