package transport

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A received checkpoint is built in a directory whose name ends in .tmp: each file is synced as it ends, then the
// directory; then the directory gets its final name and its parent is synced. Only what bears a final name is whole.
// Nothing in the incoming directory survives a restart, since the message that gave it a meaning does not (emptyDir).

const (
	maxFiles    = 1 << 16
	maxFileName = 512
)

// file is one file of a checkpoint; the name is relative and uses slashes.
type file struct {
	name string
	size int64
}

// listFiles names the files under dir, in order.
func listFiles(fs vfs.FS, dir, prefix string) ([]file, error) {
	names, err := fs.List(fs.PathJoin(dir, prefix))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var files []file
	for _, name := range names {
		rel := path.Join(prefix, name)
		info, err := fs.Stat(fs.PathJoin(dir, rel))
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, file{rel, info.Size()})
			continue
		}
		below, err := listFiles(fs, dir, rel)
		if err != nil {
			return nil, err
		}
		files = append(files, below...)
	}
	return files, nil
}

// checkFiles refuses lists that would write outside of the staging directory or exhaust memory.
func checkFiles(files []file) error {
	if len(files) > maxFiles {
		return fmt.Errorf("%w: a checkpoint of %d files", ErrMalformed, len(files))
	}
	seen := make(map[string]bool, len(files))
	for _, f := range files {
		if f.name == "" || len(f.name) > maxFileName || f.name != path.Clean(f.name) || path.IsAbs(f.name) ||
			f.name == "." || f.name == ".." || strings.HasPrefix(f.name, "../") || strings.ContainsAny(f.name, "\\:\x00") ||
			f.size < 0 || seen[f.name] {
			return fmt.Errorf("%w: a checkpoint with a file %q of %d bytes", ErrMalformed, f.name, f.size)
		}
		seen[f.name] = true
	}
	return nil
}

// staging receives one checkpoint.
type staging struct {
	fs     vfs.FS
	parent string
	name   string
	open   vfs.File
	crc    uint32
}

func newStaging(fs vfs.FS, parent, name string) (*staging, error) {
	s := &staging{fs: fs, parent: parent, name: name}
	if err := errors.Join(fs.RemoveAll(s.tmp()), fs.RemoveAll(s.final())); err != nil {
		return nil, err
	}
	return s, fs.MkdirAll(s.tmp(), 0o700)
}

func (s *staging) tmp() string   { return s.fs.PathJoin(s.parent, s.name+".tmp") }
func (s *staging) final() string { return s.fs.PathJoin(s.parent, s.name) }

// create begins the next file.
func (s *staging) create(name string) (err error) {
	full := s.fs.PathJoin(s.tmp(), name)
	if err := s.fs.MkdirAll(s.fs.PathDir(full), 0o700); err != nil {
		return err
	}
	s.crc = 0
	s.open, err = s.fs.Create(full, vfs.WriteCategoryUnspecified)
	return err
}

func (s *staging) write(p []byte) error {
	s.crc = crc32.Update(s.crc, castagnoli, p)
	_, err := s.open.Write(p)
	return err
}

// finish makes the open file durable.
func (s *staging) finish() error {
	err := s.open.Sync()
	err = errors.Join(err, s.open.Close())
	s.open = nil
	return err
}

// commit gives the checkpoint its final name.
func (s *staging) commit(files []file) (dir string, err error) {
	dirs := map[string]bool{"": true}
	for _, f := range files {
		for d := path.Dir(f.name); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	for d := range dirs {
		if err := syncDir(s.fs, s.fs.PathJoin(s.tmp(), d)); err != nil {
			return "", err
		}
	}
	if err := s.fs.Rename(s.tmp(), s.final()); err != nil {
		return "", err
	}
	return s.final(), syncDir(s.fs, s.parent)
}

// abort removes what was received.
func (s *staging) abort() {
	if s.open != nil {
		_ = s.open.Close()
	}
	_ = s.fs.RemoveAll(s.tmp())
	_ = s.fs.RemoveAll(s.final())
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// emptyDir makes dir exist without content, durably. Its parent must exist.
func emptyDir(fs vfs.FS, dir string) error {
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syncDir(fs, fs.PathDir(dir)); err != nil {
		return err
	}
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := fs.RemoveAll(fs.PathJoin(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// copyCheckpoint stages the files of from, on another file system, under parent/name.
func copyCheckpoint(src vfs.FS, from string, dst vfs.FS, parent, name string) (dir string, bytes int64, err error) {
	files, err := listFiles(src, from, "")
	if err != nil {
		return "", 0, err
	}
	s, err := newStaging(dst, parent, name)
	if err != nil {
		return "", 0, err
	}
	defer func() {
		if err != nil {
			s.abort()
		}
	}()
	for _, f := range files {
		if err := s.create(f.name); err != nil {
			return "", 0, err
		}
		err := readFile(src, src.PathJoin(from, f.name), f.size, func(p []byte) error { return s.write(p) })
		if err := errors.Join(err, s.finish()); err != nil {
			return "", 0, err
		}
		bytes += f.size
	}
	dir, err = s.commit(files)
	return dir, bytes, err
}

// readFile visits the first size bytes of a file in pieces; the pieces are valid until visit returns.
func readFile(fs vfs.FS, name string, size int64, visit func([]byte) error) (err error) {
	f, err := fs.Open(name, vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	piece := make([]byte, min(size, 256<<10))
	for size > 0 {
		n, err := io.ReadFull(f, piece[:min(size, int64(len(piece)))])
		if err != nil {
			return fmt.Errorf("%s is %d bytes shorter than it was: %w", name, size-int64(n), noEOF(err))
		}
		if err := visit(piece[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}
