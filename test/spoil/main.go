// Command spoil changes the state of a member that is stopped, so that tests can see what members do whose data is not what
// the log made of it. It owns nothing and knows one thing of the house: the rows of keys. It is built by tests alone and is
// no part of the product; nothing in a member knows of it. What it leaves is well-formed, with right checksums: damage to
// bytes needs no help of the engine.
//
//	spoil rewind DATA-DIR KEY           takes the newest version of a key away, as if that write had been lost
//	spoil change DATA-DIR KEY OLD NEW   puts NEW where the newest value of a key has OLD; both are equally long
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "spoil:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "rewind":
		return edit(args[1], args[2], func(b *engine.Batch, key, _ []byte) error { return b.Delete(key) })
	case len(args) == 5 && args[0] == "change" && len(args[3]) == len(args[4]):
		return edit(args[1], args[2], func(b *engine.Batch, key, row []byte) error {
			if !bytes.Contains(row, []byte(args[3])) {
				return fmt.Errorf("the newest value of %s has no %q", args[2], args[3])
			}
			return b.Set(key, bytes.Replace(row, []byte(args[3]), []byte(args[4]), 1))
		})
	}
	return errors.New("usage: spoil rewind DATA-DIR KEY, or spoil change DATA-DIR KEY OLD NEW with OLD and NEW equally long")
}

// edit calls f with the row of a key's newest version and makes what it did durable.
func edit(path, key string, f func(b *engine.Batch, key, row []byte) error) (err error) {
	dir, err := datadir.Open(vfs.Default, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	state, err := dir.State()
	if err != nil {
		return err
	}
	e, err := engine.Open(engine.Options{Dir: state, MustExist: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	it, err := e.NewIter(engine.VersionBounds(kv.Range{Key: []byte(key)}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.First() {
		return errors.Join(it.Err(), fmt.Errorf("%s holds no key %s", path, key))
	}
	b := e.NewBatch()
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := f(b, slices.Clone(it.Key()), slices.Clone(it.Value())); err != nil {
		return err
	}
	return errors.Join(b.Commit(), e.Flush())
}
