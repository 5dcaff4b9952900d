package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func load(t *testing.T, args []string, env []string, file string) (*Config, error) {
	t.Helper()
	return Load(args, env, func(name string) ([]byte, error) {
		if name != "conf.yml" {
			return nil, fmt.Errorf("open %s: %w", name, os.ErrNotExist)
		}
		return []byte(file), nil
	})
}

func mustLoad(t *testing.T, args []string, env []string, file string) *Config {
	t.Helper()
	c, err := load(t, args, env, file)
	if err != nil {
		t.Fatalf("Load(%q, %q): %v", args, env, err)
	}
	return c
}

// The list in testdata was asked of etcd 3.7.3's flag set; the rest are the flags that its main program adds.
func TestTableIsEtcds(t *testing.T) {
	text, err := os.ReadFile("testdata/etcd-flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"config-file": "", "discovery-fallback": "exit", "initial-cluster-state": "new", "v2-deprecation": "write-only", "version": "false",
		"join": "", "quota-manual-disarm": "false", "slow-disk-threshold": "500ms", // ours
		"experimental-initial-corrupt-check": "false", "experimental-corrupt-check-time": "0s", // of etcd up to 3.6
		"experimental-compact-hash-check-enabled": "false", "experimental-compact-hash-check-time": "1m0s",
	}
	for _, n := range strings.Fields(`cluster-active-size cluster-remove-delay cluster-sync-interval config force max-result-buffer
		max-retry-attempts peer-heartbeat-interval peer-election-timeout retry-interval snapshot v vv test.coverprofile test.outputdir`) {
		want[n] = ""
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, quoted, _ := strings.Cut(strings.TrimSpace(line), " ")
		def, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatal(line, err)
		}
		want[name] = def
	}
	seen := map[string]bool{}
	for _, f := range Flags() {
		def, ok := want[f.Name]
		if !ok || seen[f.Name] {
			t.Errorf("--%s: not a flag of etcd, or twice in the table", f.Name)
		}
		seen[f.Name] = true
		if def != f.Default {
			t.Errorf("--%s: default %q, etcd's is %q", f.Name, f.Default, def)
		}
		if f.Support != Works && f.Why == "" {
			t.Errorf("--%s: %s without a reason", f.Name, f.Support)
		}
		if f.Section != "" && f.Help == "" {
			t.Errorf("--%s: no help", f.Name)
		}
		if f.Kind != Ignored && f.Support == Works && f.bind == nil && !strings.HasPrefix(f.Name, "experimental-") && !slices.Contains([]string{
			"initial-cluster", "log-level", "feature-gates", "cipher-suites", "tls-min-version", "tls-max-version", "config-file", "version"}, f.Name) {
			t.Errorf("--%s works but goes nowhere", f.Name)
		}
		if f.Default != "" || f.Kind == String {
			if _, err := f.Kind.parse(f.Default); err != nil {
				t.Errorf("--%s: its own default: %v", f.Name, err)
			}
		}
	}
	for name := range want {
		if !seen[name] {
			t.Errorf("--%s of etcd is not in the table", name)
		}
	}
}

func TestDefaults(t *testing.T) {
	c := mustLoad(t, nil, nil, "")
	if c.Name != "default" || c.DataDir != "default.etcd" || c.Heartbeat != 100*time.Millisecond || c.ElectionTimeout != time.Second ||
		c.MaxRequestBytes != 1572864 || c.MaxTxnOps != 128 || c.MaxConcurrentStreams != 1<<32-1 || c.InitialClusterToken != "etcd-cluster" ||
		c.WatchProgressNotifyInterval != 10*time.Minute || c.WarningUnaryRequestDuration != 300*time.Millisecond ||
		c.GRPCKeepAliveInterval != 2*time.Hour || !c.EnableGRPCGateway || c.LogLevel != slog.LevelInfo ||
		!slices.Equal(c.LogOutputs, []string{"stderr"}) || !slices.Equal(Strings(c.ListenClientURLs), []string{"http://localhost:2379"}) {
		t.Errorf("defaults: %+v", c)
	}
	if len(c.Notes) != 0 || len(c.Given) != 0 {
		t.Errorf("defaults are noted: %v %v", c.Notes, c.Given)
	}
	if err := c.CheckBootstrap(t.Context(), nil); err != nil {
		t.Error(err)
	}
	// Setting everything to its default is no different, whether it works or has no meaning.
	var args []string
	for _, f := range Flags() {
		if f.Kind != Ignored && f.Name != "config-file" && f.Name != "backend-bbolt-freelist-type" {
			args = append(args, "--"+f.Name+"="+f.Default)
		}
	}
	if c := mustLoad(t, args, nil, ""); len(c.Notes) != 0 || len(c.Given) != 0 {
		t.Errorf("defaults are noted: %v %v", c.Notes, c.Given)
	}
}

