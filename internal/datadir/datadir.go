// Package datadir owns the layout of a member's data directory: who the directory belongs to, which folder holds the log
// and which of the state folders is the current one.
//
//	LOCK          held by the process that serves the directory
//	member.json   the identity, written last when a member is founded: a directory without it never served
//	members.json  the members as last known, for a member whose state is lost (KeepMembers)
//	log/          the raft log (package raftlog)
//	log.damaged/  the log that a rebuild has replaced (rebuild.go); removed at the next start
//	STATE         one line, the name of the current state folder; replaced by rename
//	state-N/      the state engine (package engine)
//	incoming/     checkpoints being received; emptied at every start
//	checkpoints/  checkpoints made for members that are far behind; emptied at every start
//
// The log may be in a directory of its own instead, which then has a LOCK and a copy of member.json beside log/, so that
// no two members take it and none takes another's (UseLog).
//
// Every file written here is complete and durable before it is renamed to its name, so a crash leaves the old one or the
// new one. It never looks into the log or the state.
package datadir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FormatVersion is the version of member.json and of the layout.
const FormatVersion = 1

const (
	lockName        = "LOCK"
	identityName    = "member.json"
	membersName     = "members.json"
	stateName       = "STATE"
	logName         = "log"
	incomingName    = "incoming"
	checkpointsName = "checkpoints"
	snapshotsName   = "snapshots"
	statePrefix     = "state-"
)

// Errors of Open and Create. Their texts say what to do.
var (
	ErrLocked = errors.New("the data directory is in use by another process")
	ErrEtcd   = errors.New("the data directory holds the data of an etcd member; nothing in it was touched: " +
		"give another --data-dir, made from this one by trivet utl migrate --data-dir THIS --output-dir OTHER once that etcd is stopped")
	ErrLostIdentity = errors.New("the data directory holds a log but no member.json, so it cannot be told whose it is: " +
		"put the file back from a copy, or move the directory away to let the member begin empty")
	// ErrLostState is wrapped by State when the current state folder is gone or cannot be told.
	ErrLostState = errors.New("the state is lost")
)

// Identity says whose directory it is. It never changes once written.
type Identity struct {
	Version   int      `json:"version"`
	ClusterID uint64   `json:"cluster_id"`
	MemberID  uint64   `json:"member_id"`
	Name      string   `json:"name"`
	Token     string   `json:"cluster_token"`
	PeerURLs  []string `json:"peer_urls"` // as they were when the member was founded
	// HasLog is set once the log was made, before anything that stands in it is promised to others. From then on a
	// directory without a log has lost it.
	HasLog bool `json:"has_log"`
	// LogDir is the directory of its own that the log is in (UseLog); empty: it is in the data directory.
	LogDir string `json:"log_dir,omitempty"`
	// Rebuild, if not empty, says why log and state are not to be trusted: they are to be replaced by those of another
	// member before this one takes part (BeginRebuild).
	Rebuild string `json:"rebuild,omitempty"`
}

// Dir is a data directory that this process holds, or only looks at.
type Dir struct {
	fs   vfs.FS
	path string
	lock io.Closer // nil when opened for looking

	logDir  string    // of its own, for the log; empty: none
	logLock io.Closer // of logDir; nil if there is none, or when opened for looking

	made []string // what Open and UseLog made, outermost first; forgotten once Create begins

	// Identity is nil until Create was called, in a directory that is new.
	Identity *Identity
}

// Open takes the directory for this process, making it if there is none, and clears away what a crash left half done.
// It returns ErrLocked, ErrEtcd or ErrLostIdentity, wrapped with the path.
func Open(fsys vfs.FS, path string) (*Dir, error) {
	if err := refuseEtcd(fsys, path); err != nil {
		return nil, err
	}
	d := &Dir{fs: fsys, path: path}
	d.noteMissing(path)
	if err := fsys.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w; give a --data-dir that can be made and written", err)
	}
	if err := syncDir(fsys, fsys.PathDir(path)); err != nil {
		return nil, fmt.Errorf("make the data directory: %w; give a --data-dir that can be made and written", err)
	}
	d.noteMissing(d.join(lockName))
	lock, err := fsys.Lock(d.join(lockName))
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		return nil, fmt.Errorf("take the data directory %s: %w; give a --data-dir that can be written", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w (%w); stop that one, or give another --data-dir", path, ErrLocked, err)
	}
	d.lock = lock
	if err := d.recover(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

// Look opens the directory for reading, without taking it and without changing a byte. The member should be stopped.
func Look(fsys vfs.FS, path string) (*Dir, error) {
	if err := refuseEtcd(fsys, path); err != nil {
		return nil, err
	}
	d := &Dir{fs: fsys, path: path}
	if err := d.readIdentity(); err != nil {
		return nil, err
	}
	if d.Identity == nil {
		return nil, fmt.Errorf("%s is no data directory of a member: it has no %s", path, identityName)
	}
	d.logDir = d.Identity.LogDir
	return d, nil
}

// noteMissing remembers that path, and the directories above it that are missing too, are about to be made.
func (d *Dir) noteMissing(path string) {
	var missing []string
	for {
		if _, err := d.fs.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, path)
		above := d.fs.PathDir(path)
		if above == path || above == "." {
			break
		}
		path = above
	}
	slices.Reverse(missing)
	d.made = append(d.made, missing...)
}

