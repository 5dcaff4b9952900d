// Package backup carries the state of a member to and from etcd's files: it writes etcd's own snapshot file from one moment
// of the engine's rows, beside the writers, and makes data directories of snapshots (Restore) and of the data directory of
// a stopped etcd (Migrate).
//
// It owns no rows: what they hold it learns from the packages that own them; what etcd's buckets hold is in format.go. Files
// of etcd are read by packages bolt and wal below it, which trust none of their bytes; bolt writes them too. It never
// changes a file that it reads, and it leaves nothing half made: what could not be finished is removed.
//
// Invariants: a snapshot is of one moment, keys, leases, members, users and roles alike (TestExportIsOneMoment); it holds
// exactly the history that etcd would keep of the same changes, so HashKV over it equals HashKV of its origin at every
// revision (TestExport, TestImport); a data directory is whole or not there (TestDamagedSnapshot).
package backup

import (
	"encoding/binary"

	"github.com/trivet-kv/trivet/internal/kv"
)

// The buckets of etcd's file.
const (
	bucketKey            = "key"
	bucketMeta           = "meta"
	bucketLease          = "lease"
	bucketAlarm          = "alarm"
	bucketCluster        = "cluster"
	bucketMembers        = "members"
	bucketMembersRemoved = "members_removed"
	bucketAuth           = "auth"
	bucketUsers          = "authUsers"
	bucketRoles          = "authRoles"
)

var buckets = []string{
	bucketKey, bucketMeta, bucketLease, bucketAlarm, bucketCluster, bucketMembers, bucketMembersRemoved, bucketAuth, bucketUsers,
	bucketRoles,
}

// Rows of the buckets meta, cluster and auth.
const (
	metaIndex               = "consistent_index" // 8 bytes big endian, as term
	metaTerm                = "term"
	metaConfState           = "confState"           // JSON
	metaScheduled           = "scheduledCompactRev" // a revision as keys of the bucket key have it, as finished
	metaFinished            = "finishedCompactRev"
	metaStorageVersion      = "storageVersion" // text
	clusterVersion          = "clusterVersion" // text
	clusterDowngrade        = "downgrade"      // JSON
	authEnabled             = "authEnabled"    // one byte, 0 or 1
	authRevision            = "authRevision"   // 8 bytes big endian
	revisionBytes           = 8 + 1 + 8
	tombstoneMark      byte = 't'
)

// appendRevision appends a revision as the keys of etcd's key bucket have it.
func appendRevision(dst []byte, rev kv.Revision) []byte {
	dst = append(binary.BigEndian.AppendUint64(dst, uint64(rev.Main)), '_')
	return binary.BigEndian.AppendUint64(dst, uint64(rev.Sub))
}

// etcdMember is a row of the bucket members.
type etcdMember struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	Learner    bool     `json:"isLearner,omitempty"`
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// etcdDowngrade is the row downgrade of the bucket cluster.
type etcdDowngrade struct {
	Target  string `json:"target-version"`
	Enabled bool   `json:"enabled"`
}

// etcdConfState is the row confState of the bucket meta.
type etcdConfState struct {
	Voters    []uint64 `json:"voters"`
	Learners  []uint64 `json:"learners,omitempty"`
	AutoLeave bool     `json:"auto_leave"`
}
