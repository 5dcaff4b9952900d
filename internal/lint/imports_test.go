package lint

import (
	"slices"
	"strings"
	"testing"
)

// Who in the house may import whom: a package, what of the house it may import, and why. A package that is not here may
// not exist. Tests may import more.
const house = `
kv:                                     # the words; everybody may use them, they use nobody
wire:                                   # numbers and strings out of bytes; knows no words
command: kv wire                        # what enters the log, told in the words
engine: kv                              # keys.go knows revisions and leases
mvcc: engine kv                         # keys and their history
lease: engine kv                        # state only; meets mvcc and member in fsm
auth: engine kv wire                    # users and roles: state only; meets the others in fsm
member: engine kv                          # state only; meets mvcc and lease in fsm
alarm: engine kv                        # state only; meets the others in fsm
token: auth kv                          # tokens and passwords: who a client is, not what it may do
fsm: alarm auth command engine kv lease member mvcc # the one place where state changes
raftlog:                                # bytes on disk; knows no words
transport: wire                         # bytes between members; knows no words
replica: command kv                     # hands entries on in command's envelope; knows no keys
watch: kv                               # reads history through an interface of its own
leader: command kv                      # jobs that only propose, through functions it is given
compactor:                              # drives a compaction's steps beside the writers; only calls
datadir:                                # the layout of the data directory
tracing:                                # spans to a collector; others make them
metrics:                                # the list of measurements; others give it values
front:                                  # gRPC over HTTP/2; knows no service
rpc: auth command front fsm kv metrics mvcc token watch  # services: validate, translate, encode; joins them to servers
rpc/rpctest: auth command engine fsm kv member mvcc rpc watch # a member in memory for tests of services and their doors
gateway: certs front kv metrics rpc           # HTTP in front of the same services
proxy: gateway                          # a gRPC proxy in front of members: knows them as a client does
certs:                                  # certificate files and handshakes; knows no words
config:                                 # settings; knows nobody
backup: alarm auth backup/bolt backup/wal command datadir engine fsm kv lease member mvcc # carries state to and from etcd's files: reads the rows of everybody
backup/bolt:                            # reads bytes of etcd's files; knows no words
backup/wal:                             # reads bytes of etcd's files; knows no words
server: auth backup command compactor datadir engine fsm kv leader lease member mvcc raftlog replica rpc transport watch # builds a member; sees everything below it
cli: alarm auth backup certs command config datadir engine fsm gateway kv leader lease member metrics proxy raftlog replica rpc server token tracing transport # what people type: the doors in front of a member, and inspect's look into its files
sim: command engine fsm kv metrics raftlog replica rpc server transport watch # many members in one process
lint:                                   # reads source only
bubble:                                 # fake time for tests; knows nobody
`

// Who may import what from outside: a path (and everything below it), the packages that may, and why.
const outside = `
github.com/cockroachdb/pebble/v2/vfs: internal/engine internal/raftlog internal/datadir internal/transport internal/server internal/sim internal/cli internal/backup internal/rpc/rpctest test/e2e test/spoil # the file system that tests can crash
github.com/cockroachdb/pebble/v2: internal/engine # so that the engine can be replaced
go.etcd.io/raft/v3: internal/replica internal/raftlog internal/transport internal/server internal/backup/wal # server passes messages from one to the other; the rest of the house knows indexes, not raft
go.etcd.io/bbolt: internal/backup # etcd's snapshot file
go.etcd.io/etcd/api/v3/version: internal/rpc internal/gateway internal/cli # the version that clients are told
go.etcd.io/etcd/api/v3/v3rpc/rpctypes: internal/rpc internal/gateway internal/proxy internal/backup internal/sim internal/cli examples bench # the errors that clients are told; dev tells them apart
go.etcd.io/etcd/api/v3/etcdserverpb: internal/backup internal/rpc internal/gateway internal/proxy internal/sim internal/cli examples bench # the same messages; --join asks at client URLs for the list of members
go.etcd.io/etcd/api/v3: internal/backup internal/rpc internal/gateway internal/proxy internal/sim examples bench # wire messages stay at the edge, and etcd's files are made of them
go.etcd.io/etcd/client/v3: internal/cli internal/proxy examples # etcd's own client, for dev, for the gRPC proxy and for people to read
go.etcd.io/etcd/etcdctl/v3: internal/cli # trivet ctl
go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb: internal/rpc internal/gateway internal/proxy # the messages of the lock service
go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb: internal/rpc internal/gateway internal/proxy # the messages of the election service
go.etcd.io/etcd/server/v3/proxy/tcpproxy: internal/cli # gateway start
go.etcd.io/etcd/server/v3/proxy/grpcproxy: internal/proxy # the services of grpc-proxy start; it brings etcd's server along (docs/decisions/0011)
go.etcd.io/etcd/server/v3: # never: what compares with etcd is a module of its own
go.uber.org/zap: internal/cli internal/proxy # etcd's client and proxies want one
google.golang.org/grpc: internal/front internal/rpc internal/gateway internal/proxy internal/metrics internal/cli examples bench test/collector # a member's grpc servers are joined in rpc alone; front is one
golang.org/x/net: internal/front # constants of HTTP/2, and HPACK
github.com/grpc-ecosystem/go-grpc-middleware: internal/proxy # counts a proxy's calls under etcd's names
github.com/grpc-ecosystem/grpc-gateway/v2: internal/gateway # the JSON form
github.com/gorilla/websocket: internal/gateway # the JSON form over websockets; what etcd uses, so that handshakes answer alike
go.opentelemetry.io/otel/attribute: internal/rpc # what a span says of a request
go.opentelemetry.io/otel/trace: internal/rpc internal/tracing # the spans of requests
go.opentelemetry.io/proto/otlp: test/collector # what spans are sent as
go.opentelemetry.io: internal/tracing # so that what spans are sent by can be replaced
google.golang.org/grpc/stats: internal/front internal/rpc internal/tracing # what makes a span of each call
github.com/go-logr/logr: internal/tracing # through which OpenTelemetry's library logs
github.com/prometheus: internal/metrics internal/proxy # others call observers; a proxy shows what etcd's packages count
golang.org/x/sys: internal/cli # SO_REUSEPORT
github.com/spf13/cobra: internal/cli # commands
github.com/cespare/xxhash/v2: internal/fsm # the rolling hash
github.com/golang-jwt/jwt/v5: internal/token # signed tokens, the library that etcd uses
golang.org/x/crypto/bcrypt: internal/token # hashes of passwords, as etcd's
sigs.k8s.io/yaml: internal/config # the configuration file
github.com/anishathalye/porcupine: internal/sim # linearizability
github.com/coreos/go-semver: internal/rpc internal/leader # versions as etcd reads them
go.etcd.io/etcd/client/pkg/v3: internal/rpc internal/cli # peer URLs as etcd reads them; what etcd's own gateway is made of
github.com/coreos/go-systemd/v22: internal/cli # Type=notify, and the journal
gopkg.in/natefinch/lumberjack.v2: internal/cli # rotates log files, with etcd's settings
`

