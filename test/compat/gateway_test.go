package compat

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// own are the values in a JSON answer that differ by right. Revisions are made relative as in scripts.
var (
	ownNumbers = regexp.MustCompile(`"(cluster_id|member_id|raft_term|raftTerm|leader|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse)":"[0-9]+"`)
	ownID      = regexp.MustCompile(`"ID":"[0-9]{15,}"`)
	memberName = regexp.MustCompile(`"name":"m[123]"`)
	ownPort    = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)
	revision   = regexp.MustCompile(`"((?:create_|mod_|compact_|hash_)?revision|rev)":"([0-9]+)"`)
)

// json leaves out of an answer what differs by right: besides the above the order of members, which is that of their ids,
// and the spaces that the protobuf library varies by the binary it is in.
func (t *target) json(body string) string {
	var compact bytes.Buffer
	if json.Compact(&compact, []byte(body)) == nil {
		body = compact.String()
	}
	body = strings.ReplaceAll(strings.TrimSpace(body), "\u00a0", " ")
	body = strings.ReplaceAll(body, "  alarm:", " alarm:") // in an answer to a question for the status
	body = memberName.ReplaceAllString(body, `"name":"m"`)
	body = ownNumbers.ReplaceAllString(body, `"$1":"1"`)
	body = ownID.ReplaceAllString(body, `"ID":"1"`)
	body = ownToken.ReplaceAllString(body, `"token":"x.1"`)
	body = ownPort.ReplaceAllString(body, "127.0.0.1:1")
	return revision.ReplaceAllStringFunc(body, func(s string) string {
		m := revision.FindStringSubmatch(s)
		i, err := strconv.ParseInt(m[2], 10, 64)
		if err != nil {
			return s
		}
		return fmt.Sprintf(`"%s":"%d"`, m[1], i-t.base+1)
	})
}

// gatewayCall is one HTTP request. REV+n in a body stands for the revision that a script calls n, TOKEN:u in a header for
// the token of a user.
type gatewayCall struct {
	method, path, body string
	lines              int // of a stream: how many to read
	header             map[string]string
	host               string // in the request, instead of the address
	sorted             bool   // the lines of the answer come in any order
	blind              bool   // the answer's text differs by right
	silent             bool   // no answer comes: both wait for the end of a body that they cannot read on
}

// silence is how long no answer must come before it counts as none.
const silence = time.Second

func post(path, body string) gatewayCall { return gatewayCall{method: "POST", path: path, body: body} }

