package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// Place says which member of which new cluster a data directory is made for.
type Place struct {
	DataDir   string
	LogDir    string // of its own for the log, empty: none; it must not exist, or be empty
	Identity  datadir.Identity
	Members   []member.Member // the founding members, this one among them
	ConfState []byte          // of raft, with them as voters
}

// Restore makes a data directory for a member of a new cluster out of a file. All members of it must be made from the same
// file with the same bump. The directory must not exist, or be empty; it is made under another name beside and gets its own
// at the end, so whatever happens it is whole or not there.
func Restore(ctx context.Context, f *File, p Place, bump int64) (Imported, error) {
	var im Imported
	err := p.make(func(stateDir string) (err error) {
		e, err := engine.Open(engine.Options{Dir: stateDir})
		if err != nil {
			return err
		}
		if im, err = f.Import(ctx, e, bump); err == nil {
			err = fsm.Bootstrap(e, p.Members, p.ConfState)
		}
		return errors.Join(err, e.Close())
	})
	return im, err
}

// make makes the directory, with the state that build makes.
func (p *Place) make(build func(stateDir string) error) error {
	path, err := filepath.Abs(p.DataDir)
	if err != nil {
		return err
	}
	if err := empty("data directory", path); err != nil {
		return err
	}
	logDir := ""
	if p.LogDir != "" {
		if logDir, err = filepath.Abs(p.LogDir); err != nil {
			return err
		}
		if err := empty("directory for the log", logDir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	part, err := os.MkdirTemp(filepath.Dir(path), filepath.Base(path)+".part-")
	if err != nil {
		return err
	}
	err = p.fill(part, logDir, build)
	if err == nil {
		if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		err = errors.Join(err, os.RemoveAll(part))
		if logDir != "" {
			err = errors.Join(err, os.RemoveAll(logDir)) // it was empty, or not there
		}
		return err
	}
	return syncDir(filepath.Dir(path))
}

func (p *Place) fill(part, logDir string, build func(string) error) error {
	dir, err := datadir.Open(vfs.Default, part)
	if err != nil {
		return err
	}
	if err := dir.UseLog(logDir); err != nil {
		return errors.Join(err, dir.Close())
	}
	return errors.Join(dir.Create(p.Identity, build), dir.Close())
}

// empty refuses a directory that holds something.
func empty(what, path string) error {
	names, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("the %s %s: %w; give one that does not exist", what, path, err)
	case len(names) > 0:
		return fmt.Errorf("the %s %s is not empty, and nothing in it was touched: give one that does not exist", what, path)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// HashKV is what etcd's HashKV says of a file.
type HashKV struct {
	Hash            uint32 `json:"hash"`
	HashRevision    int64  `json:"hashRevision"`
	CompactRevision int64  `json:"compactRevision"`
}

// ReadHashKV computes the hash of a file's history up to a revision (0: the newest). It makes a store of the file in a
// temporary directory and removes it again.
func ReadHashKV(ctx context.Context, path string, rev int64) (h HashKV, err error) {
	f, err := openAny(path)
	if err != nil {
		return h, err
	}
	defer f.Close()
	tmp, err := os.MkdirTemp("", "trivet-hashkv-")
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	e, err := engine.Open(engine.Options{Dir: tmp})
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	if _, err := f.Import(ctx, e, 0); err != nil {
		return h, err
	}
	store, err := mvcc.Open(e, mvcc.Options{})
	if err != nil {
		return h, err
	}
	h.Hash, h.CompactRevision, h.HashRevision, err = store.HashKV(ctx, rev)
	if err != nil {
		return h, fmt.Errorf("revision %d: %w", rev, err)
	}
	return h, nil
}