func TestSyntax(t *testing.T) {
	for _, args := range [][]string{
		{"--name=a", "--enable-pprof", "--max-txn-ops", "0x100"},
		{"-name", "a", "-enable-pprof=T", "-max-txn-ops=256"},
		{"--name", "b", "--name", "a", "--enable-pprof=1", "--max-txn-ops=256"},
	} {
		c := mustLoad(t, args, nil, "")
		if c.Name != "a" || !c.EnablePprof || c.MaxTxnOps != 256 || c.DataDir != "a.etcd" {
			t.Errorf("%q: %+v", args, c)
		}
	}
	if _, err := load(t, []string{"-h"}, nil, ""); !errors.Is(err, ErrHelp) {
		t.Error(err)
	}
	if _, err := load(t, []string{"--version", "--name=x"}, nil, ""); !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
}

func TestPrecedence(t *testing.T) {
	env := []string{"ETCD_NAME=env", "ETCD_MAX_TXN_OPS=7", "ETCD_ELECTION_TIMEOUT=", "ETCD_SERVICE_HOST=x", "HOME=/"}
	c := mustLoad(t, []string{"--name=flag"}, env, "")
	if c.Name != "flag" || c.MaxTxnOps != 7 || c.ElectionTimeout != time.Second {
		t.Errorf("flag over environment: %+v", c)
	}
	if got := notes(c); !strings.Contains(got, "ETCD_SERVICE_HOST") || !strings.Contains(got, "wins") {
		t.Errorf("notes: %s", got)
	}
	for _, how := range []struct{ args, env []string }{
		{[]string{"--config-file=conf.yml", "--name=flag"}, env},
		{[]string{"--name=flag"}, append(env, "ETCD_CONFIG_FILE=conf.yml")},
	} {
		c = mustLoad(t, how.args, how.env, "name: file\n")
		if c.Name != "file" || c.MaxTxnOps != 128 {
			t.Errorf("the file alone: %+v", c)
		}
	}
}

func notes(c *Config) string {
	var b strings.Builder
	for _, n := range c.Notes {
		fmt.Fprintln(&b, n.Level, n.Message, n.Args)
	}
	return b.String()
}

