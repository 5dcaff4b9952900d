// Package config turns the command line, the environment and the configuration file into one Config. All three are made
// from one list, the table of flags in table.go: names, defaults and sections are those of etcd 3.7, and each flag says
// whether it works or has no meaning here.
//
// It never opens a listener or the data directory, and never logs: what deserves a line in the log is collected in
// Config.Notes, because the logger is made from the Config.
//
// Invariants, attacked by the tests beside this file:
//   - The list has every flag that etcd 3.7 has, with its default (TestTableIsEtcds).
//   - A configuration file alone wins over flags and environment; a flag wins over its variable (TestPrecedence).
//   - No flag is silently ignored: one without meaning is noted once (TestMeaninglessIsNoted).
//   - Every error is one sentence that names the flag (or variable, or key of the file), its value, what is wrong and what
//     to do (TestBadInput).
package config

import (
	"log/slog"
	"net/netip"
	"net/url"
	"time"
)

// Config is how one member is to run. Load makes it; nobody changes it afterwards.
type Config struct {
	Name    string
	DataDir string // never empty after Load: NAME.etcd unless given
	WALDir  string // a directory of its own for the log; empty: in DataDir

	ListenPeerURLs       []url.URL // of http and https the host is an IP address or localhost; unix and unixs have a path
	ListenClientURLs     []url.URL
	ListenClientHTTPURLs []url.URL // empty: HTTP is served on ListenClientURLs, beside gRPC
	ListenMetricsURLs    []url.URL // empty: /metrics and /health are on the client URLs only
	AdvertisePeerURLs    []url.URL
	AdvertiseClientURLs  []url.URL

	ClientTLS, PeerTLS     TLS
	SelfSignedCertValidity uint     // years
	CipherSuites           []uint16 // empty: those of Go
	TLSMinVersion          uint16   // 0: TLS 1.2
	TLSMaxVersion          uint16   // 0: the newest
	SocketReusePort        bool
	SocketReuseAddress     bool

	InitialCluster      []InitialMember // sorted by name; checked by CheckBootstrap, not by Load
	InitialClusterState string          // "new" or "existing"
	InitialClusterToken string
	Join                []string // endpoints of a running cluster, as they were written; empty: none
	StrictReconfigCheck bool
	MaxLearners         uint
	ForceNewCluster     bool
	DowngradeCheckTime  time.Duration
	// Checks by the leader that the members' data is the same: of the newest revision (0: none), and of compactions, with
	// the gate CompactHashCheck. Neither is negative, and the latter is not zero.
	CorruptCheckTime     time.Duration
	CompactHashCheckTime time.Duration
	// History that automatic compaction keeps; at most one is not zero.
	AutoCompactionPeriod    time.Duration
	AutoCompactionRevisions int64

	// How the founding members are found instead of by InitialCluster, which holds this member alone then. At most one of the two is set.
	Discovery        Discovery
	DiscoverySRV     string // DNS domain
	DiscoverySRVName string // suffix of the service name

	Heartbeat       time.Duration
	ElectionTimeout time.Duration // at least five heartbeats

	SlowDiskThreshold time.Duration // of a commit of the log, from which on a leader hands over; 0: it never does

	SnapshotCatchupEntries uint64 // log entries kept for followers that were away

	QuotaManualDisarm    bool   // the alarm of the quota is cleared by hand only
	QuotaBackendBytes    int64  // as given: 0 means etcd's default of 2 GiB, negative none
	MaxTxnOps            uint   // operations of one transaction
	MaxRequestBytes      uint   // bytes of one request
	MaxConcurrentStreams uint32 // of one client connection

	GRPCKeepAliveMinTime  time.Duration // a client that pings more often is turned away
	GRPCKeepAliveInterval time.Duration // 0: the server does not ping
	GRPCKeepAliveTimeout  time.Duration // 0: a connection that does not answer is not closed

	WatchProgressNotifyInterval time.Duration // never zero after Load
	WarningApplyDuration        time.Duration // applying longer than this is logged
	WarningUnaryRequestDuration time.Duration // never zero after Load; a unary call longer than this is logged

	EnableGRPCGateway bool // false: no JSON under /v3
	EnablePprof       bool // /debug/pprof on the client URLs

	AuthToken    string // the kind of tokens and its options, as given; package token reads it
	BcryptCost   uint   // one that bcrypt does not have means its default, 10
	AuthTokenTTL uint   // seconds that a simple token lives unused; 0: 300

	CORS          []string // origins that browsers may call from; a star: all
	HostWhitelist []string // host names that plain HTTP requests may carry; a star: all

	LogLevel   slog.Level
	LogFormat  string   // "json" or "console"
	LogOutputs []string // "stderr", "stdout", "systemd/journal" (alone) or paths of files; never empty, no duplicates
	// LogRotation is for the one file among LogOutputs; nil: it grows.
	LogRotation   *LogRotation
	rotate        bool
	rotation      string
	retention     string // --auto-compaction-retention and its mode as written
	retentionMode string

	// Tracing is where spans are sent; nil: nowhere.
	Tracing *Tracing
	traced  bool
	tracing Tracing

	// LocalAddr is where connections to other members are made from; not valid: the system's choice.
	LocalAddr netip.Addr

	// Gates are all feature gates of etcd, and whether they are on.
	Gates map[string]bool

	UnsafeNoFsync bool // nothing waits for the disk

	// Given holds the settings that differ from their defaults, by flag, for the log.
	Given map[string]string
	// Notes are what the log should say once about these settings, in order.
	Notes []Note
}

