package compat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/cluster"
)

// load does a little of everything, the same on both systems: each step on the member it names, one after the other.
func load(ctx context.Context, members []*grpc.ClientConn) error {
	a, b, c := members[0], members[1], members[2]
	var failed error
	call := func(conn *grpc.ClientConn, path string, req, answer any) {
		if err := conn.Invoke(ctx, "/etcdserverpb."+path, req, answer); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", path, err))
		}
	}
	refused := func(conn *grpc.ClientConn, path string, req, answer any) {
		if err := conn.Invoke(ctx, "/etcdserverpb."+path, req, answer); err == nil {
			failed = errors.Join(failed, fmt.Errorf("%s(%v) was not refused", path, req))
		}
	}
	key := func(i int) []byte { return fmt.Appendf(nil, "key-%02d", i%20) }
	all := []byte{0}

	watching, end := context.WithCancel(ctx)
	defer end()
	w, err := pb.NewWatchClient(a).Watch(watching)
	if err != nil {
		return err
	}
	watch := func(r *pb.WatchRequest, until func(*pb.WatchResponse) bool) error {
		if err := w.Send(r); err != nil {
			return err
		}
		for {
			a, err := w.Recv()
			if err != nil || until(a) {
				return err
			}
		}
	}
	if err := watch(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: all, RangeEnd: all}}},
		func(a *pb.WatchResponse) bool { return a.Created }); err != nil {
		return err
	}
	for i := range 60 {
		call(members[i%3], "KV/Put", &pb.PutRequest{Key: key(i), Value: make([]byte, 100)}, new(pb.PutResponse))
	}
	for got := 0; got < 60; {
		a, err := w.Recv()
		if err != nil {
			return err
		}
		got += len(a.Events)
	}
	for i := range 30 {
		call(members[i%3], "KV/Range", &pb.RangeRequest{Key: key(i), Serializable: i%2 == 0}, new(pb.RangeResponse))
	}
	call(b, "KV/Range", &pb.RangeRequest{Key: all, RangeEnd: all, Limit: 5}, new(pb.RangeResponse))
	refused(b, "KV/Range", &pb.RangeRequest{Key: all, RangeEnd: all, Revision: 1 << 40}, new(pb.RangeResponse))
	refused(b, "KV/Range", &pb.RangeRequest{}, new(pb.RangeResponse))
	s, err := pb.NewKVClient(c).RangeStream(ctx, &pb.RangeRequest{Key: all, RangeEnd: all, Limit: 3})
	for err == nil {
		_, err = s.Recv()
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	for i := range 6 {
		call(members[i%3], "KV/Txn", &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: key(i), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{}}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key(i)}}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key(i)}}},
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("other"), Value: []byte("v")}}}},
		}, new(pb.TxnResponse))
	}
	call(a, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key(1)}}}}}, new(pb.TxnResponse))
	call(b, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: key(7), RangeEnd: key(10)}, new(pb.DeleteRangeResponse))
	call(c, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("nothing")}, new(pb.DeleteRangeResponse))
	call(a, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 71, TTL: 600}, new(pb.LeaseGrantResponse))
	call(b, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 72, TTL: 100}, new(pb.LeaseGrantResponse))
	refused(c, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 72, TTL: 100}, new(pb.LeaseGrantResponse))
	call(a, "KV/Put", &pb.PutRequest{Key: []byte("leased"), Lease: 71}, new(pb.PutResponse))
	for _, conn := range members {
		k, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
		if err != nil {
			return err
		}
		for _, id := range []int64{71, 72, 73} {
			if err := k.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
				return err
			}
			if _, err := k.Recv(); err != nil {
				return err
			}
		}
		if err := k.CloseSend(); err != nil {
			return err
		}
		if _, err := k.Recv(); !errors.Is(err, io.EOF) {
			return fmt.Errorf("the end of a stream of keepalives: %w", err)
		}
	}
	call(a, "Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 71, Keys: true}, new(pb.LeaseTimeToLiveResponse))
	call(a, "Lease/LeaseLeases", &pb.LeaseLeasesRequest{}, new(pb.LeaseLeasesResponse))
	call(b, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 71}, new(pb.LeaseRevokeResponse))
	refused(b, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 71}, new(pb.LeaseRevokeResponse))
	refused(b, "KV/Put", &pb.PutRequest{Key: []byte("leased"), Lease: 71}, new(pb.PutResponse))
	var now pb.RangeResponse
	call(a, "KV/Range", &pb.RangeRequest{Key: all}, &now)
	call(a, "KV/Compact", &pb.CompactionRequest{Revision: now.Header.GetRevision() - 5, Physical: true}, new(pb.CompactionResponse))
	refused(a, "KV/Compact", &pb.CompactionRequest{Revision: 2}, new(pb.CompactionResponse))
	refused(a, "KV/Range", &pb.RangeRequest{Key: all, Revision: 2}, new(pb.RangeResponse))
	if err := watch(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}},
		func(a *pb.WatchResponse) bool { return len(a.Events) == 0 && !a.Created && !a.Canceled }); err != nil {
		return fmt.Errorf("progress: %w", err)
	}
	if err := watch(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: all, RangeEnd: all, StartRevision: 2}}},
		func(a *pb.WatchResponse) bool { return a.CompactRevision > 0 }); err != nil {
		return fmt.Errorf("compacted watch: %w", err)
	}
	end()
	for _, conn := range members {
		call(conn, "Maintenance/Status", &pb.StatusRequest{}, new(pb.StatusResponse))
		call(conn, "Maintenance/HashKV", &pb.HashKVRequest{}, new(pb.HashKVResponse))
		call(conn, "Maintenance/Hash", &pb.HashRequest{}, new(pb.HashResponse))
		call(conn, "Maintenance/Defragment", &pb.DefragmentRequest{}, new(pb.DefragmentResponse))
		call(conn, "Cluster/MemberList", &pb.MemberListRequest{Linearizable: true}, new(pb.MemberListResponse))
	}
	snap, err := pb.NewMaintenanceClient(b).Snapshot(ctx, &pb.SnapshotRequest{})
	for err == nil {
		_, err = snap.Recv()
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	call(a, "Auth/RoleAdd", &pb.AuthRoleAddRequest{Name: "root"}, new(pb.AuthRoleAddResponse))
	call(a, "Auth/UserAdd", &pb.AuthUserAddRequest{Name: "root", Password: "secret"}, new(pb.AuthUserAddResponse))
	call(a, "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}, new(pb.AuthUserGrantRoleResponse))
	refused(a, "Auth/Authenticate", &pb.AuthenticateRequest{Name: "root", Password: "secret"}, new(pb.AuthenticateResponse)) // it is off
	call(a, "Auth/AuthEnable", &pb.AuthEnableRequest{}, new(pb.AuthEnableResponse))
	refused(a, "Auth/Authenticate", &pb.AuthenticateRequest{Name: "root", Password: "wrong"}, new(pb.AuthenticateResponse))
	var token pb.AuthenticateResponse
	call(a, "Auth/Authenticate", &pb.AuthenticateRequest{Name: "root", Password: "secret"}, &token)
	refused(a, "KV/Put", &pb.PutRequest{Key: []byte("x")}, new(pb.PutResponse))
	refused(a, "KV/Range", &pb.RangeRequest{Key: []byte("x")}, new(pb.RangeResponse))
	ctx = metadata.AppendToOutgoingContext(ctx, "token", token.Token)
	call(a, "KV/Put", &pb.PutRequest{Key: []byte("x")}, new(pb.PutResponse))
	call(a, "Auth/AuthDisable", &pb.AuthDisableRequest{}, new(pb.AuthDisableResponse))
	// The alarm stays raised: what shows it is there for as long as it is.
	for _, action := range []pb.AlarmRequest_AlarmAction{pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_GET} {
		call(a, "Maintenance/Alarm", &pb.AlarmRequest{Action: action, MemberID: 5, Alarm: pb.AlarmType_NOSPACE}, new(pb.AlarmResponse))
	}
	refused(b, "KV/Put", &pb.PutRequest{Key: []byte("x")}, new(pb.PutResponse))
	return failed
}

// scrape is what a member shows at /metrics.
func scrape(ctx context.Context, address string) (map[string]*dto.MetricFamily, error) {
	r, err := http.NewRequestWithContext(ctx, "GET", "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	p := expfmt.NewTextParser(model.UTF8Validation)
	return p.TextToMetricFamilies(a.Body)
}

// sums are the values of all members together, by name and labels: of a histogram how often it was fed.
func sums(members []map[string]*dto.MetricFamily) map[string]float64 {
	out := map[string]float64{}
	for _, m := range members {
		for name, f := range m {
			for _, one := range f.Metric {
				v := one.GetCounter().GetValue() + one.GetGauge().GetValue() + float64(one.GetHistogram().GetSampleCount())
				out[name+labelsOf(one)] += v
			}
		}
	}
	return out
}

// labelsOf leaves out what tells one member, or one build, from another.
func labelsOf(m *dto.Metric) string {
	var labels []string
	for _, l := range m.Label {
		v := l.GetValue()
		switch l.GetName() {
		case "server_id", "Local", "Remote", "To", "From", "server_go_version":
			v = "its"
		}
		labels = append(labels, l.GetName()+"="+strconv.Quote(v))
	}
	slices.Sort(labels)
	return "{" + strings.Join(labels, ",") + "}"
}

// shapes are the series without values: type, labels and buckets.
func shapes(members []map[string]*dto.MetricFamily) map[string]string {
	out := map[string]string{}
	for _, m := range members {
		for name, f := range m {
			for _, one := range f.Metric {
				var le []string
				for _, b := range one.GetHistogram().GetBucket() {
					le = append(le, fmt.Sprint(b.GetUpperBound()))
				}
				out[name+labelsOf(one)] = strings.TrimSpace(strings.ToLower(f.GetType().String()) + " " + strings.Join(le, ","))
			}
		}
	}
	return out
}

// exception is a line of docs/compat.md: a series, or all of one name, that is not as in etcd.
type exception struct {
	name   string
	labels []string // as in labelsOf; the series has these, and maybe others
	gone   bool     // it is not there; otherwise its value is another
}

func (e *exception) covers(series string) bool {
	name, labels, _ := strings.Cut(series, "{")
	if name != e.name {
		return false
	}
	for _, l := range e.labels {
		if !strings.Contains("{"+labels, l) {
			return false
		}
	}
	return true
}

var ticked = regexp.MustCompile("`([a-z0-9_]+)({[^`]*})?`")

// listed reads the table under the heading Metrics.
func listed(t *testing.T) (out []exception) {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "compat.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(doc), "\n### Metrics\n")
	if !ok {
		t.Fatal("docs/compat.md has no section on metrics")
	}
	section, _, _ = strings.Cut(section, "\n#")
	for line := range strings.Lines(section) {
		cells := strings.Split(line, " | ")
		if !strings.HasPrefix(line, "| `") || len(cells) != 4 {
			continue
		}
		for _, m := range ticked.FindAllStringSubmatch(cells[0], -1) {
			e := exception{name: m[1], gone: cells[2] == "not there"}
			if m[2] != "" {
				e.labels = strings.Split(m[2][1:len(m[2])-1], ",")
			}
			out = append(out, e)
		}
	}
	return out
}

// accidents are the values that tell of something that went wrong, or was under way, by chance. They are not compared.
var accidents = regexp.MustCompile(`_failures(_total)?{|^etcd_server_(slow_|proposals_pending)|^etcd_mvcc_db_open_read|^etcd_network_disconnected`)

// measures are the values that tell of the machine and its disk, not of what was asked for. They are compared by whether
// there is anything.
var measures = regexp.MustCompile(`^etcd_disk_|^etcd_snap_|^etcd_mvcc_db_total_|^etcd_network_(peer|client_grpc)_|^etcd_server_(health|quota|proposals_(committed|applied))|` +
	`^etcd_debugging_server_watch_send_loop_|^etcd_debugging_mvcc_db_compaction_(last|pause)|^etcd_server_(id|go_version)`)

// compareMetrics tells what differs and is not listed.
func compareMetrics(etcd, trivet measured, exceptions []exception) (diffs []string) {
	wants, has := shapes(etcd.after), shapes(trivet.after)
	eb, ea, tb, ta := sums(etcd.before), sums(etcd.after), sums(trivet.before), sums(trivet.after)
	for _, series := range slices.Sorted(maps.Keys(wants)) {
		if !strings.HasPrefix(series, "etcd_") && !strings.HasPrefix(series, "grpc_") && !strings.HasPrefix(series, "os_") {
			continue
		}
		i := slices.IndexFunc(exceptions, func(e exception) bool { return e.covers(series) })
		shape, ok := has[series]
		want, got := ea[series]-eb[series], ta[series]-tb[series]
		switch {
		case i >= 0 && exceptions[i].gone:
			if ok {
				diffs = append(diffs, series+" is there, although it is listed as not there")
			}
		case !ok:
			diffs = append(diffs, series+" is missing")
		case shape != wants[series]:
			diffs = append(diffs, fmt.Sprintf("%s is %s, in etcd %s", series, shape, wants[series]))
		case i >= 0 || accidents.MatchString(series):
		case measures.MatchString(series):
			if ea[series] > 0 && ta[series] == 0 {
				diffs = append(diffs, fmt.Sprintf("%s is 0, in etcd %v", series, ea[series]))
			}
		case want != got:
			diffs = append(diffs, fmt.Sprintf("%s went from %v to %v, in etcd from %v to %v", series, tb[series], ta[series], eb[series], ea[series]))
		}
	}
	// What etcd does not show may be there with nothing counted: dashboards then see the first event.
	for _, series := range slices.Sorted(maps.Keys(has)) {
		_, ok := wants[series]
		if ok || ta[series] == 0 || accidents.MatchString(series) || measures.MatchString(series) || !strings.HasPrefix(series, "etcd_") && !strings.HasPrefix(series, "grpc_") {
			continue
		}
		if !slices.ContainsFunc(exceptions, func(e exception) bool { return e.covers(series) }) {
			diffs = append(diffs, fmt.Sprintf("%s is %v; etcd has no such series", series, ta[series]))
		}
	}
	return diffs
}

// measured is what the members of one system showed.
type measured struct {
	before, after []map[string]*dto.MetricFamily
}

// watched are fresh members of a system.
type watched struct {
	*cluster.Cluster
	conns []*grpc.ClientConn
	measured
}

func (w *watched) scrape(ctx context.Context) (out []map[string]*dto.MetricFamily, err error) {
	for _, m := range w.Members {
		f, err := scrape(ctx, m.Client)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// work starts members, looks at them, and puts the load on them.
func work(ctx context.Context, t *testing.T, s *target, extra ...string) (w watched, err error) {
	w.Cluster, err = cluster.Start(ctx, filepath.Join(t.TempDir(), s.name), memberCount, s.command, slices.Concat(flags, s.extra, extra)...)
	if err != nil {
		return w, err
	}
	t.Cleanup(func() { _ = w.Close() })
	for _, m := range w.Members {
		conn, err := m.Dial()
		if err != nil {
			return w, err
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := settled(ctx, conn); err != nil {
			return w, err
		}
		w.conns = append(w.conns, conn)
	}
	if w.before, err = w.scrape(ctx); err != nil {
		return w, err
	}
	return w, load(ctx, w.conns)
}

// stood tells whether the leader was the same all the time.
func (m *measured) stood() bool {
	const name = "etcd_server_leader_changes_seen_total{}"
	return sums(m.before)[name] == sums(m.after)[name]
}

// TestMetrics puts the same load on both systems and compares what all members show together: every series of etcd's is
// there with its type, labels and buckets, and counts the same, but for what docs/compat.md lists.
func TestMetrics(t *testing.T) {
	for attempt := 1; ; attempt++ {
		diffs, err := measure(t)
		switch {
		case err != nil && attempt < 3: // a call failed, or the leader changed: the machine stood still
			t.Log(err)
			continue
		case err != nil:
			t.Fatal(err)
		case len(diffs) > 0:
			t.Fatalf("not listed in docs/compat.md:\n%s", strings.Join(diffs, "\n"))
		}
		return
	}
}

func measure(t *testing.T) ([]string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var etcd, trivet watched
	other := make(chan error, 1)
	go func() {
		var err error
		etcd, err = work(ctx, t, systems.etcd, "--metrics=extensive")
		other <- err
	}()
	var err error
	if trivet, err = work(ctx, t, systems.trivet); err != nil {
		err = fmt.Errorf("Trivet: %w", err)
	}
	if e := <-other; e != nil {
		err = errors.Join(err, fmt.Errorf("etcd: %w", e))
	}
	if err != nil {
		return nil, err
	}
	exceptions := listed(t)
	// Some is counted after the answer was given, and on the other members later.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(300 * time.Millisecond) {
		if etcd.after, err = etcd.scrape(ctx); err != nil {
			return nil, err
		}
		if trivet.after, err = trivet.scrape(ctx); err != nil {
			return nil, err
		}
		if !etcd.stood() || !trivet.stood() {
			return nil, errors.New("the leader changed")
		}
		diffs := compareMetrics(etcd.measured, trivet.measured, exceptions)
		if len(diffs) == 0 || time.Now().After(deadline) {
			return diffs, nil
		}
	}
}
