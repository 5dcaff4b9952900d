package metrics

import (
	"fmt"
	"os"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
)

// Sources are the values that other parts of the member hold and that are read when somebody scrapes. Each function must
// be cheap and callable from any goroutine; nil leaves its metric out.
type Sources struct {
	MemberID uint64
	Peers    func() []uint64 // ids of all members, this one included
	// ClusterVersion is X.Y of what the whole cluster serves; empty while it is not decided.
	ClusterVersion func() string

	HasLeader, IsLeader, IsLearner func() bool
	Committed, Applied             func() uint64
	AuthRevision                   func() uint64
	Pending                        func() int // proposals that wait for their result
	QuotaBytes                     func() int64

	LeasesRenewed, LeasesExpired func() int64 // since the start; both only grow

	Revision, CompactRevision func() int64
	Keys                      func() int64
	DBBytes, DBInUseBytes     func() int64
	OpenReads                 func() int // what is under way in the engine: iterators, and a batch while it is made
	WatchStreams, Watchers    func() int
	SlowWatchers              func() int // watchers behind the ring of recent events
	PendingEvents             func() int

	// Alarms are those that are raised, as (member, type) pairs.
	Alarms func() []AlarmOf

	// Own holds values without a name of etcd's: name under trivet_ → value.
	Own []Own
}

// AlarmOf names one alarm that is raised.
type AlarmOf struct {
	MemberID uint64
	Type     string
}

// Own is one metric of ours.
type Own struct {
	Name  string // without the trivet_
	Help  string
	Value func() float64
}

// Join adds the sources, once, when the parts of the member that hold them exist.
func (m *Metrics) Join(s Sources) {
	id := fmt.Sprintf("%x", s.MemberID)
	m.label("etcd_server_id", "The id of this member, in hexadecimal.", "server_id", id)
	truth(m, "etcd_server_has_leader", "1 if this member knows a leader.", s.HasLeader)
	truth(m, "etcd_server_is_leader", "1 if this member leads.", s.IsLeader)
	truth(m, "etcd_server_is_learner", "1 if this member is a learner.", s.IsLearner)
	number(m, "etcd_server_proposals_committed_total", "The committed index of the log.", s.Committed)
	number(m, "etcd_server_proposals_applied_total", "The applied index of the log.", s.Applied)
	number(m, "etcd_debugging_auth_revision", "The revision of users and roles.", s.AuthRevision)
	number(m, "etcd_server_proposals_pending", "Proposals that wait for their result.", s.Pending)
	m.counterFunc("etcd_debugging_lease_renewed_total", "Renewals seen by the leader.", s.LeasesRenewed)
	m.counterFunc("etcd_debugging_server_lease_expired_total", "Leases that expired.", s.LeasesExpired)
	number(m, "etcd_server_quota_backend_bytes", "The quota for the store, in bytes.", s.QuotaBytes)
	number(m, "etcd_debugging_mvcc_current_revision", "The revision of the store.", s.Revision)
	number(m, "etcd_debugging_mvcc_compact_revision", "The revision up to which history is gone.", s.CompactRevision)
	number(m, "etcd_debugging_mvcc_keys_total", "Live keys.", s.Keys)
	number(m, "etcd_mvcc_db_total_size_in_bytes", "Bytes of the store on disk.", s.DBBytes)
	number(m, "etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the store on disk that hold live tables.", s.DBInUseBytes)
	number(m, "etcd_debugging_mvcc_db_total_size_in_bytes", "Bytes of the store on disk, under the name it had up to etcd 3.3.", s.DBBytes)
	number(m, "etcd_mvcc_db_open_read_transactions", "Reads of the store that are open.", s.OpenReads)
	number(m, "etcd_debugging_mvcc_watch_stream_total", "Watch streams.", s.WatchStreams)
	number(m, "etcd_debugging_mvcc_watcher_total", "Watchers.", s.Watchers)
	number(m, "etcd_debugging_mvcc_slow_watcher_total", "Watchers that are behind the recent events.", s.SlowWatchers)
	number(m, "etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent.", s.PendingEvents)
	m.gaugeFunc("os_fd_used", "Open file descriptors.", openFiles)
	m.gaugeFunc("os_fd_limit", "The limit of open file descriptors.", fileLimit)
	if s.Peers != nil {
		m.registry.MustRegister(peersCollector{
			desc: prometheus.NewDesc("etcd_network_known_peers", "The members of the cluster.", []string{"Local", "Remote"}, nil),
			id:   id, peers: s.Peers,
		})
	}
	if s.Alarms != nil {
		m.registry.MustRegister(alarmsCollector{
			desc:   prometheus.NewDesc("etcd_debugging_server_alarms", "The alarms that are raised.", []string{"server_id", "alarm_type"}, nil),
			alarms: s.Alarms,
		})
	}
	if s.ClusterVersion != nil {
		m.registry.MustRegister(versionCollector{
			desc: prometheus.NewDesc("etcd_cluster_version", "The version that the whole cluster serves.", []string{"cluster_version"}, nil),
			of:   s.ClusterVersion,
		})
	}
	for _, o := range s.Own {
		m.gaugeFunc("trivet_"+o.Name, o.Help, o.Value)
	}
}

// versionCollector shows the version of the moment.
type versionCollector struct {
	desc *prometheus.Desc
	of   func() string
}

func (v versionCollector) Describe(c chan<- *prometheus.Desc) { c <- v.desc }

func (v versionCollector) Collect(c chan<- prometheus.Metric) {
	if version := v.of(); version != "" {
		c <- prometheus.MustNewConstMetric(v.desc, prometheus.GaugeValue, 1, version)
	}
}

func truth(m *Metrics, name, help string, f func() bool) {
	if f == nil {
		return
	}
	m.gaugeFunc(name, help, func() float64 {
		if f() {
			return 1
		}
		return 0
	})
}

func number[T int | int64 | uint64](m *Metrics, name, help string, f func() T) {
	if f == nil {
		return
	}
	m.gaugeFunc(name, help, func() float64 { return float64(f()) })
}

type peersCollector struct {
	desc  *prometheus.Desc
	id    string
	peers func() []uint64
}

func (c peersCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c peersCollector) Collect(ch chan<- prometheus.Metric) {
	for _, p := range c.peers() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, 1, c.id, fmt.Sprintf("%x", p))
	}
}

type alarmsCollector struct {
	desc   *prometheus.Desc
	alarms func() []AlarmOf
}

func (c alarmsCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c alarmsCollector) Collect(ch chan<- prometheus.Metric) {
	for _, a := range c.alarms() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, 1, fmt.Sprintf("%x", a.MemberID), a.Type)
	}
}

// openFiles is -1 where the system does not tell.
func openFiles() float64 {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return -1
	}
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return -1
	}
	return float64(len(names))
}

func fileLimit() float64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return -1
	}
	return float64(l.Cur)
}
