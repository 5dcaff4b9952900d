package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// complete fills in what follows from other settings, as etcd does.
func (c *Config) complete(given map[string]setting, fromFile bool) error {
	_, listens := given["listen-client-urls"]
	_, advertises := given["advertise-client-urls"]
	if listens && !advertises && !fromFile {
		return fmt.Errorf("--advertise-client-urls is missing; with --listen-client-urls, say also where clients reach this member")
	}
	if c.Name == "" || strings.ContainsAny(c.Name, ",=") {
		return fmt.Errorf("%s: a member needs a name without commas and equal signs; give it the one it has in --initial-cluster", given["name"].shown)
	}
	c.Join = slices.DeleteFunc(c.Join, func(e string) bool { return e == "" })
	if c.DataDir == "" {
		c.DataDir = c.Name + ".etcd"
	}
	if c.WatchProgressNotifyInterval == 0 {
		c.WatchProgressNotifyInterval = DefaultWatchProgressNotifyInterval
	}
	if c.WarningUnaryRequestDuration == 0 {
		c.WarningUnaryRequestDuration = DefaultWarningUnaryRequestDuration
	}
	c.advertiseDefaultHost()

	cluster, ok := given["initial-cluster"]
	if !ok || cluster.value == defaultOf("initial-cluster") {
		// etcd takes the advertised URLs once the member has a name of its own.
		cluster.value = defaultOf("initial-cluster")
		if c.Name != defaultOf("name") {
			for i, u := range Strings(c.AdvertisePeerURLs) {
				if i == 0 {
					cluster.value = ""
				}
				cluster.value += "," + c.Name + "=" + u
			}
		}
	}
	if discovers, err := c.checkDiscovery(ok); discovers || err != nil {
		c.InitialCluster = []InitialMember{{Name: c.Name, PeerURLs: Strings(c.AdvertisePeerURLs)}} // until the others are found
		return err
	}
	var err error
	if c.InitialCluster, err = parseInitialCluster(cluster.value); err != nil {
		return fmt.Errorf("%s: %w", cluster.shown, err)
	}
	return nil
}

func defaultOf(name string) string {
	f, _ := find(name)
	return f.Default
}

// advertiseDefaultHost replaces localhost in advertised URLs that were left at their defaults by this machine's address
// when the member listens on all addresses: localhost would be of no use to others.
func (c *Config) advertiseDefaultHost() {
	host := ""
	swap := func(what string, advertised, listen []url.URL) {
		isDefault := len(advertised) == 1 && advertised[0].String() == defaultOf(what)
		if !isDefault || len(listen) == 0 || listen[0].Hostname() != "0.0.0.0" {
			return
		}
		if host == "" {
			if host = outgoingAddress(); host == "" {
				c.note(slog.LevelWarn, "this machine has no address to advertise; others cannot reach it", "flag", "--"+what)
				return
			}
		}
		advertised[0].Host = net.JoinHostPort(host, listen[0].Port())
		c.note(slog.LevelInfo, "advertising this machine's address", "flag", "--"+what, "url", advertised[0].String())
	}
	swap("initial-advertise-peer-urls", c.AdvertisePeerURLs, c.ListenPeerURLs)
	swap("advertise-client-urls", c.AdvertiseClientURLs, c.ListenClientURLs)
}

// outgoingAddress is the address from which this machine reaches others, or empty. Nothing is sent: connecting a UDP
// socket only looks up the route. The destination is reserved for documentation (RFC 5737).
func outgoingAddress() string {
	conn, err := net.Dial("udp4", "192.0.2.1:9")
	if err != nil {
		return ""
	}
	defer conn.Close()
	host, _, _ := net.SplitHostPort(conn.LocalAddr().String())
	return host
}

// minSlowDisk is the shortest threshold that makes sense.
const minSlowDisk = 10 * time.Millisecond