var gatewayCalls = []gatewayCall{
	post("/v3/kv/put", `{"key":"YQ==","value":"MQ=="}`),
	post("/v3/kv/put", `{"key":"YQ==","value":"Mg==","prev_kv":true}`),
	post("/v3/kv/put", `{"key":"YQ==","value":"Mw==","prevKv":true}`),
	post("/v3/kv/put", `{"key":"YQ==","value":"_-8="}`),
	post("/v3/kv/put", `{"key":"Yg","value":"/+8="}`),
	post("/v3/kv/put", `{"key":"","value":"MQ=="}`),
	post("/v3/kv/put", `{"value":"MQ=="}`),
	post("/v3/kv/put", `{"key":"YQ==","lease":"77"}`),
	post("/v3/kv/put", `{"key":"YQ==","lease":77}`),
	post("/v3/kv/put", `{"key":"YQ==","lease":"x"}`),
	post("/v3/kv/put", `{"key":"YQ==","lease":1.5}`),
	post("/v3/kv/put", `{"key":"YQ==","lease":"99999999999999999999"}`),
	post("/v3/kv/put", `{"key":"!!"}`),
	post("/v3/kv/put", `{"key":7}`),
	post("/v3/kv/put", `{"key":null}`),
	post("/v3/kv/put", `{"key":"YQ==","ignore_value":true}`),
	post("/v3/kv/put", `{"key":"YQ==","ignore_value":"true"}`),
	post("/v3/kv/put", `{"key":"YQ==","nonsense":1}`),
	post("/v3/kv/put", `{"key":"YQ==","key":"Yg=="}`),
	post("/v3/kv/put", `{"key":"YQ=="`),
	post("/v3/kv/put", `{"key":"YQ=="} x`),
	post("/v3/kv/put", ``),
	post("/v3/kv/put", `[]`),
	post("/v3/kv/put", `null`),
	post("/v3/kv/put", `"x"`),
	post("/v3/kv/put", `{}`),
	post("/v3/kv/range", `{"key":"YQ=="}`),
	post("/v3/kv/range", `{"key":"YQ==","range_end":"eg=="}`),
	post("/v3/kv/range", `{"key":"AA==","range_end":"AA==","limit":1,"sort_order":"DESCEND","sort_target":"KEY"}`),
	post("/v3/kv/range", `{"key":"AA==","range_end":"AA==","limit":"1","sort_order":2,"sort_target":0}`),
	post("/v3/kv/range", `{"key":"AA==","range_end":"AA==","sort_order":"UP"}`),
	post("/v3/kv/range", `{"key":"AA==","range_end":"AA==","sort_order":9}`),
	post("/v3/kv/range", `{"key":"AA==","range_end":"AA==","count_only":true}`),
	post("/v3/kv/range", `{"key":"AA==","range_end":"AA==","keys_only":true,"serializable":true}`),
	post("/v3/kv/range", `{"key":"YQ==","revision":"REV+2"}`),
	post("/v3/kv/range", `{"key":"YQ==","revision":"REV+99"}`),
	post("/v3/kv/range", `{"key":"bm90aGluZw=="}`),
	post("/v3/kv/range", `{}`),
	post("/v3/kv/txn", `{"compare":[{"target":"VALUE","key":"YQ==","value":"/+8="}],"success":[{"request_put":{"key":"Yw==","value":"MQ=="}}],"failure":[{"requestRange":{"key":"YQ=="}}]}`),
	post("/v3/kv/txn", `{"compare":[{"target":"MOD","result":"GREATER","key":"YQ==","modRevision":"REV+1"}],"success":[{"requestDeleteRange":{"key":"Yw==","prev_kv":true}},{"requestRange":{"key":"YQ==","range_end":"eg=="}},{"request_txn":{"success":[{"requestPut":{"key":"ZA=="}}]}}]}`),
	post("/v3/kv/txn", `{"compare":[{"target":"NONSENSE","key":"YQ=="}]}`),
	post("/v3/kv/txn", `{"success":[{}]}`),
	post("/v3/kv/txn", `{"success":[{"requestPut":{"key":"YQ=="},"requestRange":{"key":"YQ=="}}]}`),
	post("/v3/kv/txn", `{"success":[{"requestPut":{"key":"YQ=="}},{"requestPut":{"key":"YQ=="}}]}`),
	post("/v3/kv/txn", `{}`),
	post("/v3/kv/deleterange", `{"key":"ZA==","prev_kv":true}`),
	post("/v3/kv/deleterange", `{"key":"ZA=="}`),
	post("/v3/kv/deleterange", `{}`),
	post("/v3/lease/grant", `{"ID":"7","TTL":"1000"}`),
	post("/v3/lease/grant", `{"ID":7,"TTL":1000}`),
	post("/v3/lease/grant", `{"TTL":"9000000001"}`),
	post("/v3/kv/put", `{"key":"bA==","lease":"7"}`),
	post("/v3/lease/keepalive", `{"ID":"7"}`),
	post("/v3/lease/keepalive", `{"ID":"8"}`),
	post("/v3/lease/timetolive", `{"ID":"8","keys":true}`),
	post("/v3/kv/lease/timetolive", `{"ID":"8"}`),
	post("/v3/lease/leases", `{}`),
	post("/v3/kv/lease/leases", `{}`),
	post("/v3/lock/lock", `{"name":"bA==","lease":"7"}`),
	post("/v3/lock/lock", `{"name":"bA==","lease":7}`),
	post("/v3beta/lock/lock", `{"name":"bA==","lease":"8"}`),
	post("/v3/lock/lock", `{"name":7}`),
	post("/v3/lock/lock", `{"name":"bA=="`),
	{method: "GET", path: "/v3/lock/lock"},
	post("/v3/lock/unlock", `{"key":"bC83"}`),
	post("/v3/lock/unlock", `{"key":"bC83"}`),
	post("/v3/lock/unlock", `{}`),
	post("/v3/election/leader", `{"name":"ZQ=="}`),
	post("/v3/election/campaign", `{"name":"ZQ==","value":"MQ==","lease":"7"}`),
	post("/v3/election/campaign", `{"name":"ZQ==","value":"MQ==","lease":"8"}`),
	post("/v3/election/campaign", `{"name":"ZQ==","value":"%"}`),
	post("/v3/election/leader", `{"name":"ZQ=="}`),
	{method: "POST", path: "/v3/election/observe", body: `{"name":"ZQ=="}`, lines: 1},
	{method: "GET", path: "/v3/election/leader"},
	post("/v3/election/proclaim", `{"value":"Mg=="}`),
	post("/v3/election/proclaim", `{"leader":{},"value":"Mg=="}`),
	post("/v3/election/proclaim", `{"leader":{"name":"ZQ==","key":"ZS83","rev":"1","lease":"7"},"value":"Mg=="}`),
	post("/v3/election/resign", `{}`),
	post("/v3/election/resign", `{"leader":{"name":"ZQ==","key":"ZS83","rev":"1","lease":"7"}}`),
	post("/v3/election/nothing", `{}`),
	post("/v3/lease/revoke", `{"ID":"7"}`),
	post("/v3/lease/revoke", `{"ID":"7"}`),
	post("/v3/kv/lease/revoke", `{"ID":"7"}`),
	{method: "POST", path: "/v3/watch", body: `{"create_request":{"key":"YQ==","range_end":"eg==","start_revision":"REV+2","prev_kv":true}}`, lines: 1},
	{method: "POST", path: "/v3/watch", body: `{"create_request":{"key":"Yg==","range_end":"YQ=="}}`, lines: 1},
	{method: "POST", path: "/v3/watch", body: `{"create_request":{"key":"YQ==","start_revision":"-1"}}`, lines: 1},
	post("/v3/kv/compaction", `{"revision":"REV+4"}`),
	post("/v3/kv/compaction", `{"revision":"REV+4","physical":true}`),
	post("/v3/kv/compaction", `{"revision":"REV+999"}`),
	post("/v3/kv/range", `{"key":"YQ==","revision":"REV+2"}`),
	post("/v3/maintenance/hashkv", `{}`),
	post("/v3/maintenance/status", `{}`),
	post("/v3/maintenance/alarm", `{}`),
	post("/v3/maintenance/defragment", `{}`),
	post("/v3/cluster/member/list", `{}`),
	post("/v3/cluster/member/list", `{"linearizable":true}`),
	post("/v3/auth/status", `{}`),
	post("/v3/auth/authenticate", `{"name":"root","password":"x"}`),
	{method: "GET", path: "/v3/kv/range"},
	{method: "PUT", path: "/v3/kv/put", body: `{"key":"YQ=="}`},
	{method: "GET", path: "/v3/nothing"},
	post("/v3/nothing", `{}`),
	post("/v3/kv/put/", `{"key":"YQ=="}`),
	post("/v3//kv/put", `{"key":"YQ=="}`),
	post("/nothing", `{}`),
	{method: "GET", path: "/"},
	{method: "GET", path: "/version"},
	{method: "GET", path: "/health"},
	{method: "POST", path: "/health"},
	{method: "OPTIONS", path: "/v3/kv/put"},
	{method: "OPTIONS", path: "/nothing"},
	{method: "GET", path: "/livez"},
	{method: "GET", path: "/readyz?exclude=linearizable_read"},
	{method: "GET", path: "/readyz/nothing"},
	{method: "PUT", path: "/readyz"},
	{method: "POST", path: "/version"},
}

