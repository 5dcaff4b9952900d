package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/version"

	"github.com/trivet-kv/trivet/internal/config"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/metrics"
	"github.com/trivet-kv/trivet/internal/replica"
	"github.com/trivet-kv/trivet/internal/server"
	"github.com/trivet-kv/trivet/internal/transport"
)

// This file joins what the parts of a member tell their observers to the list of metrics.

// hexID is how etcd writes ids in labels.
func hexID(id uint64) string { return fmt.Sprintf("%x", id) }

// perPeer looks a peer's metric up by its id, whose text is made once: of is asked for each frame.
func perPeer[M any](of func(labels ...string) M) func(id uint64) M {
	var known atomic.Pointer[map[uint64]M]
	known.Store(&map[uint64]M{})
	return func(id uint64) M {
		all := *known.Load()
		one, ok := all[id]
		if !ok {
			one = of(hexID(id))
			more := maps.Clone(all)
			more[id] = one
			known.Store(&more) // who is overtaken here is looked up again the next time
		}
		return one
	}
}

func observeMember(m *metrics.Metrics, log *slog.Logger, slowApply, heartbeat time.Duration) server.Observer {
	var leader uint64 // of the last change; the replica calls from one goroutine
	deleted := 0      // by the compaction under way; the compactor calls from one goroutine
	return server.Observer{
		LogSync: func(d time.Duration) {
			m.LogSyncSeconds.Observe(d.Seconds())
			if d > slowSync {
				log.Warn("slow fdatasync", "took", d, "expected-duration", slowSync)
			}
		},
		Applied: func(out *fsm.Outcome, d time.Duration) {
			observeApplied(m, out, d)
			if d > slowApply {
				m.SlowApply.Inc()
				warnSlowApply(log, out, d, slowApply)
			}
		},
		LogWrite: func(bytes int, d time.Duration) {
			m.LogWriteBytes.Add(float64(bytes))
			m.LogWriteSeconds.Observe(d.Seconds())
		},
		DiskFull:   func(full bool) { setTruth(m.DiskFull, full) },
		ReadFailed: m.ReadIndexFailed.Inc,
		CompactStep: func(n int, d time.Duration) {
			deleted += n
			m.CompactionKeys.Add(float64(n))
			m.CompactionPause.Observe(float64(d.Milliseconds()))
		},
		Compacted: func(revision int64, d time.Duration) {
			log.Info("finished scheduled compaction", "compact-revision", revision, "took", d, "number-of-keys-compacted", deleted)
			deleted = 0
			m.CompactionTotal.Observe(float64(d.Milliseconds()))
			m.CompactionLast.SetToCurrentTime()
		},
		Replica: replica.Observer{
			LeaderChanged: func(id, _ uint64) {
				if id != 0 && id != leader {
					m.LeaderChanges.Inc()
				}
				leader = id
			},
			ReadRetried: func(after time.Duration) {
				m.SlowReadIndex.Inc()
				log.Warn("waiting for ReadIndex response took too long, retrying", "retry-timeout", after)
			},
			ProposalLost: func(n int) { m.ProposalsFailed.Add(float64(n)) },
			Installing:   func() { m.SnapshotApplying.Set(1) },
			Installed:    func(uint64, time.Duration) { m.SnapshotApplying.Set(0) },
			DiskSlow:     func(slow bool) { setTruth(m.DiskSlow, slow) },
			HandedOver:   func(uint64) { m.DiskHandOvers.Inc() },
			HeartbeatLate: func(d time.Duration) {
				m.HeartbeatSendFailures.Inc()
				log.Warn("leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk",
					"heartbeat-interval", heartbeat, "expected-duration", 2*heartbeat, "exceeded-duration", d)
			},
		},
	}
}

func setTruth(g interface{ Set(float64) }, is bool) {
	if is {
		g.Set(1)
	} else {
		g.Set(0)
	}
}

// slowSync is how long an fdatasync may take before the log says so, as in etcd.
const slowSync = time.Second