// validate checks each setting and how they go together; what depends on the data directory is CheckBootstrap's.
func (c *Config) validate(given map[string]setting, fromFile bool) error {
	// at names the setting that was given, or the default.
	at := func(name string) string {
		if s, ok := given[name]; ok {
			return s.shown
		}
		return "--" + name + "=" + defaultOf(name)
	}
	if err := c.completeTLS(given); err != nil {
		return err
	}
	if err := c.validateURLs(at); err != nil {
		return err
	}
	if err := checkEndpoints(c.Join); err != nil {
		return fmt.Errorf("%s: %w", at("join"), err)
	}
	if err := c.validateTimes(at); err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		known []string
	}{
		{"initial-cluster-state", []string{"new", "existing"}},
		{"auto-compaction-mode", []string{"periodic", "revision"}},
		{"v2-deprecation", []string{"write-only", "write-only-skip-check", "write-only-drop-data", "gone"}},
		{"discovery-fallback", []string{"exit"}},
		{"logger", []string{"zap"}},
		{"log-format", []string{"json", "console"}},
		{"log-level", []string{"debug", "info", "warn", "warning", "error", "panic", "fatal"}},
	} {
		if f.name == "v2-deprecation" && fromFile {
			continue // etcd takes what older versions wrote there
		}
		if s, ok := given[f.name]; ok && !slices.Contains(f.known, s.value) {
			return fmt.Errorf("%s: not known; write %s", s.shown, strings.Join(f.known, " or "))
		}
	}
	for _, o := range c.CORS {
		if u, err := url.Parse(o); o != "*" && o != "" && (err != nil || u.Scheme == "" || u.Host == "" || u.Path != "") {
			return fmt.Errorf("%s: %q is not an origin; write it as http://HOST:PORT, or * for all", at("cors"), o)
		}
	}
	if err := c.setAutoCompaction(at); err != nil {
		return err
	}
	c.LogLevel = logLevels[given["log-level"].value]
	if err := c.setGates(given["feature-gates"]); err != nil {
		return err
	}
	if err := c.setOldNames(given); err != nil {
		return err
	}
	switch {
	case c.CorruptCheckTime < 0:
		return fmt.Errorf("%s: the time must not be negative; write 0 to turn the check off", at("corrupt-check-time"))
	case c.CompactHashCheckTime <= 0:
		return fmt.Errorf("%s: the time must be above zero; etcd's default is 1m", at("compact-hash-check-time"))
	}
	if c.UnsafeNoFsync {
		c.note(slog.LevelWarn, "UNSAFE: nothing waits for the disk; when this machine crashes, writes that were acknowledged are lost, and the member may have to be replaced",
			"setting", at("unsafe-no-fsync"))
	}
	if err := c.validateOutputs(at("log-outputs")); err != nil {
		return err
	}
	if err := c.setTracing(at); err != nil {
		return err
	}
	return c.setRotation(at)
}

// setTracing: as in etcd the settings are not looked at unless spans are to be sent.
func (c *Config) setTracing(at func(string) string) error {
	if !c.traced {
		return nil
	}
	const million = 1_000_000
	wrong := "" // etcd's words
	switch n := c.tracing.PerMillion; {
	case n < 0:
		wrong = "must be positive"
	case n > million:
		wrong = fmt.Sprintf("must be less than %d", million)
	}
	if wrong != "" {
		return fmt.Errorf("%s: tracing sampling rate %s; write a number from 0 to %d", at("distributed-tracing-sampling-rate"), wrong, million)
	}
	c.Tracing = &c.tracing
	return nil
}

// validateTimes checks the intervals, timeouts and thresholds.
func (c *Config) validateTimes(at func(string) string) error {
	switch {
	case c.Heartbeat == 0:
		return fmt.Errorf("%s: the interval must be above zero; etcd's default is 100", at("heartbeat-interval"))
	case c.ElectionTimeout < 5*c.Heartbeat:
		return fmt.Errorf("%s: the timeout must be at least five times --heartbeat-interval (%d ms); write %d or more",
			at("election-timeout"), c.Heartbeat.Milliseconds(), 5*c.Heartbeat.Milliseconds())
	case c.ElectionTimeout > 50*time.Second:
		return fmt.Errorf("%s: the timeout is longer than 50000 ms; write less", at("election-timeout"))
	case c.SlowDiskThreshold < 0:
		return fmt.Errorf("%s: the duration must not be negative; write 0 to keep leadership whatever the disk does", at("slow-disk-threshold"))
	case c.SlowDiskThreshold > 0 && c.SlowDiskThreshold < minSlowDisk:
		return fmt.Errorf("%s: shorter than %v, which a good disk may take now and then; write more, or 0 to keep leadership whatever the disk does",
			at("slow-disk-threshold"), minSlowDisk)
	case c.GRPCKeepAliveInterval < 0 || c.GRPCKeepAliveTimeout < 0 || c.GRPCKeepAliveMinTime < 0:
		return fmt.Errorf("%s, %s, %s: durations must not be negative; write 0 to turn one off",
			at("grpc-keepalive-min-time"), at("grpc-keepalive-interval"), at("grpc-keepalive-timeout"))
	}
	return nil
}

// logLevels has no entry for the default, which is slog's zero.
var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "warn": slog.LevelWarn, "warning": slog.LevelWarn, "error": slog.LevelError,
	"panic": LevelPanic, "fatal": LevelFatal,
}