func TestFile(t *testing.T) {
	c := mustLoad(t, []string{"--config-file", "conf.yml"}, nil, `
# etcd's sample has keys without values, and keys of older versions
name: 'm1'
wal-dir:
data-dir: /var/lib/m1
heartbeat-interval: 50
election-timeout: 500
quota-backend-bytes: 8589934592
listen-peer-urls: http://127.0.0.1:1380
listen-client-urls: "http://127.0.0.1:1379, http://127.0.0.1:1378"
initial-advertise-peer-urls: http://127.0.0.1:1380
initial-cluster: m1=http://127.0.0.1:1380,m2=http://127.0.0.1:1382,m2=http://127.0.0.1:1381
initial-cluster-state: ''
discovery-proxy:
enable-v2: true
proxy: 'off'
enable-pprof: true
client-transport-security:
  cert-file:
  client-cert-auth: false
  auto-tls: false
peer-transport-security: {auto-tls: false}
socket-options: {reuse-address: true}
warning-apply-duration: 200000000
grpc-keepalive-interval: 1h
log-outputs: [stderr, log.txt, stderr]
Log-Level: debug
`)
	if c.Name != "m1" || c.DataDir != "/var/lib/m1" || c.QuotaBackendBytes != 8<<30 || !c.EnablePprof ||
		c.WarningApplyDuration != 200*time.Millisecond || c.GRPCKeepAliveInterval != time.Hour || c.Heartbeat != 50*time.Millisecond ||
		c.LogLevel != slog.LevelDebug || !slices.Equal(c.LogOutputs, []string{"log.txt", "stderr"}) ||
		!slices.Equal(Strings(c.ListenClientURLs), []string{"http://127.0.0.1:1378", "http://127.0.0.1:1379"}) ||
		len(c.InitialCluster) != 2 || !slices.Equal(c.InitialCluster[1].PeerURLs, []string{"http://127.0.0.1:1381", "http://127.0.0.1:1382"}) {
		t.Errorf("%+v", c)
	}
	for _, want := range []string{"enable-v2", "proxy"} {
		if !strings.Contains(notes(c), want) {
			t.Errorf("no note of %q in %s", want, notes(c))
		}
	}
	if err := c.CheckBootstrap(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if c := mustLoad(t, []string{"--config-file=conf.yml"}, nil, ""); c.Name != "default" {
		t.Errorf("empty file: %+v", c)
	}
}

// The first address among the advertised ones that others could reach is the one to dial from.
func TestLocalAddr(t *testing.T) {
	const advertise = "--initial-advertise-peer-urls="
	for _, x := range []struct{ args, want, note string }{
		{advertise + "http://10.1.2.3:2380", "invalid IP", ""},
		{"--feature-gates=SetMemberLocalAddr=true " + advertise + "http://127.0.0.1:2380,http://10.1.2.3:2380,http://10.1.2.4:2380", "10.1.2.3", "setting member local address"},
		{"--feature-gates=AllAlpha=true " + advertise + "http://[::1]:2380,http://[fd00::1]:2380", "fd00::1", "setting member local address"},
		{"--feature-gates=SetMemberLocalAddr=true " + advertise + "http://a.example:2380,http://0.0.0.0:2380", "invalid IP", "unable to set a member local address"},
	} {
		c := mustLoad(t, strings.Fields(x.args), nil, "")
		noted := x.note == ""
		for _, n := range c.Notes {
			noted = noted || strings.HasPrefix(n.Message, x.note)
		}
		if c.LocalAddr.String() != x.want || !noted {
			t.Errorf("%s: %v, %v", x.args, c.LocalAddr, c.Notes)
		}
	}
}

// A port that the system is to choose can be advertised to clients, as in etcd, but not silently.
func TestAdvertisedPortZero(t *testing.T) {
	const u = "http://0.0.0.0:0"
	c := mustLoad(t, []string{"--listen-client-urls=" + u, "--advertise-client-urls=" + u}, nil, "")
	if len(c.AdvertiseClientURLs) != 1 || c.AdvertiseClientURLs[0].String() != u {
		t.Errorf("advertised are %v", c.AdvertiseClientURLs)
	}
	if len(c.Notes) != 1 || !strings.HasPrefix(c.Notes[0].Message, "clients that ask the cluster for its members cannot reach this one") {
		t.Errorf("noted is %v", c.Notes)
	}
}

func TestAutoCompaction(t *testing.T) {
	for _, x := range []struct {
		args      string
		period    time.Duration
		revisions int64
	}{
		{"", 0, 0},
		{"--auto-compaction-retention=0", 0, 0},
		{"--auto-compaction-retention=0h", 0, 0},
		{"--auto-compaction-retention=", 0, 0},
		{"--auto-compaction-retention=8", 8 * time.Hour, 0},
		{"--auto-compaction-retention=30m --auto-compaction-mode=periodic", 30 * time.Minute, 0},
		{"--auto-compaction-mode=revision", 0, 0},
		{"--auto-compaction-mode=revision --auto-compaction-retention=1000", 0, 1000},
	} {
		c := mustLoad(t, strings.Fields(x.args), nil, "")
		if c.AutoCompactionPeriod != x.period || c.AutoCompactionRevisions != x.revisions {
			t.Errorf("%s: keeps %v and %d revisions", x.args, c.AutoCompactionPeriod, c.AutoCompactionRevisions)
		}
	}
}

// Each setting without meaning is noted, once and with its reason, wherever it is given, and its value is not lost.
func TestMeaninglessIsNoted(t *testing.T) {
	other := map[Kind]string{Bool: "true", Duration: "7s", Int: "7", Int64: "7", Uint: "7", Uint64: "7", String: "other", Ignored: "x"}
	own := map[string]string{"discovery-fallback": "", "v2-deprecation": "gone", "metrics": "extensive", "logger": "", "backend-bbolt-freelist-type": "array"}
	seen := 0
	for _, f := range Flags() {
		if f.Support != Meaningless {
			continue
		}
		value, isOwn := own[f.Name]
		if !isOwn {
			value = other[f.Kind]
		}
		if f.Kind == Bool && f.Default == "true" {
			value = "false"
		}
		if value == "" {
			continue // there is no other value: TestBadInput
		}
		seen++
		for _, given := range []*Config{
			mustLoad(t, []string{"--" + f.Name + "=" + value}, nil, ""),
			mustLoad(t, nil, []string{envName(f.Name) + "=" + value}, ""),
		} {
			noted := 0
			for _, n := range given.Notes {
				if strings.Contains(n.Message, "no meaning") && strings.Contains(fmt.Sprint(n.Args), f.Why) && strings.Contains(fmt.Sprint(n.Args), value) {
					noted++
				}
			}
			if noted != 1 || given.Given[f.Name] == "" {
				t.Errorf("--%s=%s: noted %d times: %s", f.Name, value, noted, notes(given))
			}
		}
		if f.File == "-" {
			continue
		}
		if got := notes(mustLoad(t, []string{"--config-file=conf.yml"}, nil, f.Name+": "+value+"\n")); strings.Count(got, "no meaning") != 1 {
			t.Errorf("%s: %s in the file: %s", f.Name, value, got)
		}
	}
	if seen < 20 {
		t.Errorf("only %d settings without meaning", seen)
	}
	// As in etcd a flag that is only ignored needs no value.
	c := mustLoad(t, []string{"--vv"}, nil, "")
	if len(c.Notes) != 1 {
		t.Errorf("%d notes: %s", len(c.Notes), notes(c))
	}
	c = mustLoad(t, []string{"--discovery-password=hunter2"}, []string{"ETCD_DISCOVERY_USER=joe:hunter2"}, "")
	if strings.Contains(notes(c)+fmt.Sprint(c.Given), "hunter2") {
		t.Errorf("a secret is shown: %s %v", notes(c), c.Given)
	}
}

func TestGates(t *testing.T) {
	for _, c := range []struct{ gates, on, note string }{
		{"", "FastLeaseKeepAlive TxnModeWriteWithSharedBuffer", ""},
		{"LeaseCheckpoint=true, FastLeaseKeepAlive=0,", "LeaseCheckpoint TxnModeWriteWithSharedBuffer", "LeaseCheckpoint reason"},
		{"AllBeta=false,TxnModeWriteWithSharedBuffer=T", "TxnModeWriteWithSharedBuffer", "FastLeaseKeepAlive reason"},
		{"LeaseCheckpoint=true,LeaseCheckpoint=false", "FastLeaseKeepAlive TxnModeWriteWithSharedBuffer", ""},
		{"TxnModeWriteWithSharedBuffer=false,AllBeta=true", "AllBeta FastLeaseKeepAlive", "no meaning"},
	} {
		conf := mustLoad(t, []string{"--feature-gates=" + c.gates}, nil, "")
		var on []string
		for _, name := range sortedKeys(conf.Gates) {
			if conf.Gates[name] {
				on = append(on, name)
			}
		}
		if strings.Join(on, " ") != c.on || !strings.Contains(notes(conf), c.note) || (c.note == "") != (notes(conf) == "") {
			t.Errorf("%q: on are %q, notes: %s", c.gates, on, notes(conf))
		}
	}
	// The stages that a group reaches.
	conf := mustLoad(t, []string{"--feature-gates=AllAlpha=true"}, nil, "")
	if !conf.Gates["PriorityRequest"] || !conf.Gates["LeaseCheckpointPersist"] || !conf.Gates["FastLeaseKeepAlive"] {
		t.Errorf("%v", conf.Gates)
	}
}

// etcd's checks of the members' data, under the names that they have and those that they had.
func TestCorruptionChecks(t *testing.T) {
	type checks struct {
		initial, compact bool
		every, compacted time.Duration
	}
	for _, c := range []struct {
		args string
		want checks
	}{
		{"", checks{false, false, 0, time.Minute}},
		{"--feature-gates=InitialCorruptCheck=true,CompactHashCheck=true --corrupt-check-time=2m --compact-hash-check-time=3s", checks{true, true, 2 * time.Minute, 3 * time.Second}},
		{"--feature-gates=AllAlpha=true", checks{true, true, 0, time.Minute}},
		{"--experimental-initial-corrupt-check --experimental-corrupt-check-time=2m", checks{true, false, 2 * time.Minute, time.Minute}},
		{"--experimental-compact-hash-check-enabled=true --experimental-compact-hash-check-time=3s --feature-gates=InitialCorruptCheck=true", checks{true, true, 0, 3 * time.Second}},
		{"--experimental-initial-corrupt-check=false --feature-gates=InitialCorruptCheck=true --experimental-corrupt-check-time=0s --corrupt-check-time=1m", checks{true, false, time.Minute, time.Minute}},
	} {
		conf := mustLoad(t, strings.Fields(c.args), nil, "")
		if got := (checks{conf.Gates["InitialCorruptCheck"], conf.Gates["CompactHashCheck"], conf.CorruptCheckTime, conf.CompactHashCheckTime}); got != c.want || len(conf.Notes) > 0 && !strings.Contains(c.args, "AllAlpha") {
			t.Errorf("%s: %+v, notes %s", c.args, got, notes(conf))
		}
	}
	conf := mustLoad(t, []string{"--config-file=conf.yml"}, nil, "experimental-corrupt-check-time: 5m\nexperimental-initial-corrupt-check: true\n")
	if conf.CorruptCheckTime != 5*time.Minute || !conf.Gates["InitialCorruptCheck"] {
		t.Errorf("from a file: %v, %v", conf.CorruptCheckTime, conf.Gates)
	}
}

// What is unsafe says so.
func TestUnsafeIsNoted(t *testing.T) {
	if c := mustLoad(t, []string{"--unsafe-no-fsync"}, nil, ""); !c.UnsafeNoFsync || !strings.Contains(notes(c), "UNSAFE") {
		t.Errorf("%s", notes(c))
	}
}

func TestInitialClusterFollowsName(t *testing.T) {
	c := mustLoad(t, []string{"--name=a", "--listen-peer-urls=http://127.0.0.1:5380", "--initial-advertise-peer-urls=http://127.0.0.1:5380"}, nil, "")
	if c.clusterText() != "a=http://127.0.0.1:5380" {
		t.Error(c.clusterText())
	}
}

func TestAdvertiseDefaultHost(t *testing.T) {
	host := outgoingAddress()
	c := mustLoad(t, []string{"--name=a", "--listen-peer-urls=http://0.0.0.0:5380"}, nil, "")
	want := "http://localhost:2380"
	if host != "" {
		want = "http://" + host + ":5380"
	}
	if got := Strings(c.AdvertisePeerURLs)[0]; got != want {
		t.Errorf("advertised %s, want %s", got, want)
	}
}

func TestBootstrap(t *testing.T) {
	lookup := func(_ context.Context, host string) ([]string, error) {
		if host == "infra0" {
			return []string{"fe80::1", "10.0.0.1"}, nil
		}
		return nil, errors.New("no such host")
	}
	for _, c := range []struct{ name, cluster, advertise, want string }{
		{"a", "a=http://10.0.0.1:2380", "http://10.0.0.1:2380", ""},
		{"a", "a=http://infra0:2380", "http://10.0.0.1:2380", ""},
		{"a", "a=http://infra1:2380", "http://10.0.0.1:2380", "--initial-advertise-peer-urls=http://10.0.0.1:2380: "},
		{"a", "a=http://10.0.0.1:2380,a=http://10.0.0.1:2381", "http://10.0.0.1:2380", "give both the same URLs"},
		{"b", "a=http://10.0.0.1:2380", "http://10.0.0.1:2380", "--name=b: the name is not in --initial-cluster=a=http://10.0.0.1:2380;"},
		{"a", "a=http://10.0.0.1:2380,b=http://10.0.0.1:2380", "http://10.0.0.1:2380", "is there twice"},
		{"a", "", "http://10.0.0.1:2380", "--initial-cluster is empty"},
	} {
		conf := mustLoad(t, []string{"--name=" + c.name, "--initial-cluster=" + c.cluster, "--initial-advertise-peer-urls=" + c.advertise}, nil, "")
		err := conf.CheckBootstrap(t.Context(), lookup)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	conf := mustLoad(t, []string{"--initial-cluster-state=existing", "--initial-advertise-peer-urls=http://10.0.0.1:2380"}, nil, "")
	if err := conf.CheckBootstrap(t.Context(), lookup); err != nil {
		t.Errorf("existing: %v", err)
	}
}

func TestBadInput(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--cors=here", `--cors=here: "here" is not an origin; write it as http://HOST:PORT, or * for all`},
		{"--discovery-token=x", "--discovery-token and --discovery-endpoints go together; give both, or neither"},
		{"--discovery-endpoints=127.0.0.1:1", "--discovery-token and --discovery-endpoints go together; give both, or neither"},
		{"--discovery-token=x --discovery-endpoints=127.0.0.1:1,,", "an endpoint is empty; write HOST:PORT,HOST:PORT"},
		{"--discovery-token=x --discovery-endpoints=127.0.0.1:1 --discovery-cert=a", "--discovery-cert, --discovery-key: a certificate and its key belong together"},
		{"--discovery-token=x --discovery-endpoints=127.0.0.1:1 --discovery-user=joe", "--discovery-user has no password; write it as NAME:PASSWORD"},
		{"--discovery-token=x --discovery-endpoints=127.0.0.1:1 --discovery-password=p", "--discovery-password is given without a user"},
		{"--discovery-token=x --discovery-endpoints=127.0.0.1:1 --discovery-srv=a.example", "exclude one another; give one of them"},
		{"--discovery-srv=a.example --initial-cluster=default=http://127.0.0.1:1", "exclude one another; give one of them"},
		{"--data-dr=x", "--data-dr is not a flag; did you mean --data-dir?"},
		{"--discovery=http://discovery.example/x", "--discovery is not a flag any more, as in etcd 3.7; discovery by a URL is gone; use --discovery-token"},
		{"--debug", "--debug is not a flag any more, as in etcd 3.7; use --log-level=debug"},
		{"--log-package-levels=etcdserver=DEBUG", "--log-package-levels is not a flag any more, as in etcd 3.7; levels of single packages are gone; use --log-level"},
		{"--experimental-enable-v2v3=/x", "--experimental-enable-v2v3 is not a flag any more, as in etcd 3.7; the v2 API is gone"},
		{"--experimental-warning-apply-duration=1s", "--experimental-warning-apply-duration is not a flag any more, as in etcd 3.7; its name is --warning-apply-duration now"},
		{"--zzzzzzzz", "--zzzzzzzz is not a flag; trivet help server lists them"},
		{"start", `"start" is not a flag; flags begin with --, and trivet help server lists them`},
		{"--", `"--" is not a flag; flags begin with --, and trivet help server lists them`},
		{"--name", "--name needs a value; write --name=VALUE"},
		{"--name=", "--name=: a member needs a name without commas and equal signs; give it the one it has in --initial-cluster"},
		{"--join=x", `--join=x: "x" is neither a URL nor a host and a port; write it as http://HOST:PORT, https://HOST:PORT or HOST:PORT`},
		{"--join=127.0.0.1:2380,10.0.0.1", `--join=127.0.0.1:2380,10.0.0.1: "10.0.0.1" is neither`},
		{"--join=ftp://127.0.0.1:2380", `"ftp://127.0.0.1:2380" is neither`},
		{"--join=m1=http://127.0.0.1:2380", `"m1=http://127.0.0.1:2380" is neither`},
		{"--join=127.0.0.1:99999", `"127.0.0.1:99999" is neither`},
		{"--max-txn-ops=-1", "--max-txn-ops=-1: not a whole number from 0 that fits in 64 bits; write it in digits, without a sign or a unit"},
		{"--max-concurrent-streams=4294967296", "fits in 32 bits"},
		{"--heartbeat-interval=100ms", "--heartbeat-interval=100ms: not a whole number of milliseconds; write it in digits, without a unit"},
		{"--heartbeat-interval=0", "--heartbeat-interval=0: the interval must be above zero; etcd's default is 100"},
		{"--election-timeout=400", "--election-timeout=400: the timeout must be at least five times --heartbeat-interval (100 ms); write 500 or more"},
		{"--election-timeout=50001", "longer than 50000 ms"},
		{"--slow-disk-threshold=-1s", "--slow-disk-threshold=-1s: the duration must not be negative; write 0 to keep leadership whatever the disk does"},
		{"--slow-disk-threshold=500", "--slow-disk-threshold=500: not a duration; write it with a unit, such as 10m, 30s or 250ms"},
		{"--slow-disk-threshold=5ms", "--slow-disk-threshold=5ms: shorter than 10ms, which a good disk may take now and then; write more, or 0 to keep leadership whatever the disk does"},
		{"--warning-apply-duration=5", "--warning-apply-duration=5: not a duration; write it with a unit, such as 10m, 30s or 250ms"},
		{"--enable-pprof=maybe", "--enable-pprof=maybe: not a truth value; write true or false"},
		{"--listen-peer-urls=localhost:2380", `--listen-peer-urls=localhost:2380: "localhost:2380" is not a URL; write it as http://HOST:PORT or https://HOST:PORT`},
		{"--listen-peer-urls=ftp://localhost:2380", "has the scheme ftp"},
		{"--listen-peer-urls=http://localhost", "has no port"},
		{"--listen-peer-urls=http://localhost:", "has no port"},
		{"--listen-peer-urls=http://localhost:99999", "ports go from 0 to 65535"},
		{"--listen-peer-urls=http://localhost:2380/x", "more than a host and a port"},
		{"--listen-peer-urls=http://a.example:2380", "is a host name; listen on an IP address"},
		{"--listen-peer-urls=", "a member must listen somewhere"},
		{"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls is missing"},
		{"--advertise-client-urls=http://:2379", "nobody can reach"},
		{"--advertise-client-urls=http://:0", "nobody can reach"},
		{"--initial-advertise-peer-urls=http://127.0.0.1:0 --initial-cluster=default=http://127.0.0.1:0", "nobody can reach"},
		{"--listen-client-urls=http://localhost:2380 --advertise-client-urls=http://localhost:2380", "also in --listen-peer-urls"},
		{"--initial-cluster=http://localhost:2380", `--initial-cluster=http://localhost:2380: "http://localhost:2380" names no member; write it as NAME=http://HOST:PORT`},
		{"--initial-cluster=a=localhost:2380", `member "a": "localhost:2380" is not a URL`},
		{"--initial-cluster-state=old", "--initial-cluster-state=old: not known; write new or existing"},
		{"--log-level=loud", "--log-level=loud: not known"},
		{"--log-format=xml", "--log-format=xml: not known; write json or console"},
		{"--log-outputs=default,stdout", "default does not go together with others"},
		{"--log-outputs=systemd/journal,stderr", "--log-outputs=systemd/journal,stderr: systemd/journal does not go together with others"},
		{"--enable-log-rotation", "--enable-log-rotation=true: rotation is of one file; name one in --log-outputs=default"},
		{"--enable-log-rotation --log-outputs=a,b", "rotation is of one file"},
		{"--enable-log-rotation --log-outputs=a --log-rotation-config-json={", "--log-rotation-config-json={: unexpected end of JSON input; write it as {"},
		{`--enable-log-rotation --log-outputs=a --log-rotation-config-json={"maxsize":"1"}`, "cannot unmarshal string"},
		{`--enable-log-rotation --log-outputs=a --log-rotation-config-json={"maxage":-1}`, "bounds must not be negative"},
		{"--v2-deprecation=not-yet", "--v2-deprecation=not-yet: not known; write write-only or"},
		{"--logger=capnslog", "--logger=capnslog: not known; write zap"},
		{"--discovery-fallback=proxy", "--discovery-fallback=proxy: not known; write exit"},
		{"--auto-compaction-mode=never", "not known; write periodic or revision"},
		{"--auto-compaction-retention=8x", "--auto-compaction-retention=8x: not a time; write hours or a duration of at least 0, as 8 or 30m"},
		{"--auto-compaction-retention=-1", "--auto-compaction-retention=-1: not a time"},
		{"--auto-compaction-retention=9999999", "--auto-compaction-retention=9999999: not a time"},
		{"--auto-compaction-mode=revision --auto-compaction-retention=8h", "--auto-compaction-retention=8h: not a number of revisions; write one of at least 0, as 1000, or --auto-compaction-mode=periodic"},
		{"--enable-distributed-tracing --distributed-tracing-sampling-rate=-1", "--distributed-tracing-sampling-rate=-1: tracing sampling rate must be positive; write a number from 0 to 1000000"},
		{"--enable-distributed-tracing --distributed-tracing-sampling-rate=1000001", "--distributed-tracing-sampling-rate=1000001: tracing sampling rate must be less than 1000000"},
		{"--corrupt-check-time=-1s", "--corrupt-check-time=-1s: the time must not be negative; write 0 to turn the check off"},
		{"--experimental-corrupt-check-time=-1s", "the time must not be negative"},
		{"--compact-hash-check-time=0s", "--compact-hash-check-time=0s: the time must be above zero; etcd's default is 1m"},
		{"--experimental-corrupt-check-time=1m --corrupt-check-time=1m", "--experimental-corrupt-check-time=1m: it is the old name of --corrupt-check-time, which is given too"},
		{"--experimental-initial-corrupt-check --feature-gates=PriorityRequest=false,InitialCorruptCheck=false", "it is the old name of --feature-gates=InitialCorruptCheck=true, which is given too"},
		{"--feature-gates=Foo=true", "not a feature gate of etcd 3.7"},
		{"--feature-gates=LeaseCheckpoint", "write NAME=true or NAME=false"},
		{"--feature-gates=LeaseCheckpoint=yes", `"LeaseCheckpoint=yes" does not say on or off`},
		{"--feature-gates=LeaseCheckpointPersist=true", "LeaseCheckpointPersist needs LeaseCheckpoint"},
		{"--config-file=none.yml", "--config-file=none.yml: open none.yml: file does not exist; name a file that can be read"},
	} {
		_, err := load(t, strings.Fields(c.args), nil, "")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s", c.args, err, c.want)
		}
	}
	for file, want := range map[string]string{
		"a: [":                         "not YAML",
		"just text":                    "holds no settings",
		"name: {a: b}\nmax-txn-ops: x": "max-txn-ops in conf.yml: x: not a whole number",
		"log-outputs: [[a]]":           "a list within a list",
		"warning-apply-duration: 1.5":  "not a whole number of nanoseconds",
	} {
		_, err := load(t, []string{"--config-file=conf.yml"}, nil, file)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\n got %v\nwant %s", file, err, want)
		}
	}
}

