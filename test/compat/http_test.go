package compat

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func get(path string) gatewayCall { return gatewayCall{method: "GET", path: path} }

// sorted is for answers that etcd gives in the order of a Go map.
func sorted(path string) gatewayCall { return gatewayCall{method: "GET", path: path, sorted: true} }

func blind(path string) gatewayCall { return gatewayCall{method: "GET", path: path, blind: true} }

var pages = []gatewayCall{
	// Health.
	get("/health?serializable=true"), get("/health?serializable=false"), get("/health?serializable"), get("/health?serializable=nonsense"),
	get("/health?exclude=NOSPACE"), get("/health?exclude=NOSPACE&exclude=CORRUPT"), get("/health?exclude="), get("/health?exclude=nonsense"),
	get("/health/"), get("/health/x"), {method: "HEAD", path: "/health"}, {method: "PUT", path: "/health"}, {method: "DELETE", path: "/livez"},
	get("/livez?verbose"), get("/livez?verbose=false"), get("/livez?exclude=serializable_read"), get("/livez?exclude=serializable_read&verbose"),
	get("/livez/serializable_read"), get("/livez/serializable_read?verbose"), get("/livez/serializable_read?exclude=serializable_read&verbose"),
	get("/livez/"), get("/livez/nothing"), get("/livez/linearizable_read"), get("/livez/data_corruption"), {method: "HEAD", path: "/livez"},
	get("/readyz"), sorted("/readyz?verbose"), sorted("/readyz?verbose=1&exclude=data_corruption"),
	sorted("/readyz?verbose&exclude=data_corruption&exclude=non_learner"), sorted("/readyz?verbose&exclude=nothing"),
	get("/readyz?verbose&exclude=data_corruption&exclude=serializable_read&exclude=linearizable_read&exclude=non_learner"),
	get("/readyz/data_corruption?verbose"), get("/readyz/serializable_read"), get("/readyz/linearizable_read?verbose"), get("/readyz/non_learner"),
	get("/readyz/"), {method: "POST", path: "/readyz/linearizable_read"}, {method: "HEAD", path: "/readyz"},
	// Other pages.
	get("/version/"), get("/version?x=y"), {method: "HEAD", path: "/version"}, {method: "PUT", path: "/version"}, {method: "OPTIONS", path: "/version"},
	blind("/metrics"), {method: "HEAD", path: "/metrics", blind: true}, get("/metrics/"), {method: "OPTIONS", path: "/metrics"},
	blind("/debug/vars"), {method: "POST", path: "/debug/vars"}, get("/debug/vars/"), get("/debug"), get("/debug/"),
	get("/debug/pprof/"), get("/debug/pprof/goroutine?debug=1"), get("/debug/requests"), get("/debug/events"),
	get("/config/local/log"), get("/v2/keys"), get("/v2/stats/self"), get("/v2/members"), get("/members"), get("/raft"), get("/downgrade/enabled"),
	get("/proxy/health"), get("/favicon.ico"), get("//health"), get("/HEALTH"), get("/%68ealth"), get("/./health"), get("/v3/../health"),
	// Paths of the gateway.
	get("/v3"), get("/v3/"), get("/v3beta"), get("/v3beta/"), post("/v3beta/kv/range", `{"key":"YQ=="}`), get("/v3beta/kv/range"),
	post("/v3beta/v3/kv/range", `{"key":"YQ=="}`), post("/v3/v3beta/kv/range", `{"key":"YQ=="}`), post("/v3beta/nothing", `{}`),
	post("/v2/kv/range", `{"key":"YQ=="}`), post("/v4/kv/range", `{}`), post("/V3/kv/range", `{}`), post("/v3/KV/range", `{}`),
	post("/v3/kv/range/", `{}`), post("/v3/kv", `{}`), post("/v3/kv/%72ange", `{"key":"YQ=="}`), post("/v3/kv/range?key=Yg==", `{"key":"YQ=="}`),
	post("/v3/kv/range%2f", `{}`), post("/v3/kv/range:x", `{}`),
	{method: "DELETE", path: "/v3/kv/range"}, {method: "PATCH", path: "/v3/kv/range", body: `{}`}, {method: "HEAD", path: "/v3/kv/range"},
	{method: "GET", path: "/v3/watch"}, {method: "PUT", path: "/v3/lease/grant", body: `{}`}, {method: "TRACE", path: "/v3/kv/range"},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"X-HTTP-Method-Override": "GET"}},
	{method: "POST", path: "/v3/kv/range", body: `key=YQ==`, header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}},
	{method: "POST", path: "/v3/kv/range", body: `key=YQ==`, header: map[string]string{"Content-Type": "application/x-www-form-urlencoded", "X-HTTP-Method-Override": "GET"}},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Content-Type": "text/plain"}},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Accept": "text/html"}},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Accept-Encoding": "gzip"}},
	// Metadata.
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Grpc-Metadata-Hasleader": "true"}},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Grpc-Metadata-Client-Api-Version": "3.7"}},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Grpc-Timeout": "5S"}},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Grpc-Timeout": "nonsense"}},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Authorization": "nonsense"}},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Authorization": "Bearer nonsense"}},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Grpc-Metadata-Token": "nonsense"}},
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Grpc-Metadata-X-Bin": "%%%"}},
	// Origins.
	{method: "POST", path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: map[string]string{"Origin": "http://somewhere"}},
	{method: "OPTIONS", path: "/v3/kv/range", header: map[string]string{"Origin": "http://somewhere:1", "Access-Control-Request-Method": "POST"}},
	{method: "GET", path: "/version", host: "somewhere.example:99"},
}

