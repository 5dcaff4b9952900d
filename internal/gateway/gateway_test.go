package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/gateway"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/metrics"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/rpc/rpctest"
	"github.com/trivet-kv/trivet/internal/token"
	"github.com/trivet-kv/trivet/internal/watch"
)

// member is a member of one with its front door on loopback.
type member struct {
	*rpctest.Backend
	services *rpc.Services
	front    *gateway.Server
	url      string
}

func start(t testing.TB, change func(*gateway.Options)) *member {
	t.Helper()
	b := rpctest.New(t, watch.Options{})
	m := metrics.New(metrics.Identity{Version: "3.7.3", Product: "test"})
	tokens, err := token.New(token.Options{Spec: "simple"})
	if err != nil {
		t.Fatal(err)
	}
	made := func(m fsm.Token) { tokens.Made(m.Token, m.Who) }
	b.OnToken.Store(&made)
	s := rpc.New(rpc.Options{Backend: b, Metrics: m, Tokens: tokens, Passwords: token.NewPasswords(4), Logger: slog.New(slog.DiscardHandler)})
	l := listen(t)
	o := gateway.Options{
		Services: s, Backend: b, Metrics: m, Logger: slog.New(slog.DiscardHandler), Clients: []gateway.Door{{Listener: l, Plain: true}},
	}
	if change != nil {
		change(&o)
	}
	g, err := gateway.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		g.Stop(ctx)
		select {
		case err := <-g.Failed():
			t.Error(err)
		default:
		}
	})
	return &member{Backend: b, services: s, front: g, url: "http://" + l.Addr().String()}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// asked are the requests whose answers by etcd 3.7.3 are kept in testdata/http.txt: method, path, body.
var asked = []string{
	"GET /health", "GET /health?serializable=true", "GET /health?exclude=NOSPACE&exclude=nonsense", "POST /health", "HEAD /health",
	"GET /livez", "GET /livez?verbose", "GET /livez/serializable_read", "GET /livez/linearizable_read", "GET /livez/", "POST /livez",
	"GET /readyz", "GET /readyz/data_corruption", "GET /readyz/serializable_read?verbose", "GET /readyz/linearizable_read?verbose",
	"GET /readyz/non_learner", "GET /readyz/nothing", "PUT /readyz", "GET /readyz?exclude=nonsense",
	"GET /readyz?verbose&exclude=serializable_read&exclude=linearizable_read&exclude=non_learner",
	"GET /readyz?verbose&exclude=data_corruption&exclude=serializable_read&exclude=linearizable_read&exclude=non_learner",
	"GET /version", "POST /version", "OPTIONS /version", "OPTIONS /v3/kv/range", "GET /", "GET /nothing", "GET /v2/keys", "POST /v3/nothing {}",
	"GET /v3/kv/range", "PUT /v3/kv/range {}", "POST /v3/kv/range {", "POST /v3/kv/range", "POST /v3/kv/range {}", "POST /metrics_",
	`POST /v3/kv/range {"key":7}`, `POST /v3/kv/range {"key":"%"}`, `POST /v3/kv/range {"key":"Zm9v","sort_order":"UP"}`,
	`POST /v3/kv/put {"key":"Zm9v","value":"YmFy"}`, `POST /v3/kv/range {"key":"Zm9v"}`, `POST /v3beta/kv/range {"key":"Zm9v"}`,
	`POST /v3/kv/range {"key":"Zm9v","unknown":1,"keysOnly":true}`, `POST /v3/kv/range {"key":"Zm9v","keys_only":true,"limit":"1"}`,
	`POST /v3/kv/put {"key":"Zm9v","value":"YmF6","prev_kv":true}`, `POST /v3/kv/put {"key":"Zm9v","value":"eA==","ignore_value":true}`,
	`POST /v3/kv/txn {"compare":[{"key":"Zm9v","target":"VERSION","result":"EQUAL","version":"2"}],"success":[{"requestRange":{"key":"Zm9v"}}],"failure":[{"request_delete_range":{"key":"Zm9v"}}]}`,
	`POST /v3/kv/txn {"success":[{"request_put":{"key":"YQ==","value":"Yg=="}},{"request_range":{"key":"YQ=="}}]}`,
	`POST /v3/kv/deleterange {"key":"YQ==","prev_kv":true}`, `POST /v3/kv/compaction {"revision":"3","physical":true}`,
	`POST /v3/kv/compaction {"revision":"3"}`, `POST /v3/kv/range {"key":"Zm9v","revision":"2"}`, `POST /v3/kv/range {"key":"Zm9v","revision":"200"}`,
	`POST /v3/lease/grant {"TTL":"60","ID":"77"}`, `POST /v3/lease/timetolive {"ID":"78","keys":true}`, `POST /v3/kv/lease/timetolive {"ID":"78"}`,
	`POST /v3/lease/leases {}`, `POST /v3/kv/lease/leases {}`, `POST /v3/kv/lease/revoke {"ID":"77"}`, `POST /v3/lease/revoke {"ID":"77"}`,
	`POST /v3/lease/keepalive {"ID":"77"}`,
	`POST /v3/maintenance/alarm {}`, `POST /v3/maintenance/status {}`, `POST /v3/maintenance/defragment {}`, `POST /v3/maintenance/hashkv {}`,
	`POST /v3/maintenance/transfer-leadership {"targetID":"1"}`, `POST /v3/auth/status {}`, `POST /v3/auth/authenticate {"name":"x"}`,
	`GET /debug/pprof/`,
}

