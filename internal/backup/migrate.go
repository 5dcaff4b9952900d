package backup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/alarm"
	"github.com/trivet-kv/trivet/internal/backup/bolt"
	"github.com/trivet-kv/trivet/internal/backup/wal"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// EtcdDir is the data directory of a stopped etcd.
type EtcdDir struct {
	Path string
	WAL  string // of its own, if it has one
	// Wait is how long to wait for the process that serves it; 0: without end.
	Wait time.Duration
	// Translate makes a command of a request in etcd's log; nil for one that changes no state of users.
	Translate func(request []byte) (*command.Command, error)
}

// Migrated is what a directory held.
type Migrated struct {
	Imported
	StateIndex          uint64 // the entry that etcd's database had come to
	LastIndex, LastTerm uint64 // the last entry of the log
	Entries             int    // of the log that were applied here
	Uncommitted         int    // of them, those that the member did not know to be committed
}

// Migrate makes a data directory out of that of a stopped etcd, in which it changes nothing: its database, and the entries
// of its log that the database does not have. All of them are taken, also those that the member did not know to be
// committed: for a cluster of one they are, and in a larger one what was acknowledged is in the longest log, known to be
// committed or not.
func Migrate(ctx context.Context, from EtcdDir, p Place) (m Migrated, err error) {
	f, unlock, err := from.open(ctx)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, unlock(), f.Close()) }()
	log, err := from.readLog(f, &m)
	if err != nil {
		return m, err
	}
	err = p.make(func(stateDir string) error {
		e, err := engine.Open(engine.Options{Dir: stateDir})
		if err != nil {
			return err
		}
		if m.Imported, err = f.Import(ctx, e, 0); err == nil {
			err = fsm.Bootstrap(e, p.Members, p.ConfState)
		}
		if err == nil {
			err = from.applyTail(f, e, log, &m)
		}
		return errors.Join(err, e.Close())
	})
	return m, err
}

// open opens the database and keeps etcd from starting.
func (d *EtcdDir) open(ctx context.Context) (*File, func() error, error) {
	path := filepath.Join(d.Path, "member", "snap", "db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%s is no data directory of etcd: it has no member/snap/db", d.Path)
	}
	unlock, err := lock(ctx, path, d.Wait)
	if err != nil {
		return nil, nil, err
	}
	f, err := open(path, func(_ *os.File, size int64) (int64, error) { return size, nil })
	if err != nil {
		return nil, nil, errors.Join(err, unlock())
	}
	return f, unlock, nil
}

// lockEvery is how often a lock is tried.
const lockEvery = 100 * time.Millisecond

// lock takes the database for reading as bbolt does: a running etcd has it for writing.
func lock(ctx context.Context, path string, wait time.Duration) (unlock func() error, err error) {
	begin := time.Now()
	for {
		unlock, err := tryLock(path)
		if !errors.Is(err, errLocked) {
			return unlock, err
		}
		if wait > 0 && time.Since(begin) >= wait {
			return nil, fmt.Errorf("%s: %w: stop that etcd first (nothing was changed)", path, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(min(lockEvery, max(wait, time.Millisecond))):
		}
	}
}

var errLocked = errors.New("a process serves it")

// readLog reads what the log has and the database has not.
func (d *EtcdDir) readLog(f *File, m *Migrated) (wal.Log, error) {
	row, err := f.get(bucketMeta, metaIndex)
	if err != nil {
		return wal.Log{}, f.wrap(err)
	}
	if len(row) == 8 {
		m.StateIndex = binary.BigEndian.Uint64(row)
	}
	dir := d.WAL
	if dir == "" {
		dir = filepath.Join(d.Path, "member", "wal")
	}
	log, err := wal.Read(dir, m.StateIndex)
	if err != nil {
		return log, err
	}
	if log.Snapshot > m.StateIndex && log.Snapshot <= log.Commit {
		return log, fmt.Errorf("%s: etcd was stopped while it took over the state of another member (up to entry %d, the database is at %d): start it once, let it become ready and stop it, or take the directory of another member",
			d.Path, log.Snapshot, m.StateIndex)
	}
	// etcd syncs its log before what the database and the commit index say, and a snapshot stands for all before it.
	if end := max(log.Last, log.Snapshot); end < max(m.StateIndex, log.Commit) {
		return log, fmt.Errorf("%w: %s ends at entry %d, but the database is at entry %d and entries up to %d were committed: take the directory of another member, or make one of the database alone with trivet utl snapshot restore --skip-hash-check %s, which loses what only the log had",
			wal.ErrDamaged, dir, end, m.StateIndex, log.Commit, filepath.Join(d.Path, "member", "snap", "db"))
	}
	m.LastIndex = m.StateIndex
	return log, nil
}

// applyTail applies the entries of etcd's log to the state as etcd would. Alarms count while that is done.
func (d *EtcdDir) applyTail(f *File, e *engine.Engine, log wal.Log, m *Migrated) error {
	if len(log.Entries) == 0 {
		return nil
	}
	if err := readAlarms(f, e); err != nil {
		return f.wrap(err)
	}
	s, err := fsm.Open(e, mvcc.Options{})
	if err != nil {
		return err
	}
	for _, entry := range log.Entries {
		if err := d.applyOne(s, entry); err != nil {
			return fmt.Errorf("entry %d of etcd's log: %w", entry.Index, err)
		}
		m.Entries++
		m.LastIndex, m.LastTerm = entry.Index, entry.Term
		if entry.Index > log.Commit {
			m.Uncommitted++
		}
	}
	m.Revision, m.Compact, m.Leases = s.Store.Revision(), s.Store.CompactRevision(), s.Leases.Len()
	v := s.Auth.Published()
	m.Auth, m.Users, m.Roles = v.Enabled(), len(v.Users()), len(v.Roles())
	count, _, err := s.Store.Range(kv.RangeOptions{Range: kv.Range{Key: []byte{0}, End: []byte{0}}, CountOnly: true})
	if err != nil {
		return err
	}
	m.Keys = count.Count
	b := e.NewBatch()
	defer b.Close()
	if err := b.DeleteRange(engine.PrefixBounds([]byte{engine.PrefixAlarm})); err != nil {
		return err
	}
	return errors.Join(b.Commit(), e.Flush())
}

// applyOne applies one entry, or moves the position only: changes of members are of the cluster that is left behind.
func (d *EtcdDir) applyOne(s *fsm.State, entry wal.Entry) error {
	out := command.Entry{Index: s.Applied.Index + 1, Term: s.Applied.Term}
	if !entry.Conf && len(entry.Data) > 0 {
		c, err := d.Translate(entry.Data)
		if err != nil {
			return err
		}
		if c != nil {
			out.Data = command.AppendBatch(nil, 1, [][]byte{c.Append(nil)})
		}
	}
	_, err := s.Apply([]command.Entry{out}, noWaiters{})
	return err
}

type noWaiters struct{}

func (noWaiters) Wants(uint64, uint64) bool { return false }

func readAlarms(f *File, e *engine.Engine) error {
	table, err := alarm.Open(e)
	if err != nil {
		return err
	}
	b := e.NewBatch()
	defer b.Close()
	if err := f.each(bucketAlarm, func(key, _ []byte) error {
		var a etcdserverpb.AlarmMember
		if err := proto.Unmarshal(key, &a); err != nil {
			return fmt.Errorf("%w: an alarm cannot be read", bolt.ErrDamaged)
		}
		_, err := table.Raise(b, kv.Alarm{Type: kv.AlarmType(a.Alarm), MemberID: a.MemberID})
		return err
	}); err != nil {
		return err
	}
	return b.Commit()
}