// bodies are good and bad ones, for several calls.
var bodies = []string{
	`{"key":"YQ==","value":"MQ=="}`, `{"KEY":"YQ=="}`, `{"key":"YQ==", }`, `{key:"YQ=="}`, `{'key':'YQ=='}`, "\ufeff{}", "{\"key\":\"YQ==\"}\n\n", `{"key":"YQ=="}{"key":"Yg=="}`,
	`{"key":"YQ==","value":"MQ==","x":{"y":[1,2,{"z":null}]}}`, `{"key":"YQ==","x":}`, `{"key":["YQ=="]}`, `{"key":{"a":1}}`, `{"key":true}`, `{"key":"YQ==","value":5}`,
	`{"key":"YQ"}`, `{"key":"YQ="}`, `{"key":"Y"}`, `{"key":"YQ==="}`, `{"key":"Y Q=="}`, `{"key":"Y\nQ=="}`, `{"key":"__-_"}`, `{"key":"//+/"}`, `{"key":"_/-+"}`, `{"key":"é"}`, `{"key":"\u0059Q=="}`, `{"key":"\ud800"}`,
	`{"key":"YQ==","revision":"0"}`, `{"key":"YQ==","revision":0}`, `{"key":"YQ==","revision":-1}`, `{"key":"YQ==","revision":"-1"}`, `{"key":"YQ==","revision":1e0}`, `{"key":"YQ==","revision":"1e0"}`,
	`{"key":"YQ==","revision":1.0}`, `{"key":"YQ==","revision":1.5}`, `{"key":"YQ==","revision":""}`, `{"key":"YQ==","revision":" 1"}`, `{"key":"YQ==","revision":"0x1"}`, `{"key":"YQ==","revision":null}`, `{"key":"YQ==","revision":true}`,
	`{"key":"YQ==","revision":9223372036854775807}`, `{"key":"YQ==","revision":"9223372036854775807"}`, `{"key":"YQ==","revision":9223372036854775808}`, `{"key":"YQ==","revision":"9223372036854775808"}`,
	`{"key":"YQ==","revision":-9223372036854775808}`, `{"key":"YQ==","limit":1e30}`, `{"key":"YQ==","lease":"1","ignore_lease":true}`, `{"key":"YQ==","limit":"01"}`,
	`{"key":"YQ==","keys_only":1}`, `{"key":"YQ==","keys_only":"false"}`, `{"key":"YQ==","keysOnly":true}`, `{"key":"YQ==","keys_only":true,"keysOnly":false}`, `{"key":"YQ==","prev_kv":null}`,
	`{"key":"YQ==","sort_order":"NONE"}`, `{"key":"YQ==","sort_order":"ascend"}`, `{"key":"YQ==","sort_order":"1"}`, `{"key":"YQ==","sort_order":1.0}`, `{"key":"YQ==","sort_order":null}`, `{"key":"YQ==","sort_target":"MOD"}`,
	`{"ID":"1","TTL":"x"}`, `{"id":"1","ttl":"500"}`, `{"ID":"0x10","TTL":500}`, `{"ID":"-9223372036854775809"}`, `{"name":5}`, `{"name":"x","password":null}`,
	`true`, `1`, `"YQ=="`, `[{}]`, `nul`, `{`, `}`, `{"`, `   `, "\x00", "\xff\xfe", `{"key":"YQ==","nested":` + strings.Repeat(`{"a":`, 200) + `1` + strings.Repeat(`}`, 200) + `}`,
	strings.Repeat(`[`, 20000), `{"key":"` + strings.Repeat("A", 1<<16) + `"}`,
}

// bodyPaths are calls that leave nothing behind, or but a key.
var bodyPaths = []string{"/v3/kv/range", "/v3/kv/put", "/v3/lease/timetolive", "/v3/auth/user/get", "/v3/election/leader"}

// TestPages asks for every page and path with good and bad methods, queries, headers and bodies.
func TestPages(t *testing.T) {
	if err := systems.begin(false); err != nil {
		t.Fatal(err)
	}
	for _, c := range pages {
		systems.compareHTTP(t, c)
	}
	for _, path := range bodyPaths {
		for _, body := range bodies {
			systems.compareHTTP(t, post(path, body))
		}
	}
}