var ids = regexp.MustCompile(`"(cluster_id|member_id|raft_term|raftTerm|leader|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse)":"\d+",?`)

// ask makes one request and returns what of the answer must be equal.
func ask(t *testing.T, base, line string) string {
	t.Helper()
	method, rest, _ := strings.Cut(line, " ")
	path, body, _ := strings.Cut(rest, " ")
	req, err := http.NewRequest(method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), "\u00a0", " ") // protobuf's errors have the one or the other, by the build
	if strings.HasPrefix(path, "/v3") {
		var c bytes.Buffer // protojson sets blanks at random
		if json.Compact(&c, []byte(text)) == nil {
			text = c.String()
		}
		text = strings.ReplaceAll(ids.ReplaceAllString(text, ""), ",}", "}")
	}
	// The order of etcd's checks is that of a Go map.
	if strings.HasPrefix(text, "[") {
		text = fmt.Sprintf("%d lines ending in %q", strings.Count(text, "\n"), text[len(text)-4:])
	}
	var head strings.Builder
	for _, h := range []string{"Content-Type", "Allow", "X-Content-Type-Options", "Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Grpc-Metadata-Content-Type"} {
		if v := resp.Header.Values(h); len(v) > 0 {
			fmt.Fprintf(&head, " %s=%q", h, v)
		}
	}
	return fmt.Sprintf("%s\n  %d%s\n  %q\n", line, resp.StatusCode, head.String(), text)
}

