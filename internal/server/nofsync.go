package server

import "github.com/cockroachdb/pebble/v2/vfs"

// noFsync is a file system that makes nothing durable (--unsafe-no-fsync). A process that dies loses nothing by it, since
// the operating system has the bytes; a machine that does may lose anything, in any order.
type noFsync struct{ vfs.FS }

func (f noFsync) Unwrap() vfs.FS { return f.FS }

func lazy(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return lazyFile{f}, nil
}

func (f noFsync) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return lazy(f.FS.Create(name, c))
}

func (f noFsync) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	return lazy(f.FS.Open(name, o...))
}

func (f noFsync) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return lazy(f.FS.OpenReadWrite(name, c, o...))
}

func (f noFsync) OpenDir(name string) (vfs.File, error) { return lazy(f.FS.OpenDir(name)) }

func (f noFsync) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return lazy(f.FS.ReuseForWrite(oldname, newname, c))
}

type lazyFile struct{ vfs.File }

func (lazyFile) Sync() error                { return nil }
func (lazyFile) SyncData() error            { return nil }
func (lazyFile) SyncTo(int64) (bool, error) { return false, nil }