// TestGateway makes calls over HTTP and wants status, content type and body equal, byte for byte.
func TestGateway(t *testing.T) {
	if err := systems.begin(false); err != nil {
		t.Fatal(err)
	}
	for _, c := range gatewayCalls {
		systems.compareHTTP(t, c)
	}
}

// compareHTTP makes one call of both.
func (p *pair) compareHTTP(t *testing.T, c gatewayCall) {
	t.Helper()
	p.same(t, fmt.Sprintf("%s %s %.300s %v", c.method, c.path, c.body, c.header), func(s *target) (string, error) { return s.http(c) })
}

// same runs f for both, when all that was written before is everywhere, and wants the same text of both.
func (p *pair) same(t *testing.T, what string, f func(s *target) (string, error)) {
	t.Helper()
	var theirs, ours string
	_ = p.both(func(s *target) error {
		s.behind = true
		text, err := "", s.caughtUp()
		if err == nil {
			text, err = f(s)
		}
		if err != nil {
			text += "\nended: " + ownPort.ReplaceAllString(err.Error(), "127.0.0.1:1")
		}
		if s == p.etcd {
			theirs = text
		} else {
			ours = text
		}
		return nil
	})
	if theirs != ours {
		t.Errorf("%s\netcd: %.3000s\nTrivet: %.3000s", what, theirs, ours)
	}
	if strings.Contains(theirs, context.DeadlineExceeded.Error()) {
		t.Errorf("%s: neither comes to an end: %.300s", what, theirs)
	}
	if testing.Verbose() {
		t.Logf("%s: %.400s", what, theirs)
	}
}

