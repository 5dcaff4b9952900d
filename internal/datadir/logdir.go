package datadir

import (
	"errors"
	"fmt"
	"io/fs"
)

func (d *Dir) logIn(logDir string) string {
	if logDir == "" {
		return d.join(logName)
	}
	return d.fs.PathJoin(logDir, logName)
}

// UseLog says where the log is: in a directory of its own, an absolute path, or in the data directory if logDir is empty.
// It is called once, after Open and before anything else. The directory is taken like the data directory. A member whose
// log was moved, as its owner may while it is stopped, is followed; but where its log is in two places nobody can tell
// which one is right, and one that is in neither is lost: both are refused.
func (d *Dir) UseLog(logDir string) error {
	if logDir != "" {
		if err := d.takeLogDir(logDir); err != nil {
			return err
		}
	}
	d.logDir = logDir
	here, err := d.hasLog(logDir)
	if err != nil {
		return err
	}
	id := d.Identity
	if id == nil {
		if here {
			return fmt.Errorf("%s holds the log of a member, and the data directory %s is empty: give the data directory that belongs to it, or an empty directory for the log", logDir, d.path)
		}
		return nil
	}
	if err := errors.Join(d.checkLogOwner(), d.removeDamagedLog()); err != nil {
		return err
	}
	if id.LogDir == logDir {
		return nil
	}
	before, err := d.hasLog(id.LogDir)
	if err != nil {
		return err
	}
	if id.HasLog && (before || !here) {
		return fmt.Errorf("the log of this member is in %s, not in %s: give the --wal-dir that it was started with (none, if it is in the data directory), or stop the member and move the folder",
			d.logIn(id.LogDir), d.logIn(logDir))
	}
	moved := *id
	moved.LogDir = logDir
	if err := d.claimLogDir(moved); err != nil {
		return err
	}
	if err := d.writeIdentity(moved); err != nil {
		return fmt.Errorf("record where the log is: %w", err)
	}
	d.Identity = &moved
	return nil
}

// takeLogDir makes the directory, if there is none, and locks it.
func (d *Dir) takeLogDir(dir string) error {
	d.noteMissing(dir)
	if err := d.fs.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the directory for the log: %w", err)
	}
	if err := syncDir(d.fs, d.fs.PathDir(dir)); err != nil {
		return fmt.Errorf("make the directory for the log: %w", err)
	}
	d.noteMissing(d.fs.PathJoin(dir, lockName))
	lock, err := d.fs.Lock(d.fs.PathJoin(dir, lockName))
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		return fmt.Errorf("take the directory %s for the log: %w; give one that can be written", dir, err)
	}
	if err != nil {
		return fmt.Errorf("%s: the directory for the log is in use by another process (%w); give each member one of its own", dir, err)
	}
	d.logLock = lock
	return nil
}

func (d *Dir) hasLog(logDir string) (bool, error) {
	names, err := d.fs.List(d.logIn(logDir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return len(names) > 0, err
}

// checkLogOwner refuses another member's log.
func (d *Dir) checkLogOwner() error {
	if d.logDir == "" {
		return nil
	}
	owner, err := readIdentity(d.fs, d.logDir)
	if err != nil || owner == nil {
		return err // a log that was moved here has no owner yet
	}
	if owner.ClusterID != d.Identity.ClusterID || owner.MemberID != d.Identity.MemberID {
		return fmt.Errorf("%s holds the log of the member %q (%x of the cluster %x), and the data directory %s is that of %q (%x of %x): give each member a --wal-dir of its own",
			d.logDir, owner.Name, owner.MemberID, owner.ClusterID, d.path, d.Identity.Name, d.Identity.MemberID, d.Identity.ClusterID)
	}
	return nil
}

// claimLogDir writes into the directory of the log, if it has one, whose it is.
func (d *Dir) claimLogDir(id Identity) error {
	if d.logDir == "" {
		return nil
	}
	if err := writeIdentity(d.fs, d.logDir, id); err != nil {
		return fmt.Errorf("mark the directory of the log: %w", err)
	}
	return nil
}