// Abandon lets go of the directory like Close. If Create was never called, what this process made is taken away first, as
// far as it is empty: what was there before, or was put there by somebody else, stays.
func (d *Dir) Abandon() error {
	if d.Identity == nil {
		for _, path := range slices.Backward(d.made) {
			_ = d.fs.Remove(path) // an empty folder that stays does no harm
		}
	}
	return d.Close()
}

// Close lets go of the directory.
func (d *Dir) Close() error {
	var errs []error
	for _, l := range []io.Closer{d.logLock, d.lock} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// Log is the folder of the raft log.
func (d *Dir) Log() string { return d.logIn(d.logDir) }

// Incoming is the folder for checkpoints being received, Checkpoints the one for those made for others.
func (d *Dir) Incoming() string { return d.join(incomingName) }

// Checkpoints is the folder for checkpoints made here for other members.
func (d *Dir) Checkpoints() string { return d.join(checkpointsName) }

// State returns the current state folder. It wraps ErrLostState if that is gone or cannot be told.
func (d *Dir) State() (string, error) {
	b, err := d.readFile(stateName)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrLostState, err)
	}
	if err != nil {
		return "", fmt.Errorf("find the current state folder: %w", err)
	}
	name := strings.TrimSpace(string(b))
	if n, err := strconv.Atoi(strings.TrimPrefix(name, statePrefix)); err != nil || n < 1 || name != statePrefix+strconv.Itoa(n) {
		return "", fmt.Errorf("%w: %s is damaged: it holds %q, which names no state folder; put it back from a copy, or write the name of the newest state folder into it",
			ErrLostState, d.join(stateName), name)
	}
	if _, err := d.fs.Stat(d.join(name)); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: the state folder %s is gone: put it back from a copy, or remove the member from the cluster and add it again with an empty data directory (the other members hold everything)",
			ErrLostState, d.join(name))
	}
	return d.join(name), nil
}

// Create founds a member: build is called with the folder in which the first state is to be made, durably, and then the
// identity is written. A crash before the end leaves a directory in which Create can be called again.
func (d *Dir) Create(id Identity, build func(stateDir string) error) error {
	if d.Identity != nil {
		panic("datadir: the member was founded already")
	}
	d.made = nil // from here on a half-made member is for the next Open to judge
	name := statePrefix + "1"
	if err := d.fs.MkdirAll(d.join(name), 0o700); err != nil {
		return err
	}
	if err := build(d.join(name)); err != nil {
		return err
	}
	if err := d.writeFile(stateName, []byte(name+"\n")); err != nil {
		return err
	}
	id.Version, id.LogDir = FormatVersion, d.logDir
	if err := d.claimLogDir(id); err != nil {
		return err
	}
	if err := d.writeIdentity(id); err != nil {
		return err
	}
	d.Identity = &id
	return nil
}

// LogMade records that there is a log, durably. It is called after the log was opened and before anything is promised
// that stands in it.
func (d *Dir) LogMade() error {
	if d.Identity.HasLog {
		return nil
	}
	id := *d.Identity
	id.HasLog = true
	if err := d.writeIdentity(id); err != nil {
		return fmt.Errorf("record that there is a log: %w", err)
	}
	d.Identity = &id
	return nil
}

func (d *Dir) writeIdentity(id Identity) error {
	return writeIdentity(d.fs, d.path, id)
}

func writeIdentity(fsys vfs.FS, dir string, id Identity) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(fsys, dir, identityName, append(b, '\n'))
}