// warnSlowApply is etcd's line about a slow request. Requests are applied in batches here, so that it is about one of those.
func warnSlowApply(log *slog.Logger, out *fsm.Outcome, took, expected time.Duration) {
	kinds := map[string]int{}
	for _, r := range out.Ran {
		kinds[r.Name]++
	}
	var request []string
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		request = append(request, fmt.Sprintf("%s:%d", kind, kinds[kind]))
	}
	log.Warn("apply request took too long", "took", took, "expected-duration", expected, "prefix", "",
		"request", "batch:<"+strings.Join(request, " ")+">", "response", "")
}

// etcdOps are etcd's names, in its metrics, for what is applied. What it does not apply, or not as a request, has none.
var etcdOps = map[string]string{
	"put": "Put", "delete_range": "DeleteRange", "txn": "Txn", "compact": "Compaction",
	"lease_grant": "LeaseGrant", "lease_revoke": "LeaseRevoke", "lease_checkpoint": "LeaseCheckpoint",
	"member_publish": "ClusterMemberAttrSet", "cluster_version": "ClusterVersionSet", "downgrade": "DowngradeInfoSet", "alarm": "Alarm",
	"auth_enable": "AuthEnable", "auth_disable": "AuthDisable", "authenticate": "Authenticate",
	"auth_user_add": "AuthUserAdd", "auth_user_delete": "AuthUserDelete", "auth_user_change_password": "AuthUserChangePassword",
	"auth_user_grant_role": "AuthUserGrantRole", "auth_user_revoke_role": "AuthUserRevokeRole",
	"auth_role_add": "AuthRoleAdd", "auth_role_delete": "AuthRoleDelete",
	"auth_role_grant_permission": "AuthRoleGrantPermission", "auth_role_revoke_permission": "AuthRoleRevokePermission",
}

// observeApplied runs on the apply goroutine, after the batch was committed.
func observeApplied(m *metrics.Metrics, out *fsm.Outcome, took time.Duration) {
	m.EngineCommitSeconds.Observe(took.Seconds())
	for _, r := range out.Ran {
		// As in etcd a compaction that another was ahead of did not fail.
		if op := etcdOps[r.Name]; op != "" {
			m.Applied(op, r.Refused == nil || errors.Is(r.Refused, kv.ErrCompacted), took/time.Duration(len(out.Ran)))
		}
		switch {
		case r.Refused != nil:
		case r.Name == "txn":
			m.Txns.Inc()
		case r.Name == "lease_grant":
			m.LeasesGranted.Inc()
		case r.Name == "lease_revoke":
			m.LeasesRevoked.Inc()
		}
	}
	for _, l := range out.Leases {
		if l.Granted {
			m.LeaseTTL.Observe(float64(l.Lease.TTL))
		}
	}
	var puts, bytes int
	for _, e := range out.Events {
		if e.Type == kv.Put {
			puts++
			bytes += len(e.KV.Key) + len(e.KV.Value)
		}
	}
	m.Puts.Add(float64(puts))
	m.Deletes.Add(float64(out.Deletes))
	m.PutBytes.Add(float64(bytes))
}