func (c *Config) validateURLs(at func(string) string) error {
	user := map[string]string{} // of each address listened on
	for _, l := range []struct {
		name   string
		urls   []url.URL
		tls    *TLS
		prefix string
	}{
		{"listen-peer-urls", c.ListenPeerURLs, &c.PeerTLS, "peer-"}, {"listen-client-urls", c.ListenClientURLs, &c.ClientTLS, ""},
		{"listen-client-http-urls", c.ListenClientHTTPURLs, &c.ClientTLS, ""}, {"listen-metrics-urls", c.ListenMetricsURLs, &c.ClientTLS, ""},
	} {
		if len(l.urls) == 0 && (l.name == "listen-peer-urls" || l.name == "listen-client-urls") {
			return fmt.Errorf("%s: a member must listen somewhere; write http://HOST:PORT", at(l.name))
		}
		for _, u := range l.urls {
			if host := u.Hostname(); !Unix(u) && host != "localhost" && net.ParseIP(host) == nil {
				return fmt.Errorf("%s: %q is a host name; listen on an IP address of this machine, 0.0.0.0 for all, or localhost", at(l.name), u.String())
			}
			// One address may be listened on with TLS and without, for clients.
			shared := l.name == "listen-client-urls" || l.name == "listen-client-http-urls"
			if other, ok := user[Address(u)]; ok && u.Port() != "0" && !(shared && other == l.name) {
				return fmt.Errorf("%s: %q is also in --%s; give each a port of its own", at(l.name), u.String(), other)
			}
			user[Address(u)] = l.name
		}
		if err := c.checkSecure(l.name, l.urls, l.tls, l.prefix); err != nil {
			return err
		}
	}
	for _, a := range []struct {
		name string
		urls []url.URL
	}{
		{"initial-advertise-peer-urls", c.AdvertisePeerURLs}, {"advertise-client-urls", c.AdvertiseClientURLs},
	} {
		if len(a.urls) == 0 {
			return fmt.Errorf("%s: a member must say where it is reached; write http://HOST:PORT", at(a.name))
		}
		for _, u := range a.urls {
			if !Unix(u) && u.Hostname() != "" && u.Port() == "0" && a.name == "advertise-client-urls" {
				// As in etcd, for tools that let the system choose a port and know it by other ways.
				c.note(slog.LevelWarn, "clients that ask the cluster for its members cannot reach this one: its URL has no port to connect to",
					"setting", at(a.name), "url", u.String())
				continue
			}
			if !Unix(u) && (u.Hostname() == "" || u.Port() == "0") {
				return fmt.Errorf("%s: nobody can reach %q; write http://HOST:PORT with a host and a port", at(a.name), u.String())
			}
		}
	}
	return nil
}

// checkEndpoints checks what names members without saying what for: each is a URL, or a host and a port.
func checkEndpoints(endpoints []string) error {
	for _, e := range endpoints {
		whole := e
		if !strings.Contains(e, ":/") {
			whole = "http://" + e
		}
		if _, err := parseURL(strings.TrimSuffix(whole, "/")); err != nil {
			return fmt.Errorf("%q is neither a URL nor a host and a port; write it as http://HOST:PORT, https://HOST:PORT or HOST:PORT", e)
		}
	}
	return nil
}

// validateOutputs brings the names of log outputs into their final form.
func (c *Config) validateOutputs(at string) error {
	if len(c.LogOutputs) > 1 && slices.Contains(c.LogOutputs, "default") {
		return fmt.Errorf("%s: default does not go together with others; write stderr instead", at)
	}
	for i, o := range c.LogOutputs {
		switch o {
		case "default":
			c.LogOutputs[i] = "stderr"
		case "":
			return fmt.Errorf("%s: an output has no name; write stderr, stdout or the path of a file", at)
		case journal:
			if len(c.LogOutputs) > 1 {
				return fmt.Errorf("%s: %s does not go together with others; write it alone", at, journal)
			}
		}
	}
	return nil
}

const journal = "systemd/journal"

// setRotation reads how the log file is to be rotated. The settings are not looked at unless rotation is asked for.
func (c *Config) setRotation(at func(string) string) error {
	if !c.rotate {
		return nil
	}
	files := 0
	for _, o := range c.LogOutputs {
		if o != "stderr" && o != "stdout" && o != journal {
			files++
		}
	}
	if files != 1 {
		return fmt.Errorf("%s: rotation is of one file; name one in %s", at("enable-log-rotation"), at("log-outputs"))
	}
	r := &LogRotation{}
	if err := json.Unmarshal([]byte(c.rotation), r); err != nil {
		return fmt.Errorf("%s: %w; write it as %s", at("log-rotation-config-json"), err, defaultOf("log-rotation-config-json"))
	}
	if r.MaxSize < 0 || r.MaxAge < 0 || r.MaxBackups < 0 {
		return fmt.Errorf("%s: bounds must not be negative; write 0 for none", at("log-rotation-config-json"))
	}
	c.LogRotation = r
	return nil
}

// setAutoCompaction reads how much history the leader keeps when it compacts by itself: a number of revisions, or a time,
// where a number without a unit means hours.
func (c *Config) setAutoCompaction(at func(string) string) error {
	retention := cmp.Or(c.retention, "0")
	n, err := strconv.ParseInt(retention, 10, 64)
	if c.retentionMode == "revision" {
		if err != nil || n < 0 {
			return fmt.Errorf("%s: not a number of revisions; write one of at least 0, as 1000, or --auto-compaction-mode=periodic",
				at("auto-compaction-retention"))
		}
		c.AutoCompactionRevisions = n
		return nil
	}
	period := time.Duration(n) * time.Hour
	if err != nil {
		period, err = time.ParseDuration(retention)
	}
	if err != nil || period < 0 || n < 0 || n > int64(math.MaxInt64/time.Hour) {
		return fmt.Errorf("%s: not a time; write hours or a duration of at least 0, as 8 or 30m", at("auto-compaction-retention"))
	}
	c.AutoCompactionPeriod = period
	return nil
}
