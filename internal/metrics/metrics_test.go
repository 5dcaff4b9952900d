package metrics_test

import (
	"fmt"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc/codes"

	"github.com/trivet-kv/trivet/internal/metrics"
)

var ticked = regexp.MustCompile("`([a-z0-9_]+)`")

// notThere are the metrics of etcd that docs/compat.md lists as such, with the reason: there is nothing here to fill them with.
func notThere(t *testing.T) map[string]bool {
	t.Helper()
	doc, err := os.ReadFile("../../docs/compat.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(doc)) {
		if cells := strings.Split(line, " | "); len(cells) == 4 && cells[2] == "not there" {
			for _, m := range ticked.FindAllStringSubmatch(cells[0], -1) {
				names[m[1]] = true
			}
		}
	}
	return names
}

func filled() *metrics.Metrics {
	m := metrics.New(metrics.Identity{Version: "3.7.3", Product: "test"})
	no, zero, z64 := func() bool { return false }, func() int { return 0 }, func() int64 { return 0 }
	u64 := func() uint64 { return 0 }
	m.Join(metrics.Sources{
		MemberID: 0xabc, Peers: func() []uint64 { return []uint64{0xabc} },
		ClusterVersion: func() string { return "3.7" }, HasLeader: no, IsLeader: no, IsLearner: no, Committed: u64, Applied: u64, AuthRevision: u64, Pending: zero, QuotaBytes: z64, LeasesRenewed: z64, LeasesExpired: z64,
		Revision: z64, CompactRevision: z64, Keys: z64, DBBytes: z64, DBInUseBytes: z64, OpenReads: zero,
		WatchStreams: zero, Watchers: zero, SlowWatchers: zero, PendingEvents: zero,
		Alarms: func() []metrics.AlarmOf { return []metrics.AlarmOf{{MemberID: 0xabc, Type: "NOSPACE"}} },
		Own:    []metrics.Own{{Name: "own", Help: "Own.", Value: func() float64 { return 1 }}},
	})
	m.ClientRequest("unary", "3.7")
	m.FeatureEnabled.WithLabelValues("PriorityRequest", "ALPHA").Set(0)
	m.HealthResult("readyz", "non_learner", true)
	m.Applied("Put", true, time.Millisecond)
	m.RangeSeconds.WithLabelValues("true").Observe(1)
	m.RequestSeconds.WithLabelValues("Put", "true").Observe(1)
	m.Call("unary", "s", "m").Handled(codes.OK, time.Second)
	return m
}

// Every metric of etcd's is there with its kind, labels and buckets, or docs/compat.md says why not.
func TestSameMetricsAsEtcd(t *testing.T) {
	families, err := filled().Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	ours := make(map[string]string)
	for _, f := range families {
		ours[f.GetName()] = describe(f)
	}
	want, err := os.ReadFile("testdata/etcd-3.7.3.txt")
	if err != nil {
		t.Fatal(err)
	}
	none := notThere(t)
	for line := range strings.Lines(string(want)) {
		line = strings.TrimSpace(line)
		name, _, _ := strings.Cut(line, " ")
		got, ok := ours[name]
		switch {
		case !ok && !none[name]:
			t.Errorf("%s is missing", name)
		case ok && none[name]:
			t.Errorf("%s is there, although docs/compat.md says that it is not", name)
		case ok && got != line:
			t.Errorf("ours: %s\netcd: %s", got, line)
		}
	}
}

func describe(f *dto.MetricFamily) string {
	var labels, le []string
	m := f.Metric[0]
	for _, l := range m.Label {
		labels = append(labels, l.GetName())
	}
	for _, b := range m.GetHistogram().GetBucket() {
		le = append(le, strconv.FormatFloat(b.GetUpperBound(), 'g', -1, 64))
	}
	out := f.GetName() + " " + strings.ToLower(f.GetType().String())
	if slices.Sort(labels); len(labels) > 0 {
		out += " labels=" + strings.Join(labels, ",")
	}
	if len(le) > 0 {
		out += " le=" + strings.Join(append(le, "+Inf"), ",")
	}
	return out
}

// A client cannot make labels without bound.
func TestClientVersionsAreBounded(t *testing.T) {
	m := filled()
	for i := range 1000 {
		m.ClientRequest("stream", fmt.Sprint("made-up-", i))
	}
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "etcd_server_client_requests_total" {
			continue
		}
		total := 0.0
		for _, s := range f.Metric {
			total += s.GetCounter().GetValue()
		}
		if len(f.Metric) > 110 || total != 1001 {
			t.Errorf("%d series, %v requests", len(f.Metric), total)
		}
	}
}

func TestHandler(t *testing.T) {
	w := httptest.NewRecorder()
	filled().Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{`etcd_server_id{server_id="abc"} 1`, "trivet_own 1", `etcd_debugging_server_alarms{alarm_type="NOSPACE",server_id="abc"} 1`, "go_goroutines", "process_open_fds", "os_fd_limit",
		`grpc_server_handled_total{grpc_code="Unavailable",grpc_method="m",grpc_service="s",grpc_type="unary"} 0`} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}