// TLS says how one kind of connection is secured.
type TLS struct {
	CertFile, KeyFile             string
	ClientCertFile, ClientKeyFile string // shown when dialling; none: CertFile and KeyFile
	TrustedCAFile, CRLFile        string
	ClientCertAuth                bool
	AllowedCNs, AllowedHostnames  []string
	SkipClientSANVerification     bool
	Auto                          bool // the member makes its own certificate; false after Load if it was given one
}

// Serves tells whether there will be a certificate to serve with.
func (t *TLS) Serves() bool { return t.Auto || t.CertFile != "" }

// Secure tells whether a URL is one of TLS.
func Secure(u url.URL) bool { return u.Scheme == "https" || u.Scheme == "unixs" }

// Unix tells whether a URL is one of a unix socket.
func Unix(u url.URL) bool { return u.Scheme == "unix" || u.Scheme == "unixs" }

// Address is what a URL's socket is bound to or dialled at: HOST:PORT, or a path.
func Address(u url.URL) string {
	if Unix(u) {
		return u.Host + u.Path
	}
	return u.Host
}

// Tracing says where spans are sent, and which.
type Tracing struct {
	Address     string // of a collector
	ServiceName string
	InstanceID  string // empty: none
	PerMillion  int64  // of traces that begin here, from 0 to a million
}

// LogRotation says when a log file is full and how long full ones are kept.
type LogRotation struct {
	MaxSize    int  `json:"maxsize"`    // MiB; 0: 100
	MaxAge     int  `json:"maxage"`     // days; 0: no bound
	MaxBackups int  `json:"maxbackups"` // files; 0: no bound
	LocalTime  bool `json:"localtime"`  // in the names of full files; false: UTC
	Compress   bool `json:"compress"`
}

// Discovery says where the founding members meet: a cluster that speaks etcd's API. It is used if there are Endpoints.
type Discovery struct {
	Token              string
	Endpoints          []string
	DialTimeout        time.Duration
	RequestTimeout     time.Duration
	KeepAliveTime      time.Duration
	KeepAliveTimeout   time.Duration
	InsecureTransport  bool
	InsecureSkipVerify bool
	CertFile           string
	KeyFile            string
	CAFile             string
	ServerName         string // whom the service's certificate is for; empty: the endpoint's host
	User, Password     string // secret
	AuthToken          string // secret; instead of a user
	MaxSendBytes       int64  // of one request; 0: the client's default
	MaxRecvBytes       int64  // of one answer; 0: the client's default
}

// InitialMember is one member that founds the cluster.
type InitialMember struct {
	Name     string
	PeerURLs []string // sorted, as they were written
}

// Note is a line for the log.
type Note struct {
	Level   slog.Level
	Message string
	Args    []any // key, value, …
}

// Levels beyond those of slog, which etcd's --log-level also knows.
const (
	LevelPanic = slog.LevelError + 4
	LevelFatal = slog.LevelError + 8
)

// Defaults for settings that are zero when they were not given, as in etcd.
const (
	DefaultWatchProgressNotifyInterval = 10 * time.Minute
	DefaultWarningUnaryRequestDuration = 300 * time.Millisecond
)

// Strings are the URLs as text, in order.
func Strings(urls []url.URL) []string {
	s := make([]string, len(urls))
	for i := range urls {
		s[i] = urls[i].String()
	}
	return s
}
