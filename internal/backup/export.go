package backup

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/alarm"
	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/backup/bolt"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/lease"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// Options of Export.
type Options struct {
	// StorageVersion is what a file of a cluster of a version says of its own format; empty: nothing.
	StorageVersion func(cluster string) string
	// Members decodes the row of the conf state.
	Members func(confState []byte) (voters, learners []uint64, err error)
	// Pause is called now and then between writes: to let others go first, and to end the export with an error.
	Pause func() error
}

// Export is a state that is about to be written as a database of etcd.
type Export struct {
	rows  *engine.Snapshot
	o     Options
	pages uint64 // of all buckets, at most
}

// NewExport reads the state in r once to see how long the file will be. r must stay open until Write has returned.
func NewExport(ctx context.Context, r *engine.Snapshot, o Options) (*Export, error) {
	x := &Export{rows: r, o: o}
	var history bolt.Plan
	d, err := mvcc.DumpSizes(ctx, r, o.Pause, history.Add)
	if err == nil {
		// All else is little and is written twice; where its pages lie changes nothing of their number.
		e := x.writer(io.Discard, math.MaxUint32)
		if err = e.besideHistory(d, o); err == nil {
			x.pages, err = e.Pages()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("plan a snapshot: %w", err)
	}
	x.pages += history.Pages()
	return x, nil
}

// Bytes is how long the file will be.
func (x *Export) Bytes() int64 { return bolt.FileBytes(x.pages) }

// Write writes the file to w, from its first byte to its last. What it takes of memory does not grow with the state.
func (x *Export) Write(ctx context.Context, w io.Writer) (mvcc.Dumped, error) {
	e := x.writer(w, x.pages)
	d, err := e.all(ctx, x.o)
	if err != nil {
		return d, fmt.Errorf("write a snapshot: %w", err)
	}
	return d, nil
}

func (x *Export) writer(w io.Writer, pages uint64) *exporter {
	return &exporter{fileWriter: newFileWriter(w, pages, x.o.Pause), rows: x.rows}
}

type exporter struct {
	*fileWriter
	rows *engine.Snapshot

	version string // of the cluster; empty while it is not decided
}

func (e *exporter) all(ctx context.Context, o Options) (mvcc.Dumped, error) {
	if err := e.bucket(bucketKey); err != nil {
		return mvcc.Dumped{}, err
	}
	d, err := mvcc.Dump(ctx, e.rows, e.pause, e.put)
	if err == nil {
		err = e.besideHistory(d, o)
	}
	if err == nil {
		err = e.Finish()
	}
	return d, err
}

// besideHistory writes all buckets but that of the keys.
func (e *exporter) besideHistory(d mvcc.Dumped, o Options) error {
	for _, part := range []func() error{
		e.leases, e.members, e.accounts, func() error { return e.meta(d, o) }, e.rest,
	} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// each visits the rows of one prefix.
func (e *exporter) each(prefix byte, visit func(key, value []byte) error) error {
	it, err := e.rows.NewIter(engine.PrefixBounds([]byte{prefix}))
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if err := visit(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	return it.Err()
}

func (e *exporter) leases() error {
	if err := e.bucket(bucketLease); err != nil {
		return err
	}
	var row []byte
	return e.each(engine.PrefixLease, func(key, value []byte) error {
		l, err := lease.DecodeRow(key, value)
		if err != nil {
			return err
		}
		row = appendLease(row[:0], l)
		return e.put(key[1:], row)
	})
}

// appendLease appends etcd's leasepb.Lease: id, TTL and remaining TTL.
func appendLease(dst []byte, l kv.Lease) []byte {
	for i, n := range []int64{int64(l.ID), l.TTL, l.Remaining} {
		if n != 0 {
			dst = protowire.AppendVarint(protowire.AppendTag(dst, protowire.Number(i+1), protowire.VarintType), uint64(n))
		}
	}
	return dst
}

func (e *exporter) members() error {
	if err := e.alarms(); err != nil {
		return err
	}
	table, err := member.Open(e.rows)
	if err != nil {
		return err
	}
	rows := map[string][]byte{}
	for _, m := range table.All() {
		row, err := json.Marshal(etcdMember{ID: m.ID, PeerURLs: m.PeerURLs, Learner: m.Learner, Name: m.Name, ClientURLs: m.ClientURLs})
		if err != nil {
			return err
		}
		rows[hexID(m.ID)] = row
	}
	if err := e.putAll(bucketMembers, rows); err != nil {
		return err
	}
	rows = map[string][]byte{}
	for _, id := range table.RemovedIDs() {
		rows[hexID(id)] = []byte("removed")
	}
	if err := e.putAll(bucketMembersRemoved, rows); err != nil {
		return err
	}
	rows = map[string][]byte{}
	if e.version = table.Version(); e.version != "" {
		rows[clusterVersion] = []byte(e.version)
	}
	d := table.Downgrade()
	if rows[clusterDowngrade], err = json.Marshal(etcdDowngrade{Target: d.Target, Enabled: d.Enabled}); err != nil {
		return err
	}
	return e.putAll(bucketCluster, rows)
}

// alarms writes etcd's AlarmMember of each alarm, as a key without a value.
func (e *exporter) alarms() error {
	table, err := alarm.Open(e.rows)
	if err != nil {
		return err
	}
	rows := map[string][]byte{}
	for _, a := range table.All() {
		key, err := proto.Marshal(&etcdserverpb.AlarmMember{MemberID: a.MemberID, Alarm: etcdserverpb.AlarmType(a.Type)})
		if err != nil {
			return err
		}
		rows[string(key)] = nil
	}
	return e.putAll(bucketAlarm, rows)
}

// accounts writes users, roles and the settings of authentication. Their rows come roles first.
func (e *exporter) accounts() error {
	settings := auth.Settings{Revision: 1}
	err := e.each(engine.PrefixAuth, func(key, value []byte) error {
		row, err := auth.DecodeRow(key, value)
		if err != nil {
			return err
		}
		var name, bucket string
		var message proto.Message
		switch {
		case row.Settings != nil:
			settings = *row.Settings
			return nil
		case row.User != nil:
			u := row.User
			name, bucket = u.Name, bucketUsers
			message = &authpb.User{
				Name: []byte(u.Name), Password: u.Hash, Roles: u.Roles, Options: &authpb.UserAddOptions{NoPassword: u.NoPassword},
			}
		case row.Role != nil:
			name, bucket = row.Role.Name, bucketRoles
			role := &authpb.Role{Name: []byte(row.Role.Name)}
			for _, p := range row.Role.Permissions {
				role.KeyPermission = append(role.KeyPermission, &authpb.Permission{
					PermType: authpb.Permission_Type(p.Access), Key: p.Key, RangeEnd: p.End,
				})
			}
			message = role
		}
		b, err := proto.Marshal(message)
		if err != nil {
			return err
		}
		if err := e.bucket(bucket); err != nil {
			return err
		}
		return e.put([]byte(name), b)
	})
	if err != nil {
		return err
	}
	enabled := []byte{0}
	if settings.Enabled {
		enabled[0] = 1
	}
	return e.putAll(bucketAuth, map[string][]byte{
		authEnabled: enabled, authRevision: binary.BigEndian.AppendUint64(nil, settings.Revision),
	})
}

func (e *exporter) meta(d mvcc.Dumped, o Options) error {
	row, _, err := e.rows.Get(engine.MetaApplied())
	if err != nil {
		return err
	}
	index, term, err := engine.DecodeApplied(row)
	if err != nil {
		return err
	}
	encoded, _, err := e.rows.Get(engine.MetaConfState())
	if err != nil {
		return err
	}
	var cs etcdConfState
	if cs.Voters, cs.Learners, err = o.Members(encoded); err != nil {
		return err
	}
	confState, err := json.Marshal(cs)
	if err != nil {
		return err
	}
	rows := map[string][]byte{
		metaConfState: confState,
		metaIndex:     binary.BigEndian.AppendUint64(nil, index),
		metaTerm:      binary.BigEndian.AppendUint64(nil, term),
	}
	if v := o.StorageVersion(e.version); v != "" {
		rows[metaStorageVersion] = []byte(v)
	}
	if d.Compact >= 0 {
		rev := appendRevision(nil, kv.Revision{Main: d.Compact})
		rows[metaFinished], rows[metaScheduled] = rev, rev
	}
	return e.putAll(bucketMeta, rows)
}
