// Package metrics holds the one list of what a member measures: etcd's names, labels and buckets, so that dashboards and
// alert rules go on working, and our own under trivet_*. Other packages never see Prometheus: whoever builds the member
// joins their observers to the fields of Metrics, and Sources to values that are only looked at when somebody scrapes.
//
// It never decides anything and never blocks: a counter is an atomic addition. There is one registry per Metrics, so
// that two members in one process do not meet. metrics_test.go compares names, labels and buckets with a scrape of
// etcd 3.7.3 kept under testdata.
package metrics

import (
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics is the list. Fields may be used from any goroutine.
type Metrics struct {
	registry *prometheus.Registry
	calls    callVecs
	applies  sync.Map // applied → prometheus.Observer; as many as there are operations, twice
	clients  sync.Map // client version and kind → prometheus.Counter; bounded by maxVersions
	versions int
	requests map[string][2]prometheus.Observer // by kind: failed, succeeded; never written after New
	ranges   [2]prometheus.Observer            // failed, succeeded
	mu       sync.Mutex                        // guards versions

	// The server.
	LeaderChanges         prometheus.Counter
	ProposalsFailed       prometheus.Counter
	SlowApply             prometheus.Counter
	SlowReadIndex         prometheus.Counter
	ReadIndexFailed       prometheus.Counter
	HeartbeatSendFailures prometheus.Counter
	SnapshotApplying      prometheus.Gauge
	LearnerPromoteOK      prometheus.Counter
	LearnerPromoteFailed  *prometheus.CounterVec   // Reason
	ApplySeconds          *prometheus.HistogramVec // version ("v3"), op, success
	RangeSeconds          *prometheus.HistogramVec // success
	RequestSeconds        *prometheus.HistogramVec // type, success
	ClientRequests        *prometheus.CounterVec   // type, client_api_version
	FeatureEnabled        *prometheus.GaugeVec     // name, stage; 1 if the feature gate is on
	HealthSuccess         prometheus.Counter
	HealthFailures        prometheus.Counter
	HealthCheck           *prometheus.GaugeVec   // type, name
	HealthChecks          *prometheus.CounterVec // type, name, status

	// The store.
	Puts, Deletes, Ranges, Txns prometheus.Counter
	PutBytes                    prometheus.Gauge
	Events                      prometheus.Counter
	HashSeconds                 prometheus.Histogram
	HashRevisionSeconds         prometheus.Histogram
	CompactionKeys              prometheus.Counter
	CompactionLast              prometheus.Gauge     // seconds since 1970
	CompactionPause             prometheus.Histogram // milliseconds
	CompactionIndexPause        prometheus.Histogram // milliseconds
	CompactionTotal             prometheus.Histogram // milliseconds

	// Leases.
	LeasesGranted, LeasesRevoked prometheus.Counter
	LeaseTTL                     prometheus.Histogram // seconds

	// The disk.
	DiskFull              prometheus.Gauge     // 1 while something waits for room on the disk
	DiskSlow              prometheus.Gauge     // 1 while the log's disk is slower than the threshold
	DiskHandOvers         prometheus.Counter   // of leadership, because the disk was slow
	LogSyncSeconds        prometheus.Histogram // of the raft log: etcd's WAL
	LogWriteSeconds       prometheus.Histogram
	LogWriteBytes         prometheus.Gauge
	EngineCommitSeconds   prometheus.Histogram // one apply batch into the engine
	DefragSeconds         prometheus.Histogram
	SnapshotSeconds       prometheus.Histogram // a snapshot streamed to a client
	DefragInflight        prometheus.Gauge
	CheckpointSaveSeconds prometheus.Histogram
	CheckpointSyncSeconds prometheus.Histogram

	// The network.
	ClientSentBytes, ClientReceivedBytes prometheus.Counter
	StreamFailures                       *prometheus.CounterVec   // Type, API
	ActivePeers                          *prometheus.GaugeVec     // Local, Remote
	DisconnectedPeers                    *prometheus.CounterVec   // Local, Remote
	PeerSentBytes                        *prometheus.CounterVec   // To
	PeerReceivedBytes                    *prometheus.CounterVec   // From
	PeerSentFailures                     *prometheus.CounterVec   // To
	PeerReceivedFailures                 *prometheus.CounterVec   // From
	PeerRoundTripSeconds                 *prometheus.HistogramVec // To
	SnapshotSendOK                       *prometheus.CounterVec   // To
	SnapshotSendFailed                   *prometheus.CounterVec   // To
	SnapshotSending                      *prometheus.GaugeVec     // To
	SnapshotSendSeconds                  *prometheus.HistogramVec // To
	SnapshotReceiveOK                    *prometheus.CounterVec   // From
	SnapshotReceiveFailed                *prometheus.CounterVec   // From
	SnapshotReceiving                    *prometheus.GaugeVec     // From
	SnapshotReceiveSeconds               *prometheus.HistogramVec // From

	// The watch streams.
	WatchSendSeconds         prometheus.Histogram
	WatchSendPerEventSeconds prometheus.Histogram
	WatchControlSeconds      prometheus.Histogram
	WatchProgressSeconds     prometheus.Histogram
}

// Identity is what a member says of itself in metrics that only carry labels.
type Identity struct {
	Version string // of the API that is served, X.Y.Z
	Product string // our own version
}

// New makes the list in a registry of its own, with Go's and the process's collectors in it.
func New(id Identity) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.fillServer()
	m.fillStore()
	m.fillDisk()
	m.fillNetwork()
	m.fillCalls()
	m.ranges = [2]prometheus.Observer{m.RangeSeconds.WithLabelValues("false"), m.RangeSeconds.WithLabelValues("true")}
	m.requests = make(map[string][2]prometheus.Observer)
	for _, kind := range []string{"Range", "ReadonlyTxn", "Put", "DeleteRange", "Txn", "Compaction", "LeaseGrant", "LeaseRevoke"} {
		m.requests[kind] = [2]prometheus.Observer{
			m.RequestSeconds.WithLabelValues(kind, "false"), m.RequestSeconds.WithLabelValues(kind, "true"),
		}
	}
	m.label("etcd_server_version", "The version of etcd whose API is served.", "server_version", id.Version)
	m.label("etcd_server_go_version", "The version of Go that built the server.", "server_go_version", runtime.Version())
	m.label("trivet_version", "The version of Trivet.", "version", id.Product)
	return m
}