// rules reads "name: words # reason" lines.
func rules(t *testing.T, text string) (names []string, words map[string][]string) {
	t.Helper()
	words = map[string][]string{}
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		rule, reason, ok := strings.Cut(line, "#")
		name, list, colon := strings.Cut(rule, ": ")
		if !colon {
			name, list, colon = strings.Cut(strings.TrimSpace(rule), ":")
		}
		if !ok || !colon || strings.TrimSpace(reason) == "" {
			t.Fatalf("%q is not a rule: name: words # reason", line)
		}
		if _, twice := words[name]; twice {
			t.Fatalf("two rules for %s", name)
		}
		names = append(names, name)
		words[name] = strings.Fields(list)
	}
	return names, words
}

func TestHouseImports(t *testing.T) {
	_, allowed := rules(t, house)
	used := map[string]map[string]bool{}
	for _, s := range sources(t) {
		pkg, ok := strings.CutPrefix(s.dir, "internal/")
		if !ok || s.test {
			continue
		}
		if used[pkg] == nil {
			used[pkg] = map[string]bool{}
			if _, ok := allowed[pkg]; !ok {
				t.Errorf("package internal/%s has no rule", pkg)
			}
		}
		for _, i := range s.imports() {
			of, ok := strings.CutPrefix(i, modulePath+"/internal/")
			if !ok {
				continue
			}
			used[pkg][of] = true
			if !slices.Contains(allowed[pkg], of) {
				t.Errorf("%s: internal/%s may not import internal/%s", s.path, pkg, of)
			}
		}
	}
	for pkg := range used {
		if strings.Count(pkg, "/") > 1 {
			t.Errorf("internal/%s: at most two levels under internal", pkg)
		}
	}
}

// The packages under test and cmd see the program from outside, but for these: a folder or a file, what of the house it may
// import, and why.
const doorways = `
cmd/trivet: cli                         # main calls it
test/e2e/faultydisk_test.go: cli        # the binary of test/e2e is also a member on a bad disk: it calls the program as main does
test/spoil: datadir engine kv           # makes the state of a stopped member another one, for test/e2e: no hook in a member does
`

func TestOutsideTheHouse(t *testing.T) {
	_, allowed := rules(t, doorways)
	for _, s := range sources(t) {
		if strings.HasPrefix(s.dir, "internal/") {
			continue
		}
		for _, i := range s.imports() {
			of, ok := strings.CutPrefix(i, modulePath+"/internal/")
			if ok && !slices.Contains(allowed[s.dir], of) && !slices.Contains(allowed[s.path], of) {
				t.Errorf("%s: may not import internal/%s: outside of internal only what has a rule may", s.path, of)
			}
		}
	}
}

func TestForeignImports(t *testing.T) {
	names, allowed := rules(t, outside)
	// The longest path that fits is the rule.
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) })
	for _, s := range sources(t) {
		for _, i := range s.imports() {
			n := slices.IndexFunc(names, func(n string) bool { return i == n || strings.HasPrefix(i, n+"/") })
			if n < 0 {
				continue
			}
			rule := names[n]
			if s.test && len(allowed[rule]) > 0 {
				continue // tests may look at more, but not at what nobody may
			}
			if !slices.ContainsFunc(allowed[rule], func(dir string) bool {
				return s.dir == dir || strings.HasPrefix(s.dir, dir+"/") && (dir == "examples" || dir == "bench")
			}) {
				t.Errorf("%s: may not import %s", s.path, i)
			}
		}
	}
}