// TestSickPages looks at the pages of health while alarms are raised.
func TestSickPages(t *testing.T) {
	raise := func(alarm pb.AlarmType) string {
		return fmt.Sprintf(`{"action":"ACTIVATE","memberID":"77","alarm":%d}`, alarm)
	}
	clear := func(alarm pb.AlarmType) string {
		return fmt.Sprintf(`{"action":"DEACTIVATE","memberID":"77","alarm":%d}`, alarm)
	}
	if err := systems.begin(false); err != nil {
		t.Fatal(err)
	}
	for _, alarm := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		systems.compareHTTP(t, post("/v3/maintenance/alarm", raise(alarm)))
		for _, c := range []gatewayCall{
			get("/health"), get("/health?serializable=true"), get("/health?exclude=" + alarm.String()), get("/health?exclude=nonsense"),
			get("/livez?verbose"), sorted("/readyz"), sorted("/readyz?verbose"), sorted("/readyz?exclude=data_corruption&verbose"),
			get("/readyz/data_corruption"), get("/readyz/data_corruption?exclude=data_corruption"), get("/readyz/linearizable_read"),
			post("/v3/kv/put", `{"key":"YQ==","value":"MQ=="}`), post("/v3/kv/range", `{"key":"YQ=="}`),
			post("/v3/maintenance/status", `{}`), post("/v3/maintenance/alarm", `{"alarm":"CORRUPT"}`),
			post("/v3/maintenance/alarm", `{"action":"NONSENSE"}`), post("/v3/maintenance/alarm", `{"alarm":"NOTHING"}`),
		} {
			systems.compareHTTP(t, c)
		}
		systems.compareHTTP(t, post("/v3/maintenance/alarm", clear(alarm)))
		systems.compareHTTP(t, get("/health"))
	}
}

// TestRestrictedPages has the flags that say who may ask, and the pages that are there only with a flag.
func TestRestrictedPages(t *testing.T) {
	defer systems.with("--cors=http://good.example:80,https://other.example:8443", "--host-whitelist=good.example,127.0.0.1", "--enable-pprof")()
	systems.lastly(t, true, func(func(op) error) error {
		for _, method := range []string{"GET", "OPTIONS", "POST"} {
			for _, origin := range []string{"", "http://good.example:80", "https://good.example:80", "http://good.example", "HTTP://GOOD.EXAMPLE:80", "https://other.example:8443", "http://bad.example:80", "null", "*"} {
				for _, path := range []string{"/version", "/v3/kv/range", "/nothing"} {
					c := gatewayCall{method: method, path: path, header: map[string]string{"Origin": origin}}
					if origin == "" {
						c.header = nil
					}
					if method == "POST" {
						c.body = `{"key":"YQ=="}`
					}
					systems.compareHTTP(t, c)
				}
			}
		}
		for _, host := range []string{"good.example", "good.example:2379", "GOOD.EXAMPLE", "good.example.", "bad.example", "bad.example:80", "127.0.0.1:1", "[::1]:2379", "localhost", "x" + strings.Repeat("y", 300)} {
			for _, c := range []gatewayCall{get("/version"), get("/health"), post("/v3/kv/range", `{"key":"YQ=="}`), {method: "OPTIONS", path: "/version"}} {
				c.host = host
				systems.compareHTTP(t, c)
			}
		}
		for _, c := range []gatewayCall{
			blind("/debug/pprof/"), get("/debug/pprof"), blind("/debug/pprof/goroutine?debug=1"), blind("/debug/pprof/heap"), blind("/debug/pprof/cmdline"),
			blind("/debug/pprof/symbol"), get("/debug/pprof/nothing"), blind("/debug/pprof/mutex"), blind("/debug/pprof/block"), blind("/debug/pprof/threadcreate"),
		} {
			systems.compareHTTP(t, c)
		}
		return nil
	})
}

// TestBigAnswers reads more over HTTP than a message of gRPC holds by default.
func TestBigAnswers(t *testing.T) {
	if err := systems.begin(false); err != nil {
		t.Fatal(err)
	}
	value := base64.StdEncoding.EncodeToString(make([]byte, 1<<20))
	for i := range 9 {
		key := base64.StdEncoding.EncodeToString(fmt.Append(nil, "k", i))
		systems.compareHTTP(t, post("/v3/kv/put", fmt.Sprintf(`{"key":"%s","value":"%s"}`, key, value)))
	}
	systems.compareHTTP(t, post("/v3/kv/range", `{"key":"aw==","range_end":"bA=="}`))
	systems.compareHTTP(t, post("/v3/kv/txn", `{"success":[{"request_range":{"key":"aw==","range_end":"bA=="}}]}`))
	systems.compareHTTP(t, post("/v3/kv/put", fmt.Sprintf(`{"key":"eA==","value":"%s"}`, strings.Repeat("AAAA", 1<<19)))) // refused
	systems.compareHTTP(t, post("/v3/kv/put", fmt.Sprintf(`{"key":"eA==","value":"%s"}`, strings.Repeat("AAAA", 1<<20))))
	systems.compareHTTP(t, post("/v3/kv/deleterange", `{"key":"aw==","range_end":"bA==","prev_kv":true}`))
}