// TestPagesAnswerAsEtcd compares with testdata/http.txt, which TRIVET_UPDATE writes anew from the fresh etcd at TRIVET_ETCD.
func TestPagesAnswerAsEtcd(t *testing.T) {
	const file = "testdata/http.txt"
	if addr := os.Getenv("TRIVET_ETCD"); addr != "" && os.Getenv("TRIVET_UPDATE") != "" {
		var out strings.Builder
		for _, line := range asked {
			out.WriteString(ask(t, "http://"+addr, line))
		}
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, nil)
	for _, line := range asked {
		got := ask(t, m.url, line)
		if !strings.HasPrefix(string(want), got) {
			t.Fatalf("ours:\n%s\netcd:\n%.600s", got, want)
		}
		want = want[len(got):]
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestHealthPages(t *testing.T) {
	m := start(t, nil)
	want := func(path string, status int, text string) {
		t.Helper()
		if code, body := get(t, m.url+path); code != status || body != text {
			t.Errorf("%s: %d %q, want %d %q", path, code, body, status, text)
		}
	}
	want("/readyz?verbose", 200, "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n")
	want("/livez?verbose", 200, "[+]serializable_read ok\nok\n")

	timeout := error(kv.ErrTimeout)
	m.Barrier.Store(&timeout)
	want("/readyz", 503, "[+]data_corruption ok\n[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: request timed out\n[+]non_learner ok\n\n")
	want("/readyz/linearizable_read", 503, "[-]linearizable_read failed: etcdserver: request timed out\n\n")
	want("/readyz?exclude=linearizable_read", 200, "ok\n")
	want("/livez", 200, "ok\n")
	want("/health", 503, `{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}`+"\n")
	want("/health?serializable=true", 200, `{"health":"true","reason":""}`)
	m.Barrier.Store(nil)

	lost := time.Now()
	m.LeaderID.Store(0)
	if code, body := get(t, m.url+"/health"); code != 200 && time.Since(lost) < time.Second { // the next is there in a moment, and is asked
		t.Errorf("when the leader was just lost: %d %q", code, body)
	}
	for code := 200; code == 200 && time.Since(lost) < 30*time.Second; time.Sleep(50 * time.Millisecond) {
		code, _ = get(t, m.url+"/health")
	}
	want("/health", 503, `{"health":"false","reason":"RAFT NO LEADER"}`+"\n")
	want("/health?serializable=true", 200, `{"health":"true","reason":""}`)
	m.LeaderID.Store(rpctest.MemberID)

	m.IsLearner.Store(true)
	want("/readyz/non_learner", 503, "[-]non_learner failed: not supported for learner\n\n")
	m.IsLearner.Store(false)

	m.SetAlarms(kv.Alarm{MemberID: 1, Type: kv.AlarmNoSpace}, kv.Alarm{MemberID: 1, Type: kv.AlarmCorrupt})
	want("/health", 503, `{"health":"false","reason":"ALARM NOSPACE"}`+"\n")
	want("/health?exclude=NOSPACE", 503, `{"health":"false","reason":"ALARM CORRUPT"}`+"\n")
	want("/health?exclude=NOSPACE&exclude=CORRUPT", 200, `{"health":"true","reason":""}`)
	want("/readyz/data_corruption", 503, "[-]data_corruption failed: alarm activated: CORRUPT\n\n")
}

// A watch over JSON is lines under result, sent as they come, although the request's body has ended.
func TestWatchOverJSON(t *testing.T) {
	m := start(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url+"/v3/watch", strings.NewReader(`{"create_request":{"key":"Zm9v"}}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func() (out struct {
		Result struct {
			Created bool
			Events  []struct{ KV struct{ Value []byte } }
		}
	}) {
		t.Helper()
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &out); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		return out
	}
	if !next().Result.Created {
		t.Fatal("no created answer")
	}
	for i := range 3 {
		value := fmt.Sprint("value ", i)
		body, err := json.Marshal(map[string][]byte{"key": []byte("foo"), "value": []byte(value)})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := http.Post(m.url+"/v3/kv/put", "application/json", bytes.NewReader(body)); err != nil || r.StatusCode != 200 {
			t.Fatalf("%v %v", r, err)
		}
		if r := next().Result; len(r.Events) != 1 || string(r.Events[0].KV.Value) != value {
			t.Fatalf("event %d: %+v", i, r)
		}
	}
}

// A stream whose body does not decode ends with its client, although the body has not ended.
func TestStreamEndsWithItsClient(t *testing.T) {
	m := start(t, nil)
	for _, body := range []string{"garbage", `{"create_request":{"key":7}}`, `{"create_request":{"key":"YQ=="}}`, `{"create_request":{"key":"YQ=="}}garbage`} {
		c, err := net.Dial("tcp", strings.TrimPrefix(m.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(c, "POST /v3/watch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(body), body); err != nil {
			t.Fatal(err)
		}
		wait(t, func() bool { return m.Hub().Stats().Streams == 1 })
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		wait(t, func() bool { return m.Hub().Stats().Streams == 0 })
	}
}

func wait(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
	}
}

// An answer over 4 MiB arrives whole (E#14997).
func TestE14997LongAnswerOverJSON(t *testing.T) {
	m := start(t, nil)
	value := bytes.Repeat([]byte("x"), 1<<20)
	c := dial(t, m.url)
	for i := range 6 {
		if _, err := c.Put(context.Background(), fmt.Sprint("long", i), string(value)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := http.Post(m.url+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"AA==","range_end":"AA=="}`))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var out struct{ KVs []struct{ Value []byte } }
	if err := json.NewDecoder(r.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	if len(out.KVs) != 6 || !bytes.Equal(out.KVs[5].Value, value) {
		t.Errorf("%d pairs arrived", len(out.KVs))
	}
}

func dial(t testing.TB, url string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// With listeners for HTTP apart, the client listeners speak gRPC only; those for metrics have a few pages only.
func TestSeparateListeners(t *testing.T) {
	h, mon := listen(t), listen(t)
	m := start(t, func(o *gateway.Options) {
		o.HTTP, o.Monitor = []gateway.Door{{Listener: h, Plain: true}}, []gateway.Door{{Listener: mon, Plain: true}}
	})
	if _, err := dial(t, m.url).Put(context.Background(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := http.Get(m.url + "/health"); err == nil {
		t.Error("the gRPC listener answered HTTP/1")
	}
	if code, _ := get(t, "http://"+h.Addr().String()+"/version"); code != 200 {
		t.Errorf("/version on the HTTP listener: %d", code)
	}
	for path, want := range map[string]int{"/health": 200, "/readyz": 200, "/metrics": 200, "/version": 404, "/v3/kv/range": 404} {
		if code, _ := get(t, "http://"+mon.Addr().String()+path); code != want {
			t.Errorf("%s on the metrics listener: %d", path, code)
		}
	}
}

func TestMetricsPage(t *testing.T) {
	m := start(t, nil)
	if _, err := dial(t, m.url).Get(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	_, body := get(t, m.url+"/metrics")
	for _, want := range []string{
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1`,
		`etcd_server_version{server_version="3.7.3"} 1`,
		`etcd_server_client_requests_total{client_api_version="3.7",type="unary"} 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

// FuzzJSON sends any body to the paths of the gateway: the answer is JSON, and never an internal error.
func FuzzJSON(f *testing.F) {
	paths := []string{"/v3/kv/range", "/v3/kv/txn", "/v3/kv/put", "/v3/kv/deleterange", "/v3/lease/grant", "/v3/lease/timetolive",
		"/v3/lock/unlock", "/v3/election/leader", "/v3/election/proclaim", "/v3/election/resign", "/v3/cluster/member/list", "/v3/auth/status", "/v3beta/kv/range"}
	for i, line := range asked {
		if _, body, ok := strings.Cut(line, " {"); ok {
			f.Add(uint8(i), "{"+body)
		}
	}
	m := start(f, nil)
	f.Fuzz(func(t *testing.T, path uint8, body string) {
		r, err := http.Post(m.url+paths[int(path)%len(paths)], "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		// The election service's own errors have no code but Unknown, as in etcd: status 500 alone says nothing.
		if bytes.Contains(b, []byte(`"code":13`)) && !bytes.Contains(b, []byte("utf-8")) || !json.Valid(b) {
			t.Errorf("%d %s", r.StatusCode, b)
		}
	})
}

// A page that waits for the cluster in vain says what a client's read would.
func TestHealthPagesWithoutMajority(t *testing.T) {
	m := start(t, func(o *gateway.Options) { o.CheckTimeout = 10 * time.Millisecond })
	m.Hold.Store(true)
	for path, want := range map[string]string{
		"/readyz/linearizable_read": "[-]linearizable_read failed: etcdserver: request timed out\n\n",
		"/health":                   `{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}` + "\n",
	} {
		if code, body := get(t, m.url+path); code != 503 || body != want {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
}

// Who requires a leader says so in JSON by a header, and is answered at once.
func TestRequireLeaderOverJSON(t *testing.T) {
	m := start(t, nil)
	m.LeaderID.Store(0)
	for _, path := range []string{"/v3/kv/range", "/v3/maintenance/status", "/v3/lease/keepalive"} {
		req, err := http.NewRequest(http.MethodPost, m.url+path, strings.NewReader(`{"key":"YQ==","serializable":true}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Grpc-Metadata-Hasleader", "true")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 503 || !bytes.Contains(body, []byte("etcdserver: no leader")) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}