func (m *Metrics) fillServer() {
	m.LeaderChanges = m.counter("etcd_server_leader_changes_seen_total", "Changes of the leader that this member has seen.")
	m.ProposalsFailed = m.counter("etcd_server_proposals_failed_total", "Proposals that failed.")
	m.SlowApply = m.counter("etcd_server_slow_apply_total", "Applies that took too long.")
	m.SlowReadIndex = m.counter("etcd_server_slow_read_indexes_total", "Read index rounds that took too long.")
	m.ReadIndexFailed = m.counter("etcd_server_read_indexes_failed_total", "Read index rounds that failed.")
	m.HeartbeatSendFailures = m.counter("etcd_server_heartbeat_send_failures_total", "Heartbeats that the leader failed to send in time.")
	m.SnapshotApplying = m.gauge("etcd_server_snapshot_apply_in_progress_total", "1 while a received snapshot is being installed.")
	m.LearnerPromoteOK = m.counter("etcd_server_learner_promote_successes", "Learners promoted while this member led.")
	m.LearnerPromoteFailed = m.counterVec("etcd_server_learner_promote_failures", "Promotions of learners that failed while this member led.", "Reason")
	m.ApplySeconds = m.histogramVec("etcd_server_apply_duration_seconds", "Time to apply one request.", exp(0.0001, 20), "version", "op", "success")
	m.RangeSeconds = m.histogramVec("etcd_server_range_duration_seconds", "Time to answer one range.", exp(0.0001, 20), "success")
	m.RequestSeconds = m.histogramVec("etcd_server_request_duration_seconds", "Time of one request from its arrival to its result.", exp(0.001, 14), "type", "success")
	m.ClientRequests = m.counterVec("etcd_server_client_requests_total", "Calls by kind and client version.", "type", "client_api_version")
	m.FeatureEnabled = m.gaugeVec("etcd_server_feature_enabled", "1 if the feature gate is on.", "name", "stage")
	m.HealthSuccess = m.counter("etcd_server_health_success", "Looks at /health that found the member well.")
	m.HealthFailures = m.counter("etcd_server_health_failures", "Looks at /health that found the member not well.")
	m.HealthCheck = m.gaugeVec("etcd_server_healthcheck", "The last result of each health check.", "type", "name")
	m.HealthChecks = m.counterVec("etcd_server_healthchecks_total", "Results of each health check.", "type", "name", "status")

	m.LeasesGranted = m.counter("etcd_debugging_lease_granted_total", "Leases granted.")
	m.LeasesRevoked = m.counter("etcd_debugging_lease_revoked_total", "Leases revoked.")
	m.LeaseTTL = m.histogram("etcd_debugging_lease_ttl_total", "Times to live of granted leases.", exp(1, 24))

	m.WatchSendSeconds = m.histogram("etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", "Time to send one watch answer.", exp(0.001, 14))
	m.WatchSendPerEventSeconds = m.histogram("etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", "Time to send one watch answer, for each event in it.", exp(0.001, 14))
	m.WatchControlSeconds = m.histogram("etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", "Time to send one created or cancelled answer.", exp(0.001, 14))
	m.WatchProgressSeconds = m.histogram("etcd_debugging_server_watch_send_loop_progress_duration_seconds", "Time to send the progress that is due.", exp(0.001, 14))
}