// Replace makes the folder staged, which must be complete and durable and on the same file system, the current state.
// After it returns, staged is gone and a start opens the new state; the old state's folder is left for its reader to
// close and is removed by Prune or at the next start.
func (d *Dir) Replace(staged string) (string, error) {
	n, err := d.newestState()
	if err != nil {
		return "", err
	}
	name := statePrefix + strconv.Itoa(n+1)
	if err := d.fs.RemoveAll(d.join(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := d.fs.Rename(staged, d.join(name)); err != nil {
		return "", err
	}
	if err := d.sync(); err != nil {
		return "", err
	}
	if err := d.writeFile(stateName, []byte(name+"\n")); err != nil {
		return "", err
	}
	return d.join(name), nil
}

// newestState is the number of the current state folder, or, if that is lost, the highest that there is.
func (d *Dir) newestState() (int, error) {
	current, err := d.State()
	if err == nil {
		return strconv.Atoi(strings.TrimPrefix(d.fs.PathBase(current), statePrefix))
	}
	if !errors.Is(err, ErrLostState) {
		return 0, err
	}
	names, err := d.fs.List(d.path)
	newest := 0
	for _, name := range names {
		if number, ok := strings.CutPrefix(name, statePrefix); ok {
			if n, err := strconv.Atoi(number); err == nil {
				newest = max(newest, n)
			}
		}
	}
	return newest, err
}

// Prune removes every state folder but the current one.
func (d *Dir) Prune() error {
	current, err := d.State()
	if err != nil {
		return err
	}
	return d.removeStates(d.fs.PathBase(current))
}

func (d *Dir) recover() error {
	if err := d.readIdentity(); err != nil {
		return err
	}
	// Older binaries made snapshots for clients in a folder.
	if err := d.fs.RemoveAll(d.join(snapshotsName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range []string{incomingName, checkpointsName} {
		d.noteMissing(d.join(name))
		if err := d.fs.RemoveAll(d.join(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := d.fs.MkdirAll(d.join(name), 0o700); err != nil {
			return err
		}
	}
	if d.Identity != nil {
		if err := d.Prune(); !errors.Is(err, ErrLostState) { // then whoever opens the state is told
			return err
		}
		return nil
	}
	if names, err := d.fs.List(d.Log()); err == nil && len(names) > 0 {
		return fmt.Errorf("%s: %w", d.path, ErrLostIdentity)
	}
	return d.removeStates("")
}

func (d *Dir) removeStates(except string) error {
	names, err := d.fs.List(d.path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, statePrefix) && name != except {
			if err := d.fs.RemoveAll(d.join(name)); err != nil {
				return fmt.Errorf("remove an old state folder: %w", err)
			}
		}
	}
	return nil
}

func (d *Dir) readIdentity() error {
	id, err := readIdentity(d.fs, d.path)
	d.Identity = id
	return err
}

// readIdentity returns nil if the directory has none.
func readIdentity(fsys vfs.FS, dir string) (*Identity, error) {
	name := fsys.PathJoin(dir, identityName)
	b, err := readFile(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var id Identity
	if err := json.Unmarshal(b, &id); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; put it back from a copy", name, err)
	}
	if id.Version != FormatVersion {
		return nil, fmt.Errorf("%s has version %d; this binary knows %d: use the binary that wrote it or a newer one",
			name, id.Version, FormatVersion)
	}
	return &id, nil
}

func (d *Dir) join(name string) string { return d.fs.PathJoin(d.path, name) }

func (d *Dir) readFile(name string) ([]byte, error) { return readFile(d.fs, d.join(name)) }

func readFile(fsys vfs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func (d *Dir) writeFile(name string, content []byte) error {
	return writeFile(d.fs, d.path, name, content)
}

// writeFile puts a file in place so that a crash leaves the old content or the new.
func writeFile(fsys vfs.FS, dir, name string, content []byte) error {
	next := fsys.PathJoin(dir, name+".next")
	f, err := fsys.Create(next, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := fsys.Rename(next, fsys.PathJoin(dir, name)); err != nil {
		return err
	}
	return syncDir(fsys, dir)
}

func (d *Dir) sync() error { return syncDir(d.fs, d.path) }

func syncDir(fsys vfs.FS, dir string) error {
	f, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// refuseEtcd reports a directory in which etcd keeps its data: it has a folder member with snap or wal in it, or is that
// folder.
func refuseEtcd(fsys vfs.FS, path string) error {
	for _, dir := range []string{fsys.PathJoin(path, "member"), path} {
		names, err := fsys.List(dir)
		if err != nil {
			continue
		}
		snap, wal := slices.Contains(names, "snap"), slices.Contains(names, "wal")
		if snap && wal || dir != path && (snap || wal) {
			return fmt.Errorf("%s: %w", path, ErrEtcd)
		}
	}
	return nil
}