func observeTransport(m *metrics.Metrics, self string) transport.Observer {
	sent, received := perPeer(m.PeerSentBytes.WithLabelValues), perPeer(m.PeerReceivedBytes.WithLabelValues)
	return transport.Observer{
		Sent:       func(to uint64, n int) { sent(to).Add(float64(n)) },
		Received:   func(from uint64, n int) { received(from).Add(float64(n)) },
		SendFailed: func(to uint64, n int) { m.PeerSentFailures.WithLabelValues(hexID(to)).Add(float64(n)) },
		RoundTrip: func(peer uint64, d time.Duration) {
			m.PeerRoundTripSeconds.WithLabelValues(hexID(peer)).Observe(d.Seconds())
		},
		Active: func(peer uint64, up bool) {
			if up {
				m.ActivePeers.WithLabelValues(self, hexID(peer)).Inc()
				return
			}
			m.ActivePeers.WithLabelValues(self, hexID(peer)).Dec()
			m.DisconnectedPeers.WithLabelValues(self, hexID(peer)).Inc()
		},
		ReceiveFailed:     func(from uint64) { m.PeerReceivedFailures.WithLabelValues(hexID(from)).Inc() },
		SnapshotSending:   func(to uint64) { m.SnapshotSending.WithLabelValues(hexID(to)).Inc() },
		SnapshotReceiving: func(from uint64) { m.SnapshotReceiving.WithLabelValues(hexID(from)).Inc() },
		SnapshotSynced:    func(d time.Duration) { m.CheckpointSyncSeconds.Observe(d.Seconds()) },
		SnapshotSent: func(to uint64, _ int64, d time.Duration, err error) {
			m.SnapshotSending.WithLabelValues(hexID(to)).Dec()
			if err != nil {
				m.SnapshotSendFailed.WithLabelValues(hexID(to)).Inc()
				return
			}
			m.SnapshotSendOK.WithLabelValues(hexID(to)).Inc()
			m.SnapshotSendSeconds.WithLabelValues(hexID(to)).Observe(d.Seconds())
		},
		SnapshotReceived: func(from uint64, _ int64, d time.Duration, err error) {
			m.SnapshotReceiving.WithLabelValues(hexID(from)).Dec()
			if err != nil {
				m.SnapshotReceiveFailed.WithLabelValues(hexID(from)).Inc()
				return
			}
			m.SnapshotReceiveOK.WithLabelValues(hexID(from)).Inc()
			m.CheckpointSaveSeconds.Observe(d.Seconds())
			m.SnapshotReceiveSeconds.WithLabelValues(hexID(from)).Observe(d.Seconds())
		},
	}
}

// showGates shows what was asked for: a gate without meaning here too is 1 if it was turned on.
func showGates(m *metrics.Metrics, c *config.Config) {
	c.EachGate(func(name, stage string, on bool) {
		value := 0.0
		if on {
			value = 1
		}
		m.FeatureEnabled.WithLabelValues(name, stage).Set(value)
	})
}

// joinMetrics adds the values that the member is asked for when somebody scrapes.
func joinMetrics(m *metrics.Metrics, b *server.Member) {
	m.Join(metrics.Sources{
		MemberID: b.Header().MemberID,
		Peers: func() []uint64 {
			var ids []uint64
			for _, one := range b.Members() {
				ids = append(ids, one.ID)
			}
			return ids
		},
		ClusterVersion: func() string {
			v, _ := b.ClusterVersion()
			return version.Cluster(v)
		},
		HasLeader:     func() bool { return b.Leader() != 0 },
		IsLeader:      func() bool { return b.Leader() == b.Header().MemberID },
		IsLearner:     b.Learner,
		Committed:     func() uint64 { return b.Status().CommitIndex },
		Applied:       func() uint64 { return b.Status().Applied },
		Pending:       b.Pending,
		QuotaBytes:    func() int64 { return b.Status().Quota },
		LeasesRenewed: func() int64 { return b.LeaseStats().Renewed },
		LeasesExpired: func() int64 { return b.LeaseStats().Expired },
		Keys: func() int64 {
			r, _, err := b.Store().Range(kv.RangeOptions{Range: kv.Range{Key: []byte{0}, End: []byte{0}}, CountOnly: true})
			if err != nil {
				return 0
			}
			return r.Count
		},
		Alarms: func() []metrics.AlarmOf {
			var out []metrics.AlarmOf
			for _, a := range b.Alarms() {
				out = append(out, metrics.AlarmOf{MemberID: a.MemberID, Type: a.Type.String()})
			}
			return out
		},
		WatchStreams:    func() int { return int(b.Hub().Stats().Streams) },
		Watchers:        func() int { return int(b.Hub().Stats().Watchers) },
		SlowWatchers:    func() int { return int(b.Hub().Stats().Slow) },
		PendingEvents:   func() int { return int(b.Hub().Stats().Pending) },
		DBBytes:         func() int64 { return b.Status().DBSize },
		DBInUseBytes:    func() int64 { return b.Status().DBInUse },
		OpenReads:       b.OpenReads,
		Revision:        func() int64 { return b.Store().Revision() },
		CompactRevision: func() int64 { return b.Store().CompactRevision() },
		AuthRevision:    func() uint64 { return b.Auth().Published().Settings().Revision },
	})
}
