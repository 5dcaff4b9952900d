package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/trivet-kv/trivet/internal/cli"
)

// faultsVariable names a folder in the environment of this test's own binary, which then is Trivet with a disk that is as
// bad as the files in that folder say: none of the syncs of the data directory ends while "hang" is there, each takes a
// second while "slow" is, and there is no room for files with one of fullNames in their name while "full " and that is.
const faultsVariable = "TRIVET_E2E_FAULTS"

// fullNames tell the kinds of files that there may be no room for: tables and the manifest of the state, what the data
// directory says of itself, and the segments of the log.
var fullNames = []string{".sst", "MANIFEST", "member.json", "members.json", "STATE", segments}

const segments = "segments"

// called reports whether a file is of the kind.
func called(path, kind string) bool {
	if kind == segments { // by their folder: a segment is filled under another name, and renamed while it is open
		return filepath.Base(filepath.Dir(path)) == "log"
	}
	return strings.Contains(filepath.Base(path), kind)
}

// runFaulty is main of a member with such a disk.
func runFaulty(faults string) int {
	vfs.Default = faultyFS{vfs.Default, faults}
	return cli.Main(os.Args, os.Stdin, os.Stdout, os.Stderr)
}

// startFaulty starts the member with a disk of its own and returns the folder of its faults.
func (m *member) startFaulty() (faults string) {
	m.t.Helper()
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	faults = m.dir + ".faults"
	if err := os.MkdirAll(faults, 0o700); err != nil {
		m.t.Fatal(err)
	}
	m.starts++
	m.p = spawn(m.t, m.name, []string{faultsVariable + "=" + faults}, self, m.args...)
	return faults
}

// fault makes the disk bad, or good again.
func fault(t *testing.T, faults, kind string, on bool) {
	t.Helper()
	name := filepath.Join(faults, kind)
	var err error
	if on {
		err = os.WriteFile(name, nil, 0o600)
	} else {
		err = os.Remove(name)
	}
	if err != nil {
		t.Fatal(err)
	}
}

type faultyFS struct {
	vfs.FS
	faults string
}

func (f faultyFS) Unwrap() vfs.FS { return f.FS }

func (f faultyFS) has(kind string) bool {
	_, err := os.Stat(filepath.Join(f.faults, kind))
	return err == nil
}

func (f faultyFS) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return faultyFile{file, f, name}, nil
}

func (f faultyFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	return f.wrap(name, file, err)
}

func (f faultyFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, o...)
	return f.wrap(name, file, err)
}

func (f faultyFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.FS.OpenDir(name)
	return f.wrap(name, file, err)
}

func (f faultyFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(oldname, newname, c)
	return f.wrap(newname, file, err)
}

type faultyFile struct {
	vfs.File
	fs   faultyFS
	name string
}

// room returns an error if there is none for this file.
func (f faultyFile) room() error {
	for _, kind := range fullNames {
		if called(f.name, kind) && f.fs.has("full "+kind) {
			return &os.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
		}
	}
	return nil
}

func (f faultyFile) Write(p []byte) (int, error) {
	if err := f.room(); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.room(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f faultyFile) wait() {
	for f.fs.has("hang") {
		time.Sleep(10 * time.Millisecond)
	}
	if f.fs.has("slow") {
		time.Sleep(time.Second)
	}
}

func (f faultyFile) Sync() error {
	f.wait()
	return f.File.Sync()
}

func (f faultyFile) SyncData() error {
	f.wait()
	return f.File.SyncData()
}

func (f faultyFile) SyncTo(length int64) (bool, error) {
	f.wait()
	return f.File.SyncTo(length)
}

// TestHungDisk (E#10271, E#13527) lets the disk of the leader become slow, and then that of the next hang, while clients write: both lose the
// leadership and the cluster goes on, nothing that was acknowledged is lost, no watcher of any member misses or repeats an event, and the members are level again afterwards.
func TestHungDisk(t *testing.T) {
	c := newCluster(t, 3)
	faults := map[*member]string{}
	for _, m := range c.members {
		faults[m] = m.startFaulty()
	}
	for _, m := range c.members {
		m.ready(30 * time.Second)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	client := c.client()
	kept, ending := keepLeases(ctx, t, client)
	watchers := c.watchers(t)
	l := startLoad(t, client, 8, 300)
	l.reach(5)
	began := time.Now()

	slow := c.leader()
	fault(t, faults[slow], "slow", true)
	awaitAnother(t, c, slow)
	t.Logf("%5.1f s: the slow one has handed over", time.Since(began).Seconds())
	l.reach(7)
	fault(t, faults[slow], "slow", false)
	l.reach(20)

	hung := c.leader()
	fault(t, faults[hung], "hang", true)
	awaitAnother(t, c, hung)
	t.Logf("%5.1f s: the hung one has handed over", time.Since(began).Seconds())
	l.reach(60) // with one member that answers nothing
	alone := c.client(hung)
	if status, err := hung.status(); err != nil || status.Leader == status.Header.MemberId {
		t.Errorf("the status of the member whose disk hangs: %v, %v", status, err)
	}
	if _, err := alone.Get(ctx, "load/", clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithSerializable()); err != nil {
		t.Errorf("a serializable read through the member whose disk hangs: %v", err)
	}
	if _, err := alone.Put(ctx, "k", "v"); err == nil || !strings.Contains(err.Error(), "the disk of this member does not answer") &&
		!strings.Contains(err.Error(), "waiting for the applied index") {
		t.Errorf("a put through the member whose disk hangs: %v", err)
	}
	fault(t, faults[hung], "hang", false)
	t.Logf("%5.1f s: it answers again", time.Since(began).Seconds())
	l.reach(100)
	l.writers.Wait()
	for _, m := range c.members {
		l.verify(t, m.name, c.client(m))
	}
	t.Logf("%5.1f s: %d writes, %d tries failed", time.Since(began).Seconds(), l.total, l.retries.Load())
	checkLeases(ctx, t, client, kept, ending)
	revision := c.agree(30 * time.Second)
	for _, w := range watchers { // also that of the member whose disk hung
		w.reach(t, revision, patience)
	}
}

// awaitAnother waits until the others follow somebody else.
func awaitAnother(t *testing.T, c *cluster, not *member) {
	t.Helper()
	rest := c.others(not)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		leaders := map[uint64]bool{}
		for _, m := range rest {
			if status, err := m.status(); err == nil && status.Leader != 0 {
				leaders[status.Leader] = true
			}
		}
		old, err := not.status()
		if err == nil && len(leaders) == 1 && !leaders[old.Header.MemberId] {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody else leads: %v", leaders)
		}
	}
}

// TestStopOnHungDisk: a member whose disk hangs ends when it is told to, with status 1 and a sentence, and comes back.
func TestStopOnHungDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("a stop gives the disk about 20 s")
	}
	c := newCluster(t, 1)
	m := c.members[0]
	faults := m.startFaulty()
	m.ready(30 * time.Second)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := c.client().Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	fault(t, faults, "hang", true)
	if status := m.p.stop(time.Minute); status != 1 {
		t.Errorf("it ended with status %d, want 1", status)
	}
	if said := sentences(m.p.output()); len(said) != 1 || !strings.Contains(said[0], "the disk is slow or hangs") {
		t.Errorf("it said: %s", strings.Join(said, "\n"))
	}
	c.start(m)
	if got, err := c.client().Get(ctx, "k"); err != nil || len(got.Kvs) != 1 {
		t.Errorf("the key is %v, %v", got, err)
	}
}
