package transport

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

func snapshotOf(from, to, index uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: new(from), To: new(to), Term: new(uint64(3)), Snapshot: &raftpb.Snapshot{
		Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(uint64(2)), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}}},
	}}
}

var checkpointFiles = map[string][]byte{
	"CURRENT":      []byte("MANIFEST-000001\n"),
	"empty":        {},
	"000001.sst":   bytes.Repeat([]byte("sst "), 200_000),
	"sub/dir/file": []byte("deep"),
}

func writeCheckpoint(t *testing.T, fs vfs.FS, dir string) {
	t.Helper()
	for name, content := range checkpointFiles {
		full := fs.PathJoin(dir, name)
		if err := fs.MkdirAll(fs.PathDir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := fs.Create(full, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(bytes.Clone(content)) // MemFS may scribble over it
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func compareCheckpoint(t *testing.T, fs vfs.FS, dir string) {
	t.Helper()
	files, err := listFiles(fs, dir, "")
	if err != nil || len(files) != len(checkpointFiles) {
		t.Fatalf("%d files arrived (%v)", len(files), err)
	}
	for _, file := range files {
		f, err := fs.Open(fs.PathJoin(dir, file.name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, checkpointFiles[file.name]) {
			t.Errorf("%s differs: %d bytes", file.name, len(got))
		}
	}
}

func TestSendSnapshot(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := newPipes()
		a, b := startPeer(t, p, 1, nil), startPeer(t, p, 2, nil)
		defer a.Close()
		defer b.Close()
		writeCheckpoint(t, a.fs, "checkpoint")
		result := make(chan error, 1)
		done := func(err error) { result <- err }

		a.SendSnapshot(snapshotOf(1, 2, 10), "checkpoint", done)
		if err := <-result; err != nil {
			t.Fatalf("%v\n%s", err, b.log)
		}
		// What was announced to the handler survives a crash with all its files.
		compareCheckpoint(t, b.fs.CrashClone(vfs.CrashCloneCfg{}), b.snapshots[0])

		b.refuse = errors.New("not now")
		a.SendSnapshot(snapshotOf(1, 2, 11), "checkpoint", done)
		if err := <-result; err == nil || !strings.Contains(err.Error(), "not now") {
			t.Errorf("refused by the handler: %v", err)
		}
		b.refuse = nil
		a.SendSnapshot(snapshotOf(1, 2, 12), "nowhere", done)
		if err := <-result; err == nil {
			t.Error("a checkpoint that is not there was sent")
		}
		a.SendSnapshot(snapshotOf(1, 9, 12), "checkpoint", done)
		if err := <-result; !errors.Is(err, ErrUnknownPeer) {
			t.Errorf("to a stranger: %v", err)
		}
		a.SendSnapshot(snapshotOf(1, 3, 12), "checkpoint", done)
		if err := <-result; err == nil {
			t.Error("sent to a member that is not there")
		}
		names, err := b.fs.List("incoming")
		if err != nil || len(names) != 1 {
			t.Errorf("what came to nothing was left behind: %v, %v", names, err)
		}
		b.Close()
		// The next start clears what nobody will ask for any more.
		again := startPeer(t, newPipes(), 2, func(c *Config) { c.FS = b.fs })
		defer again.Close()
		if names, err := b.fs.List("incoming"); err != nil || len(names) != 0 {
			t.Errorf("after a restart there is %v, %v", names, err)
		}
	})
}

// TestSnapshotInterrupted: a sender that dies in the middle leaves nothing, and a receiver that dies lets the sender know.
func TestSnapshotInterrupted(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := newPipes()
		a, b := startPeer(t, p, 1, nil), startPeer(t, p, 2, nil)
		writeCheckpoint(t, a.fs, "checkpoint")
		result := make(chan error, 1)
		slow := &slowFS{FS: a.fs, read: 100 * time.Millisecond}
		a.c.FS = slow
		a.SendSnapshot(snapshotOf(1, 2, 10), "checkpoint", func(err error) { result <- err })
		time.Sleep(250 * time.Millisecond)
		a.Close()
		if err := <-result; err == nil {
			t.Error("sent, though the sender was closed")
		}
		time.Sleep(time.Second)
		if names, err := b.fs.List("incoming"); err != nil || len(names) != 0 || len(b.snapshots) != 0 {
			t.Errorf("half a checkpoint is left: %v, %v", names, err)
		}
		a = startPeer(t, p, 1, func(c *Config) { c.FS = slow })
		defer a.Close()
		time.Sleep(time.Second)
		a.SendSnapshot(snapshotOf(1, 2, 10), "checkpoint", func(err error) { result <- err })
		time.Sleep(250 * time.Millisecond)
		b.Close()
		if err := <-result; err == nil {
			t.Error("sent, though the receiver was closed")
		}
	})
}

type slowFS struct {
	vfs.FS
	read time.Duration
}

func (s *slowFS) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := s.FS.Open(name, o...)
	if err != nil {
		return nil, err
	}
	return slowFile{f, s.read}, nil
}

type slowFile struct {
	vfs.File
	read time.Duration
}

func (f slowFile) Read(p []byte) (int, error) {
	time.Sleep(f.read)
	return f.File.Read(p)
}

// TestStagingCrash: at whatever step of receiving a crash comes, a directory with a final name is whole.
func TestStagingCrash(t *testing.T) {
	src := vfs.NewMem()
	writeCheckpoint(t, src, "checkpoint")
	dst := vfs.NewCrashableMem()
	if err := errors.Join(dst.MkdirAll("incoming", 0o700), syncDir(dst, "")); err != nil {
		t.Fatal(err)
	}
	steps := 0
	watch := &stepFS{FS: dst, step: func() {
		steps++
		after := dst.CrashClone(vfs.CrashCloneCfg{})
		names, err := after.List("incoming")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !strings.HasSuffix(name, ".tmp") {
				compareCheckpoint(t, after, after.PathJoin("incoming", name))
			}
		}
	}}
	dir, _, err := copyCheckpoint(src, "checkpoint", watch, "incoming", "x")
	if err != nil {
		t.Fatal(err)
	}
	compareCheckpoint(t, dst.CrashClone(vfs.CrashCloneCfg{}), dir)
	if steps < 10 {
		t.Errorf("only %d steps were looked at", steps)
	}
}

// stepFS calls step after everything that changes the disk.
type stepFS struct {
	vfs.FS
	step func()
}

func (s *stepFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, c)
	s.step()
	return stepFile{f, s}, err
}

func (s *stepFS) Rename(from, to string) error {
	err := s.FS.Rename(from, to)
	s.step()
	return err
}

func (s *stepFS) OpenDir(name string) (vfs.File, error) {
	f, err := s.FS.OpenDir(name)
	return stepFile{f, s}, err
}

type stepFile struct {
	vfs.File
	s *stepFS
}

func (f stepFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.s.step()
	return n, err
}

func (f stepFile) Sync() error {
	err := f.File.Sync()
	f.s.step()
	return err
}