// ownHeaders are those of an answer that say nothing, or depend on what differs by right; Vary is in docs/compat.md.
var ownHeaders = map[string]bool{"Date": true, "Content-Length": true, "Vary": true}

var scriptRevision = regexp.MustCompile(`REV\+[0-9]+`)

// revisions puts the system's revision for REV+n.
func (t *target) revisions(body string) string {
	return scriptRevision.ReplaceAllStringFunc(body, func(s string) string {
		i, err := strconv.ParseInt(s[len("REV+"):], 10, 64)
		if err != nil {
			return s
		}
		return fmt.Sprint(t.base - 1 + i)
	})
}

// ownToken is a simple token, whose first part is by chance and whose second an index.
var ownToken = regexp.MustCompile(`"token":"[A-Za-z]+\.[0-9]+"`)

func (t *target) http(c gatewayCall) (string, error) {
	within := patience
	if c.silent {
		within = silence
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, c.method, t.url(0)+c.path, strings.NewReader(t.revisions(c.body)))
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: t.transport(), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Timeout: time.Minute}
	for name, value := range c.header {
		if user, ok := strings.CutPrefix(value, "TOKEN:"); ok {
			value = t.tokens[user]
		} else if user, ok := strings.CutPrefix(value, "Bearer TOKEN:"); ok {
			value = "Bearer " + t.tokens[user]
		}
		req.Header.Set(name, value)
	}
	if c.host != "" {
		req.Host = c.host
	}
	r, err := client.Do(req)
	if c.silent && errors.Is(err, context.DeadlineExceeded) {
		return "silence", nil
	}
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	headers := ""
	for _, h := range slices.Sorted(maps.Keys(r.Header)) {
		switch {
		case ownHeaders[h], pairs != nil && strings.HasPrefix(h, "Grpc-Metadata-"): // docs/compat.md
		default:
			headers += fmt.Sprintf("%s=%q ", h, ownPort.ReplaceAllString(strings.Join(r.Header[h], "|"), "127.0.0.1:1"))
		}
	}
	text := fmt.Sprintf("%d %s\n", r.StatusCode, headers)
	if c.blind {
		return text, nil
	}
	if c.lines == 0 {
		all, err := io.ReadAll(r.Body)
		if c.sorted {
			lines := strings.Split(string(all), "\n")
			slices.Sort(lines)
			all = []byte(strings.Join(lines, "\n"))
		}
		return text + t.json(string(all)), err
	}
	var lines []string
	in := bufio.NewReader(r.Body)
	for range c.lines {
		line, err := in.ReadString('\n')
		lines = append(lines, t.json(line))
		if err == io.EOF {
			break
		}
		if err != nil {
			return text + strings.Join(lines, "\n"), err
		}
	}
	if c.sorted {
		slices.Sort(lines)
	}
	return text + strings.Join(lines, "\n"), nil
}