func (m *Metrics) fillStore() {
	m.Puts = m.counter("etcd_mvcc_put_total", "Puts applied by this member.")
	m.Deletes = m.counter("etcd_mvcc_delete_total", "Deletes applied by this member, each of however many keys.")
	m.Ranges = m.counter("etcd_mvcc_range_total", "Ranges read by this member.")
	m.Txns = m.counter("etcd_mvcc_txn_total", "Transactions seen by this member.")
	m.PutBytes = m.gauge("etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put by this member.")
	m.Events = m.counter("etcd_debugging_mvcc_events_total", "Events sent by this member.")
	m.HashSeconds = m.histogram("etcd_mvcc_hash_duration_seconds", "Time to hash everything stored.", exp(0.01, 15))
	m.HashRevisionSeconds = m.histogram("etcd_mvcc_hash_rev_duration_seconds", "Time to hash the history up to a revision.", exp(0.01, 15))
	m.CompactionKeys = m.counter("etcd_debugging_mvcc_db_compaction_keys_total", "Versions of keys removed by compactions.")
	m.CompactionLast = m.gauge("etcd_debugging_mvcc_db_compaction_last", "When the last compaction ended, in seconds since 1970.")
	m.CompactionPause = m.histogram("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "Time of one step of a compaction; nothing pauses for it.", exp(1, 13))
	m.CompactionIndexPause = m.histogram("etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", "Always empty: there is no index in memory to compact.", exp(0.5, 14))
	m.CompactionTotal = m.histogram("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "Time of a whole compaction.", exp(100, 14))
}

func (m *Metrics) fillDisk() {
	m.DiskFull = m.gauge("trivet_disk_full", "1 while the member waits for room on its disk and refuses what needs more.")
	m.DiskSlow = m.gauge("trivet_disk_slow", "1 while commits to the log take longer than --slow-disk-threshold.")
	m.DiskHandOvers = m.counter("trivet_disk_slow_handovers_total", "Times that this member began to hand leadership over because of its disk.")
	m.LogSyncSeconds = m.histogram("etcd_disk_wal_fsync_duration_seconds", "Time of one sync of the raft log.", exp(0.001, 14))
	m.LogWriteSeconds = m.histogram("etcd_disk_wal_write_duration_seconds", "Time of one write to the raft log.", exp(0.001, 14))
	m.LogWriteBytes = m.gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the raft log.")
	m.EngineCommitSeconds = m.histogram("etcd_disk_backend_commit_duration_seconds", "Time to commit one batch to the state engine; no sync is part of it.", exp(0.001, 14))
	m.DefragSeconds = m.histogram("etcd_disk_backend_defrag_duration_seconds", "Time of Maintenance.Defragment.", exp(0.1, 13))
	m.SnapshotSeconds = m.histogram("etcd_disk_backend_snapshot_duration_seconds", "Time to stream a snapshot to a client.", exp(0.01, 17))
	m.DefragInflight = m.gauge("etcd_disk_defrag_inflight", "1 while Maintenance.Defragment runs.")
	m.CheckpointSaveSeconds = m.histogram("etcd_snap_db_save_total_duration_seconds", "Time to save a received snapshot.", exp(0.1, 10))
	m.CheckpointSyncSeconds = m.histogram("etcd_snap_db_fsync_duration_seconds", "Time to sync a received snapshot.", exp(0.001, 14))
}

func (m *Metrics) fillNetwork() {
	m.ClientSentBytes = m.counter("etcd_network_client_grpc_sent_bytes_total", "Bytes of messages sent to clients.")
	m.ClientReceivedBytes = m.counter("etcd_network_client_grpc_received_bytes_total", "Bytes of messages received from clients.")
	m.StreamFailures = m.counterVec("etcd_network_server_stream_failures_total", "Streams of clients that failed.", "Type", "API")
	m.ActivePeers = m.gaugeVec("etcd_network_active_peers", "Connections to peers that are up.", "Local", "Remote")
	m.DisconnectedPeers = m.counterVec("etcd_network_disconnected_peers_total", "Connections to peers that were lost.", "Local", "Remote")
	m.PeerSentBytes = m.counterVec("etcd_network_peer_sent_bytes_total", "Bytes sent to each peer.", "To")
	m.PeerReceivedBytes = m.counterVec("etcd_network_peer_received_bytes_total", "Bytes received from each peer.", "From")
	m.PeerSentFailures = m.counterVec("etcd_network_peer_sent_failures_total", "Messages to each peer that were lost.", "To")
	m.PeerReceivedFailures = m.counterVec("etcd_network_peer_received_failures_total", "Connections from each peer that failed.", "From")
	m.PeerRoundTripSeconds = m.histogramVec("etcd_network_peer_round_trip_time_seconds", "Round trip to each peer.", exp(0.0001, 16), "To")
	m.SnapshotSendOK = m.counterVec("etcd_network_snapshot_send_success", "Snapshots sent to each peer.", "To")
	m.SnapshotSendFailed = m.counterVec("etcd_network_snapshot_send_failures", "Snapshots that could not be sent to each peer.", "To")
	m.SnapshotSending = m.gaugeVec("etcd_network_snapshot_send_inflights_total", "Snapshots on their way to each peer.", "To")
	m.SnapshotSendSeconds = m.histogramVec("etcd_network_snapshot_send_total_duration_seconds", "Time to send a snapshot.", exp(0.1, 10), "To")
	m.SnapshotReceiveOK = m.counterVec("etcd_network_snapshot_receive_success", "Snapshots received from each peer.", "From")
	m.SnapshotReceiveFailed = m.counterVec("etcd_network_snapshot_receive_failures", "Snapshots that could not be received from each peer.", "From")
	m.SnapshotReceiving = m.gaugeVec("etcd_network_snapshot_receive_inflights_total", "Snapshots on their way from each peer.", "From")
	m.SnapshotReceiveSeconds = m.histogramVec("etcd_network_snapshot_receive_total_duration_seconds", "Time to receive a snapshot.", exp(0.1, 10), "From")
}

// maxVersions bounds the client versions that are told apart: the label comes from outside.
const maxVersions = 100

// ClientRequest counts a call by its kind (unary, stream) and the version that the client says it has.
func (m *Metrics) ClientRequest(kind, version string) {
	key := [2]string{kind, version}
	if c, ok := m.clients.Load(key); ok {
		c.(prometheus.Counter).Inc()
		return
	}
	m.mu.Lock()
	if m.versions >= maxVersions {
		version = "other"
	} else {
		m.versions++
	}
	c := m.ClientRequests.WithLabelValues(kind, version)
	if version != "other" {
		m.clients.Store(key, c)
	}
	m.mu.Unlock()
	c.Inc()
}

type applied struct {
	op string
	ok bool
}

// Applied records one request applied by the state machine, as etcd_server_apply_duration_seconds names it.
func (m *Metrics) Applied(op string, ok bool, took time.Duration) {
	key := applied{op, ok}
	o, known := m.applies.Load(key)
	if !known {
		o, _ = m.applies.LoadOrStore(key, m.ApplySeconds.WithLabelValues("v3", op, strconv.FormatBool(ok)))
	}
	o.(prometheus.Observer).Observe(took.Seconds())
}

// RequestTook records one request from its arrival to its result.
func (m *Metrics) RequestTook(kind string, ok bool, took time.Duration) {
	o, known := m.requests[kind]
	switch {
	case !known:
		m.RequestSeconds.WithLabelValues(kind, strconv.FormatBool(ok)).Observe(took.Seconds())
	case ok:
		o[1].Observe(took.Seconds())
	default:
		o[0].Observe(took.Seconds())
	}
}

// RangeTook records one range, without what it waited for.
func (m *Metrics) RangeTook(ok bool, took time.Duration) {
	i := 0
	if ok {
		i = 1
	}
	m.ranges[i].Observe(took.Seconds())
}

// HealthResult records one run of a check of /livez or /readyz.
func (m *Metrics) HealthResult(kind, name string, ok bool) {
	status, value := "success", 1.0
	if !ok {
		status, value = "error", 0
	}
	m.HealthCheck.WithLabelValues(kind, name).Set(value)
	m.HealthChecks.WithLabelValues(kind, name, status).Inc()
}

// Handler serves /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.InstrumentMetricHandler(m.registry, promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry}))
}

// Gatherer is for tests and tools that read values.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }
