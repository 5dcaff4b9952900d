package config

// Support says what Trivet makes of a flag of etcd.
type Support uint8

// The kinds of support.
const (
	// Works: the flag does what it does in etcd.
	Works Support = iota
	// Meaningless: the flag tunes a part that Trivet does not have. Any value is accepted and noted once.
	Meaningless
)

// String is the word for documents.
func (s Support) String() string { return [...]string{"works", "no meaning"}[s] }

// Flag is one line of the table.
type Flag struct {
	Name    string
	Kind    Kind
	Default string // as the user would write it
	Section string // heading in the help; empty: not listed there
	Support Support
	Help    string
	// Why says for Meaningless what Trivet has instead, and for Works where the flag's effect differs from etcd's.
	Why string
	// File is the key in the configuration file, with dots between the levels; empty: as Name; "-": none.
	File string

	secret bool              // the value is never shown
	bind   func(*Config) any // where a value that works goes
}

// Sections of the help, in order.
const (
	member     = "Member"
	clustering = "Clustering"
	security   = "Security"
	auth       = "Auth"
	monitoring = "Profiling and monitoring"
	logging    = "Logging"
	tracing    = "Distributed tracing"
	features   = "Features"
	unsafe     = "Unsafe"
	older      = "Names of etcd up to 3.6"
	general    = "General"
)

// Reasons that several flags share.
const (
	noBbolt    = "it tunes bbolt; state lives in an LSM engine here"
	wasRemoved = "etcd itself ignores it"
	ctsec      = "client-transport-security."
	ptsec      = "peer-transport-security."
	dconf      = "discovery-config."
)

// Flags is the table: every flag of etcd 3.7, in the order of the help.
func Flags() []Flag { return table }

// table is never written to.
var table = []Flag{
	{Name: "name", Kind: String, Default: "default", Section: member, Help: "The member's name, the one it has in --initial-cluster.",
		bind: func(c *Config) any { return &c.Name }},
	{Name: "data-dir", Kind: String, Section: member, Help: "The directory that holds all of the member's data. Default: NAME.etcd.",
		bind: func(c *Config) any { return &c.DataDir }},
	{Name: "wal-dir", Kind: String, Section: member, Help: "A directory of its own for the log, as on another disk. Default: in the data directory.",
		bind: func(c *Config) any { return &c.WALDir }},
	{Name: "snapshot-count", Kind: Uint64, Default: "10000", Section: member, Support: Meaningless, Help: "Entries between two snapshots.",
		Why: "state is written out as it fills up, not by entry count; the log is cut behind what is safe in the state"},
	{Name: "heartbeat-interval", Kind: Millis, Default: "100", Section: member, Help: "Milliseconds between heartbeats of the leader.",
		bind: func(c *Config) any { return &c.Heartbeat }},
	{Name: "election-timeout", Kind: Millis, Default: "1000", Section: member, Help: "Milliseconds without a leader before a member stands for election.",
		bind: func(c *Config) any { return &c.ElectionTimeout }},
	{Name: "slow-disk-threshold", Kind: Duration, Default: "500ms", Section: member,
		Help: "A leader whose commits to the log take longer than this hands leadership over; 0: it keeps it. Trivet's own.",
		bind: func(c *Config) any { return &c.SlowDiskThreshold }},
	{Name: "initial-election-tick-advance", Kind: Bool, Default: "true", Section: member, Support: Meaningless,
		Help: "Shorten the first election after a start.",
		Why:  "a member that finds no leader at its start does not wait for a full election timeout in any case"},
	{Name: "listen-peer-urls", Kind: URLs, Default: "http://localhost:2380", Section: member, Help: "Where to listen for other members.",
		bind: func(c *Config) any { return &c.ListenPeerURLs }},
	{Name: "listen-client-urls", Kind: URLs, Default: "http://localhost:2379", Section: member,
		Help: "Where to listen for clients, gRPC and HTTP on the same port.",
		bind: func(c *Config) any { return &c.ListenClientURLs }},
	{Name: "listen-client-http-urls", Kind: URLs, Section: member,
		Help: "Where to listen for HTTP clients only; --listen-client-urls is then for gRPC only.",
		bind: func(c *Config) any { return &c.ListenClientHTTPURLs }},
	{Name: "max-snapshots", Kind: Uint, Default: "5", Section: member, Support: Meaningless, Help: "Snapshot files to keep.",
		Why: "there are no snapshot files to keep"},
	{Name: "max-wals", Kind: Uint, Default: "5", Section: member, Support: Meaningless, Help: "Log files to keep.",
		Why: "log segments are recycled as soon as the state no longer needs them"},
	{Name: "memory-mlock", Kind: Bool, Default: "false", Section: member, Support: Meaningless, Help: "Keep the database's pages in memory.",
		Why: noBbolt},
	{Name: "quota-backend-bytes", Kind: Int64, Default: "0", Section: member,
		Help: "Size of the state above which writes are refused; 0: 2 GiB, negative: none.",
		bind: func(c *Config) any { return &c.QuotaBackendBytes }},
	{Name: "quota-manual-disarm", Kind: Bool, Default: "false", Section: member,
		Help: "Leave clearing the alarm NOSPACE to alarm disarm, as etcd does; otherwise a member clears its own below 90 % of the quota. Trivet's own.",
		bind: func(c *Config) any { return &c.QuotaManualDisarm }},
	{Name: "backend-bbolt-freelist-type", Kind: String, Section: member, Support: Meaningless, Help: "Kind of free list of bbolt.", Why: noBbolt},
	{Name: "backend-batch-interval", Kind: Duration, Default: "0s", Section: member, Support: Meaningless, Help: "Time between commits of bbolt.", Why: noBbolt},
	{Name: "backend-batch-limit", Kind: Int, Default: "0", Section: member, Support: Meaningless, Help: "Operations between commits of bbolt.", Why: noBbolt},
	{Name: "max-txn-ops", Kind: Uint, Default: "128", Section: member, Help: "Operations that one transaction may have.",
		bind: func(c *Config) any { return &c.MaxTxnOps }},
	{Name: "max-request-bytes", Kind: Uint, Default: "1572864", Section: member, Help: "Bytes that one request may have.",
		bind: func(c *Config) any { return &c.MaxRequestBytes }},
	{Name: "max-concurrent-streams", Kind: Uint32, Default: "4294967295", Section: member, Help: "Streams that one client connection may have open.",
		bind: func(c *Config) any { return &c.MaxConcurrentStreams }},
	{Name: "grpc-keepalive-min-time", Kind: Duration, Default: "5s", Section: member, Help: "Shortest time between two pings of a client.",
		bind: func(c *Config) any { return &c.GRPCKeepAliveMinTime }},
	{Name: "grpc-keepalive-interval", Kind: Duration, Default: "2h0m0s", Section: member, Help: "Time between pings of the server; 0: none.",
		bind: func(c *Config) any { return &c.GRPCKeepAliveInterval }},
	{Name: "grpc-keepalive-timeout", Kind: Duration, Default: "20s", Section: member, Help: "Wait for the answer to a ping before the connection is closed.",
		bind: func(c *Config) any { return &c.GRPCKeepAliveTimeout }},
	{Name: "socket-reuse-port", Kind: Bool, Default: "false", Section: member, Help: "Listen with SO_REUSEPORT.", File: "socket-options.reuse-port",
		bind: func(c *Config) any { return &c.SocketReusePort }},
	{Name: "socket-reuse-address", Kind: Bool, Default: "false", Section: member, Help: "Listen with SO_REUSEADDR.", File: "socket-options.reuse-address",
		Why:  "Go sets SO_REUSEADDR on every listener, with or without the flag",
		bind: func(c *Config) any { return &c.SocketReuseAddress }},
	{Name: "enable-grpc-gateway", Kind: Bool, Default: "true", Section: member, Help: "Serve JSON over HTTP under /v3.",
		bind: func(c *Config) any { return &c.EnableGRPCGateway }},
	{Name: "raft-read-timeout", Kind: Duration, Default: "5s", Section: member, Support: Meaningless, Help: "Read timeout of peer connections.",
		Why: "members speak a protocol of their own, whose timeouts follow from the heartbeat", File: "-"},
	{Name: "raft-write-timeout", Kind: Duration, Default: "5s", Section: member, Support: Meaningless, Help: "Write timeout of peer connections.",
		Why: "members speak a protocol of their own, whose timeouts follow from the heartbeat", File: "-"},
	{Name: "feature-gates", Kind: Gates, Section: member, Help: "Features to turn on or off, as NAME=true,NAME=false.",
		Why: gatesWhy()},

	{Name: "initial-advertise-peer-urls", Kind: URLs, Default: "http://localhost:2380", Section: clustering, Help: "Where other members reach this one.",
		bind: func(c *Config) any { return &c.AdvertisePeerURLs }},
	{Name: "initial-cluster", Kind: String, Default: "default=http://localhost:2380", Section: clustering,
		Help: "The founding members as NAME=URL,NAME=URL; a member with several URLs is listed once for each."},
	{Name: "initial-cluster-state", Kind: String, Default: "new", Section: clustering,
		Help: "'new' to found a cluster, 'existing' to join one; ignored once there is data.",
		bind: func(c *Config) any { return &c.InitialClusterState }},
	{Name: "join", Kind: List, Section: clustering,
		Help: "Endpoints of a running cluster, its peer or client URLs or HOST:PORT of these, that a member without data joins; Trivet's own. No --initial-cluster is needed.",
		bind: func(c *Config) any { return &c.Join }},
	{Name: "initial-cluster-token", Kind: String, Default: "etcd-cluster", Section: clustering,
		Help: "A name that keeps clusters apart; part of all ids.",
		bind: func(c *Config) any { return &c.InitialClusterToken }},
	{Name: "advertise-client-urls", Kind: URLs, Default: "http://localhost:2379", Section: clustering,
		Help: "Where clients reach this member. Required with --listen-client-urls.",
		bind: func(c *Config) any { return &c.AdvertiseClientURLs }},
	{Name: "discovery-token", Kind: String, Section: clustering, Help: "The founding cluster's token at the discovery service.", File: dconf + "token",
		bind: func(c *Config) any { return &c.Discovery.Token }},
	{Name: "discovery-endpoints", Kind: List, Section: clustering, Help: "Members of the cluster that serves for discovery.", File: dconf + "client.endpoints",
		bind: func(c *Config) any { return &c.Discovery.Endpoints }},
	{Name: "discovery-dial-timeout", Kind: Duration, Default: "2s", Section: clustering, Help: "Wait for a connection to the discovery service.", File: dconf + "client.dial-timeout",
		bind: func(c *Config) any { return &c.Discovery.DialTimeout }},
	{Name: "discovery-request-timeout", Kind: Duration, Default: "5s", Section: clustering, Help: "Wait for an answer of the discovery service.", File: dconf + "client.request-timeout",
		bind: func(c *Config) any { return &c.Discovery.RequestTimeout }},
	{Name: "discovery-keepalive-time", Kind: Duration, Default: "2s", Section: clustering, Help: "Time between pings to the discovery service.", File: dconf + "client.keepalive-time",
		bind: func(c *Config) any { return &c.Discovery.KeepAliveTime }},
	{Name: "discovery-keepalive-timeout", Kind: Duration, Default: "6s", Section: clustering, Help: "Wait for a ping's answer of the discovery service.", File: dconf + "client.keepalive-timeout",
		bind: func(c *Config) any { return &c.Discovery.KeepAliveTimeout }},
	{Name: "discovery-insecure-transport", Kind: Bool, Default: "true", Section: clustering, Help: "Talk to the discovery service without TLS.", File: dconf + "client.secure.insecure-transport",
		bind: func(c *Config) any { return &c.Discovery.InsecureTransport }},
	{Name: "discovery-insecure-skip-tls-verify", Kind: Bool, Default: "false", Section: clustering, Help: "Do not check the discovery service's certificate.", File: dconf + "client.secure.insecure-skip-tls-verify",
		bind: func(c *Config) any { return &c.Discovery.InsecureSkipVerify }},
	{Name: "discovery-cert", Kind: String, Section: clustering, Help: "Certificate for the discovery service.", File: dconf + "client.secure.cert",
		bind: func(c *Config) any { return &c.Discovery.CertFile }},
	{Name: "discovery-key", Kind: String, Section: clustering, Help: "Its key.", File: dconf + "client.secure.key",
		bind: func(c *Config) any { return &c.Discovery.KeyFile }},
	{Name: "discovery-cacert", Kind: String, Section: clustering, Help: "CA that the discovery service's certificate is checked against.", File: dconf + "client.secure.cacert",
		bind: func(c *Config) any { return &c.Discovery.CAFile }},
	{Name: "discovery-user", Kind: String, Section: clustering, Help: "User at the discovery service, as NAME or NAME:PASSWORD.", File: dconf + "client.auth.username", secret: true,
		bind: func(c *Config) any { return &c.Discovery.User }},
	{Name: "discovery-password", Kind: String, Section: clustering, Help: "Password at the discovery service.", File: dconf + "client.auth.password", secret: true,
		bind: func(c *Config) any { return &c.Discovery.Password }},
	{Name: "discovery-fallback", Kind: String, Default: "exit", Section: clustering, Support: Meaningless, Help: "What to do when discovery fails: exit.", Why: "the one value, exit, is what happens", File: "-"},
	{Name: "discovery-srv", Kind: String, Section: clustering, Help: "DNS domain whose SRV records name the founding members.",
		bind: func(c *Config) any { return &c.DiscoverySRV }},
	{Name: "discovery-srv-name", Kind: String, Section: clustering, Help: "Suffix of the SRV service name.",
		bind: func(c *Config) any { return &c.DiscoverySRVName }},
	{Name: "strict-reconfig-check", Kind: Bool, Default: "true", Section: clustering, Help: "Refuse changes of the members that would leave the cluster without a majority that runs.",
		bind: func(c *Config) any { return &c.StrictReconfigCheck }},
	{Name: "pre-vote", Kind: Bool, Default: "true", Section: clustering, Support: Meaningless, Help: "Ask before standing for election.",
		Why: "pre-vote is always on; failover without waiting stands on it"},
	{Name: "auto-compaction-retention", Kind: String, Default: "0", Section: clustering, Help: "History to keep when the leader compacts by itself: hours or a duration (8, 30m), or a number of revisions in mode revision; 0: do not.",
		bind: func(c *Config) any { return &c.retention }},
	{Name: "auto-compaction-mode", Kind: String, Default: "periodic", Section: clustering, Help: "What --auto-compaction-retention counts: periodic (time) or revision.",
		bind: func(c *Config) any { return &c.retentionMode }},
	{Name: "v2-deprecation", Kind: String, Default: "write-only", Section: clustering, Support: Meaningless, Help: "Stage of etcd v2's removal.",
		Why: "there is no v2 store; etcd 3.7 ignores the value too"},

	{Name: "cert-file", Kind: String, Section: security, Help: "Certificate for clients.", File: ctsec + "cert-file", bind: func(c *Config) any { return &c.ClientTLS.CertFile }},
	{Name: "key-file", Kind: String, Section: security, Help: "Its key.", File: ctsec + "key-file", bind: func(c *Config) any { return &c.ClientTLS.KeyFile }},
	{Name: "client-cert-auth", Kind: Bool, Default: "false", Section: security, Help: "Demand certificates of clients.", File: ctsec + "client-cert-auth", bind: func(c *Config) any { return &c.ClientTLS.ClientCertAuth }},
	{Name: "client-cert-file", Kind: String, Section: security, Help: "Certificate for the member's own client connections.", File: ctsec + "client-cert-file",
		Why: "checked, and not needed: the JSON gateway reaches the services in memory", bind: func(c *Config) any { return &c.ClientTLS.ClientCertFile }},
	{Name: "client-key-file", Kind: String, Section: security, Help: "Its key.", File: ctsec + "client-key-file", bind: func(c *Config) any { return &c.ClientTLS.ClientKeyFile }},
	{Name: "client-crl-file", Kind: String, Section: security, Help: "Revoked client certificates.", File: "-", bind: func(c *Config) any { return &c.ClientTLS.CRLFile }},
	{Name: "client-cert-allowed-hostname", Kind: List, Section: security, Help: "Hostnames that client certificates may carry.", File: ctsec + "allowed-hostname", bind: func(c *Config) any { return &c.ClientTLS.AllowedHostnames }},
	{Name: "trusted-ca-file", Kind: String, Section: security, Help: "CA that client certificates are checked against.", File: ctsec + "trusted-ca-file", bind: func(c *Config) any { return &c.ClientTLS.TrustedCAFile }},
	{Name: "auto-tls", Kind: Bool, Default: "false", Section: security, Help: "Make certificates for clients by itself.", File: ctsec + "auto-tls", bind: func(c *Config) any { return &c.ClientTLS.Auto }},
	{Name: "peer-cert-file", Kind: String, Section: security, Help: "Certificate for peers.", File: ptsec + "cert-file", bind: func(c *Config) any { return &c.PeerTLS.CertFile }},
	{Name: "peer-key-file", Kind: String, Section: security, Help: "Its key.", File: ptsec + "key-file", bind: func(c *Config) any { return &c.PeerTLS.KeyFile }},
	{Name: "peer-client-cert-auth", Kind: Bool, Default: "false", Section: security, Help: "Demand certificates of peers.", File: ptsec + "client-cert-auth", bind: func(c *Config) any { return &c.PeerTLS.ClientCertAuth }},
	{Name: "peer-client-cert-file", Kind: String, Section: security, Help: "Certificate for connections to peers.", File: ptsec + "client-cert-file", bind: func(c *Config) any { return &c.PeerTLS.ClientCertFile }},
	{Name: "peer-client-key-file", Kind: String, Section: security, Help: "Its key.", File: ptsec + "client-key-file", bind: func(c *Config) any { return &c.PeerTLS.ClientKeyFile }},
	{Name: "peer-trusted-ca-file", Kind: String, Section: security, Help: "CA that peer certificates are checked against.", File: ptsec + "trusted-ca-file", bind: func(c *Config) any { return &c.PeerTLS.TrustedCAFile }},
	{Name: "peer-cert-allowed-cn", Kind: List, Section: security, Help: "Common names that peer certificates may carry.", File: ptsec + "allowed-cn", bind: func(c *Config) any { return &c.PeerTLS.AllowedCNs }},
	{Name: "peer-cert-allowed-hostname", Kind: List, Section: security, Help: "Hostnames that peer certificates may carry.", File: ptsec + "allowed-hostname", bind: func(c *Config) any { return &c.PeerTLS.AllowedHostnames }},
	{Name: "peer-auto-tls", Kind: Bool, Default: "false", Section: security, Help: "Make certificates for peers by itself.", File: ptsec + "auto-tls", bind: func(c *Config) any { return &c.PeerTLS.Auto }},
	{Name: "self-signed-cert-validity", Kind: Uint, Default: "1", Section: security, Help: "Years that certificates made by itself are valid.",
		bind: func(c *Config) any { return &c.SelfSignedCertValidity }},
	{Name: "peer-crl-file", Kind: String, Section: security, Help: "Revoked peer certificates.", File: "-", bind: func(c *Config) any { return &c.PeerTLS.CRLFile }},
	{Name: "peer-skip-client-san-verification", Kind: Bool, Default: "false", Section: security, Help: "Do not check the names in peer certificates.", File: ptsec + "skip-client-san-verification", bind: func(c *Config) any { return &c.PeerTLS.SkipClientSANVerification }},
	{Name: "cipher-suites", Kind: List, Section: security, Help: "Cipher suites of TLS 1.2, by the names that Go gives them."},
	{Name: "cors", Kind: List, Default: "*", Section: security, Help: "Origins that browsers may call from, as SCHEME://HOST:PORT; *: all.",
		bind: func(c *Config) any { return &c.CORS }},
	{Name: "host-whitelist", Kind: List, Default: "*", Section: security, Help: "Host names that plain HTTP requests may carry; *: all.",
		bind: func(c *Config) any { return &c.HostWhitelist }},
	{Name: "tls-min-version", Kind: String, Default: "TLS1.2", Section: security, Help: "Lowest version of TLS: TLS1.2 or TLS1.3."},
	{Name: "tls-max-version", Kind: String, Section: security, Help: "Highest version of TLS; empty: the newest."},

	{Name: "auth-token", Kind: String, Default: "simple", Section: auth, secret: true,
		Help: "Kind of tokens: simple, or jwt,sign-method=METHOD,priv-key=FILE,pub-key=FILE,ttl=10m.",
		bind: func(c *Config) any { return &c.AuthToken }},
	{Name: "bcrypt-cost", Kind: Uint, Default: "10", Section: auth, Help: "Cost of hashing passwords, from 4 to 31.",
		bind: func(c *Config) any { return &c.BcryptCost }},
	{Name: "auth-token-ttl", Kind: Uint, Default: "300", Section: auth, Help: "Seconds that a simple token lives after it was last used.",
		bind: func(c *Config) any { return &c.AuthTokenTTL }},

	{Name: "enable-pprof", Kind: Bool, Default: "false", Section: monitoring, Help: "Serve profiles under /debug/pprof.",
		bind: func(c *Config) any { return &c.EnablePprof }},
	{Name: "metrics", Kind: String, Default: "basic", Section: monitoring, Support: Meaningless, Help: "'basic' or 'extensive'.",
		Why: "the gRPC histograms that 'extensive' adds are always there"},
	{Name: "listen-metrics-urls", Kind: URLs, Section: monitoring, Help: "Where to listen for /metrics and /health apart from clients.",
		bind: func(c *Config) any { return &c.ListenMetricsURLs }},

	{Name: "logger", Kind: String, Default: "zap", Section: logging, Support: Meaningless, Help: "Kind of logger: zap.",
		Why: "lines have zap's form, whatever writes them"},
	{Name: "log-outputs", Kind: List, Default: "default", Section: logging, Help: "Where the log goes: default, stderr, stdout, systemd/journal, or paths of files.",
		bind: func(c *Config) any { return &c.LogOutputs }},
	{Name: "log-level", Kind: String, Default: "info", Section: logging, Help: "debug, info, warn, error, panic or fatal."},
	{Name: "log-format", Kind: String, Default: "json", Section: logging, Help: "json or console.",
		bind: func(c *Config) any { return &c.LogFormat }},
	{Name: "enable-log-rotation", Kind: Bool, Default: "false", Section: logging, Help: "Begin a new log file when the one of --log-outputs is full.",
		bind: func(c *Config) any { return &c.rotate }},
	{Name: "log-rotation-config-json", Kind: String, Section: logging,
		Help:    "When a log file is full and how long old ones are kept: MiB, days, files; 0: no bound, for maxsize 100.",
		Default: `{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}`,
		bind:    func(c *Config) any { return &c.rotation }},
	{Name: "warning-unary-request-duration", Kind: Duration, Default: "300ms", Section: logging, Help: "A call that takes longer is logged.",
		bind: func(c *Config) any { return &c.WarningUnaryRequestDuration }},

	{Name: "enable-distributed-tracing", Kind: Bool, Default: "false", Section: tracing, Help: "Send spans to an OpenTelemetry collector, over gRPC without TLS.",
		bind: func(c *Config) any { return &c.traced }},
	{Name: "distributed-tracing-address", Kind: String, Default: "localhost:4317", Section: tracing, Help: "Address of the collector.",
		bind: func(c *Config) any { return &c.tracing.Address }},
	{Name: "distributed-tracing-service-name", Kind: String, Default: "etcd", Section: tracing, Help: "Name of the service in traces, the same on all members.",
		bind: func(c *Config) any { return &c.tracing.ServiceName }},
	{Name: "distributed-tracing-instance-id", Kind: String, Section: tracing, Help: "Name of this member in traces, another on each.",
		bind: func(c *Config) any { return &c.tracing.InstanceID }},
	{Name: "distributed-tracing-sampling-rate", Kind: Int, Default: "0", Section: tracing,
		Help: "Traces sampled out of a million that begin at the member; callers decide about theirs.",
		bind: func(c *Config) any { return &c.tracing.PerMillion }},

	{Name: "corrupt-check-time", Kind: Duration, Default: "0s", Section: features, Help: "Time between checks by the leader that the members' data is the same; 0: none.",
		bind: func(c *Config) any { return &c.CorruptCheckTime }},
	{Name: "compact-hash-check-time", Kind: Duration, Default: "1m0s", Section: features, Help: "Time between the leader's looks whether a compaction is to be checked.",
		Why: "it is read with the feature gate CompactHashCheck only, as in etcd", bind: func(c *Config) any { return &c.CompactHashCheckTime }},
	{Name: "compaction-batch-limit", Kind: Int, Default: "0", Section: features, Support: Meaningless, Help: "Revisions deleted in one step of a compaction.",
		Why: "a compaction runs in small steps beside the writers and sizes them itself"},
	{Name: "compaction-sleep-interval", Kind: Duration, Default: "0s", Section: features, Support: Meaningless, Help: "Pause between the steps of a compaction.",
		Why: "a compaction runs in small steps beside the writers and paces them itself"},
	{Name: "watch-progress-notify-interval", Kind: Duration, Default: "0s", Section: features, Help: "Time between progress notes to idle watchers; 0: 10m.",
		bind: func(c *Config) any { return &c.WatchProgressNotifyInterval }},
	{Name: "warning-apply-duration", Kind: Duration, Default: "100ms", Section: features, Help: "Applying that takes longer is logged.",
		bind: func(c *Config) any { return &c.WarningApplyDuration }},
	{Name: "bootstrap-defrag-threshold-megabytes", Kind: Uint, Default: "0", Section: features, Support: Meaningless, Help: "Defragment at the start if this much comes free.",
		Why: "there is nothing to defragment"},
	{Name: "max-learners", Kind: Uint, Default: "1", Section: features, Help: "Learners that a cluster may have.",
		bind: func(c *Config) any { return &c.MaxLearners }},
	{Name: "downgrade-check-time", Kind: Duration, Default: "5s", Section: features, Help: "Time between checks whether a downgrade is done; 0: none.",
		bind: func(c *Config) any { return &c.DowngradeCheckTime }},
	{Name: "snapshot-catchup-entries", Kind: Uint64, Default: "5000", Section: features, Help: "Log entries kept for followers that were away.",
		bind: func(c *Config) any { return &c.SnapshotCatchupEntries }},

	{Name: "force-new-cluster", Kind: Bool, Default: "false", Section: unsafe, Help: "Make a new cluster of this member alone out of its data, and forget all others.",
		bind: func(c *Config) any { return &c.ForceNewCluster }},
	{Name: "unsafe-no-fsync", Kind: Bool, Default: "false", Section: unsafe, Help: "Never wait for the disk: a crash of the machine loses what was acknowledged.",
		bind: func(c *Config) any { return &c.UnsafeNoFsync }},

	// Names of etcd up to 3.6, which 3.7 refuses; what they say is settled by setOldNames.
	{Name: "experimental-initial-corrupt-check", Kind: Bool, Default: "false", Section: older, Help: "Old name of the feature gate InitialCorruptCheck."},
	{Name: "experimental-corrupt-check-time", Kind: Duration, Default: "0s", Section: older, Help: "Old name of --corrupt-check-time."},
	{Name: "experimental-compact-hash-check-enabled", Kind: Bool, Default: "false", Section: older, Help: "Old name of the feature gate CompactHashCheck."},
	{Name: "experimental-compact-hash-check-time", Kind: Duration, Default: "1m0s", Section: older, Help: "Old name of --compact-hash-check-time."},

	// Flags that etcd 3.7 still takes and ignores; like there, they need no value.
	{Name: "cluster-active-size", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "cluster-remove-delay", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "cluster-sync-interval", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "config", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "force", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "max-result-buffer", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "max-retry-attempts", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "peer-heartbeat-interval", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "peer-election-timeout", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "retry-interval", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "snapshot", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "v", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "vv", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "test.coverprofile", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},
	{Name: "test.outputdir", Kind: Ignored, Support: Meaningless, Why: wasRemoved, File: "-"},

	{Name: "config-file", Kind: String, Section: general, File: "-",
		Help: "A YAML file with all settings; flags and environment are then ignored. Durations in it are nanoseconds, or text such as 10m."},
	{Name: "version", Kind: Bool, Default: "false", Section: general, Help: "Print the version and exit.", File: "-"},
}