func TestHelp(t *testing.T) {
	var b bytes.Buffer
	WriteHelp(&b)
	for _, f := range Flags() {
		if f.Section != "" && !strings.Contains(b.String(), "  --"+f.Name+" '"+f.Default+"'\n    "+f.Help+"\n") {
			t.Errorf("the help does not explain --%s", f.Name)
		}
	}
}

// Every input gives a Config or one sentence, never a panic.
func FuzzFile(f *testing.F) {
	f.Add("name: a\nlog-outputs: [stderr]\nwarning-apply-duration: 5\n")
	f.Add("peer-transport-security: {auto-tls: true}")
	f.Fuzz(func(t *testing.T, file string) {
		c, err := load(t, []string{"--config-file=conf.yml"}, nil, file)
		if err == nil && (c.DataDir == "" || len(c.ListenClientURLs) == 0) {
			t.Errorf("%q was taken as %+v", file, c)
		}
	})
}

func FuzzFlags(f *testing.F) {
	f.Add("--listen-peer-urls=http://127.0.0.1:1", "--initial-cluster", "a=http://b:1")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		conf, err := load(t, []string{a, b, c}, nil, "")
		if err == nil {
			_ = conf.CheckBootstrap(t.Context(), func(context.Context, string) ([]string, error) { return nil, nil })
		}
	})
}
