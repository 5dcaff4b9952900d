package backup

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/backup/bolt"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/lease"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// Imported is what a file held.
type Imported struct {
	mvcc.Loaded
	Leases, Users, Roles int
	Auth                 bool  // authentication is on
	Bumped               int64 // by how much the revision was raised
}

// grantedBefore is the log index that leases of a file are said to be granted at: before every entry of the new log.
const grantedBefore = 1

// Import writes keys with their history, leases, users and roles of f into an empty engine. Members and alarms it leaves
// out: they are of the cluster that the file is from. With a bump it raises the revision by that much and marks all
// history as compacted, so that no client sees a revision twice with different content. It makes nothing durable.
func (f *File) Import(ctx context.Context, e *engine.Engine, bump int64) (Imported, error) {
	im := importer{File: f, e: e, ctx: ctx}
	err := im.all(bump)
	return im.Imported, f.wrap(err)
}

type importer struct {
	*File
	Imported
	ctx    context.Context
	e      *engine.Engine
	leases *lease.Leases
}

func (im *importer) all(bump int64) error {
	for _, part := range []func() error{im.readLeases, im.readAccounts} {
		if err := part(); err != nil {
			return err
		}
	}
	load := mvcc.NewLoader(im.e)
	defer load.Close()
	newest, err := im.readHistory(load)
	if err != nil {
		return err
	}
	finished, err := im.compaction(metaFinished)
	if err != nil {
		return err
	}
	scheduled, err := im.compaction(metaScheduled)
	if err != nil {
		return err
	}
	// A compaction that etcd has taken up is done, whether or not its deleting was finished: etcd goes on with it at its start.
	l := mvcc.Loaded{Revision: max(newest, finished, scheduled, 1), Compact: max(finished, scheduled), Done: max(finished, 0)}
	if bump > 0 {
		if l.Revision > math.MaxInt64-bump {
			return fmt.Errorf("its revision %d cannot be raised by %d", l.Revision, bump)
		}
		l.Revision += bump
		l.Compact, im.Bumped = l.Revision, bump
	}
	im.Loaded, err = load.Finish(l, func(b *engine.Batch, key []byte, id kv.LeaseID) error {
		if _, exists := im.leases.Get(id); id == 0 || !exists {
			return nil
		}
		return im.leases.Attach(b, key, id)
	})
	return err
}

// compaction reads a revision of the bucket meta; -1 if it is not there.
func (im *importer) compaction(name string) (int64, error) {
	b, err := im.get(bucketMeta, name)
	if err != nil || b == nil {
		return -1, err
	}
	rev, _, err := decodeRevision(b)
	return rev.Main, err
}

func (im *importer) readHistory(load *mvcc.Loader) (newest int64, err error) {
	n := 0
	err = im.history(func(rev kv.Revision, deleted bool, p *mvccpb.KeyValue) error {
		if n++; n%1024 == 0 && im.ctx.Err() != nil {
			return im.ctx.Err()
		}
		newest = rev.Main
		switch {
		case len(p.Key) == 0 && p.CreateRevision == 0:
			return nil // a mark that only holds the revision
		case deleted:
			return load.Delete(rev, p.Key)
		}
		return load.Put(rev, kv.KeyValue{
			Key: p.Key, Value: p.Value, CreateRevision: p.CreateRevision, ModRevision: p.ModRevision, Version: p.Version,
			Lease: kv.LeaseID(p.Lease),
		})
	})
	return newest, err
}

func (im *importer) readLeases() error {
	var err error
	if im.leases, err = lease.Open(im.e); err != nil {
		return err
	}
	b := im.e.NewBatch()
	defer func() { b.Close() }()
	err = im.each(bucketLease, func(key, value []byte) error {
		l, err := decodeLease(value)
		if err != nil || len(key) != 8 || int64(binary.BigEndian.Uint64(key)) != int64(l.ID) {
			return fmt.Errorf("%w: the lease %x cannot be read", bolt.ErrDamaged, key)
		}
		im.Leases++
		if err := im.leases.Grant(b, kv.Lease{ID: l.ID, TTL: l.TTL, Granted: grantedBefore}); err != nil {
			return fmt.Errorf("lease %x of %d s: %w", l.ID, l.TTL, err)
		}
		return im.leases.Checkpoint(b, l.ID, l.Remaining)
	})
	if err != nil {
		return err
	}
	if err := b.Commit(); err != nil {
		return err
	}
	im.leases.Publish()
	return nil
}

// decodeLease reads etcd's leasepb.Lease.
func decodeLease(b []byte) (l kv.Lease, err error) {
	for len(b) > 0 {
		number, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return l, protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.VarintType {
			if n = protowire.ConsumeFieldValue(number, typ, b); n < 0 {
				return l, protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return l, protowire.ParseError(n)
		}
		b = b[n:]
		switch number {
		case 1:
			l.ID = kv.LeaseID(v)
		case 2:
			l.TTL = int64(v)
		case 3:
			l.Remaining = int64(v)
		}
	}
	return l, nil
}

func (im *importer) readAccounts() error {
	b := im.e.NewBatch()
	defer b.Close()
	s := auth.Settings{Revision: 1}
	if v, err := im.get(bucketAuth, authEnabled); err != nil {
		return err
	} else if len(v) == 1 {
		s.Enabled = v[0] == 1
	}
	if v, err := im.get(bucketAuth, authRevision); err != nil {
		return err
	} else if len(v) == 8 {
		s.Revision = max(binary.BigEndian.Uint64(v), 1)
	}
	im.Auth = s.Enabled
	if err := im.each(bucketRoles, func(key, value []byte) error {
		var r authpb.Role
		if err := proto.Unmarshal(value, &r); err != nil || string(r.Name) != string(key) || len(key) == 0 {
			return fmt.Errorf("%w: the role %q cannot be read", bolt.ErrDamaged, key)
		}
		im.Roles++
		out := auth.Role{Name: string(r.Name)}
		for _, p := range r.KeyPermission {
			out.Permissions = append(out.Permissions, kv.Permission{Access: kv.Access(p.PermType), Range: kv.Range{Key: p.Key, End: p.RangeEnd}})
		}
		return auth.SetRow(b, auth.Row{Role: &out})
	}); err != nil {
		return err
	}
	if err := im.each(bucketUsers, func(key, value []byte) error {
		var u authpb.User
		if err := proto.Unmarshal(value, &u); err != nil || string(u.Name) != string(key) || len(key) == 0 {
			return fmt.Errorf("%w: the user %q cannot be read", bolt.ErrDamaged, key)
		}
		im.Users++
		return auth.SetRow(b, auth.Row{User: &auth.User{
			Name: string(u.Name), Hash: u.Password, NoPassword: u.Options.GetNoPassword(), Roles: slices.Sorted(slices.Values(u.Roles)),
			Since: s.Revision,
		}})
	}); err != nil {
		return err
	}
	if s.Enabled || s.Revision > 1 || im.Users > 0 || im.Roles > 0 {
		if err := auth.SetRow(b, auth.Row{Settings: &s}); err != nil {
			return err
		}
	}
	return b.Commit()
}
