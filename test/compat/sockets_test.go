package compat

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// socket opens a websocket to a path of a member's gateway.
func (t *target) socket(member int, path string, header http.Header) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{HandshakeTimeout: patience}
	if pairs != nil {
		d.TLSClientConfig = pairs.as(pairs.good)
	}
	c, r, err := d.Dial("ws"+strings.TrimPrefix(t.url(member), "http")+path, header)
	if err == nil {
		err = c.SetReadDeadline(time.Now().Add(patience))
	}
	return c, r, err
}

// talk is what a client says over a websocket and reads: each line that it says, and how many messages come before the
// next. The end of the connection is not compared (docs/compat.md).
type talk struct {
	name, path string
	header     http.Header
	say        []said
	ends       bool // the server ends the connection after that
}

type said struct {
	text    string
	answers int
	put     string // a key to put before the answers come
}

var talks = []talk{
	{name: "watch", path: "/v3/watch", say: []said{
		{`{"create_request":{"key":"YQ=="}}`, 1, ""}, {"", 1, "a"},
		{`{"create_request":{"key":"Yg==","watch_id":"5","prev_kv":true}}`, 1, ""}, {"", 1, "b"}, {"", 1, "b"},
		{`{"create_request":{"key":"Yg==","watch_id":"5"}}`, 1, ""},
		{`{"cancel_request":{"watch_id":"5"}}`, 1, ""}, {"", 0, "b"}, {"", 1, "a"},
		{`{"create_request":{"key":"YQ==","range_end":"AA==","start_revision":"REV+2"}}`, 2, ""},
	}},
	{name: "cut in two", path: "/v3/watch", say: []said{{`{"create_request":`, 0, ""}, {`{"key":"YQ=="}}`, 1, ""}}},
	{name: "two in one", path: "/v3/watch", say: []said{{`{"create_request":{"key":"YQ=="}}{"create_request":{"key":"Yg=="}}`, 2, ""}}},
	{name: "v3beta", path: "/v3beta/watch", say: []said{{`{"create_request":{"key":"YQ=="}}`, 1, ""}}},
	{name: "bad watch", path: "/v3/watch", say: []said{{`{"create_request":{"key":"Yg==","range_end":"YQ=="}}`, 1, ""}, {`{"create_request":{"key":"YQ==","start_revision":"-1"}}`, 1, ""}}},
	{name: "no union", path: "/v3/watch", say: []said{{`{}`, 0, ""}, {`{"create_request":{"key":"YQ=="}}`, 1, ""}}},
	{name: "unknown fields", path: "/v3/watch", say: []said{{`{"create_request":{"key":"YQ==","nonsense":1},"x":[]}`, 1, ""}}},
	{name: "bytes", path: "/v3/watch?x=y", say: []said{{`{"create_request":{"key":"YQ==","range_end":"AA=="}}`, 1, ""}, {"", 1, "é\"\\<>"}}},
	{name: "keepalive", path: "/v3/lease/keepalive", say: []said{{`{"ID":"7"}`, 1, ""}, {`{"ID":"8"}`, 1, ""}, {`{"ID":7}`, 1, ""}, {`{}`, 1, ""}}},
	{name: "no such path", path: "/v3/nothing", say: []said{{``, 1, ""}}, ends: true},
	{name: "other method", path: "/v3/nothing?method=DELETE", say: []said{{``, 1, ""}}, ends: true},
	{name: "token as subprotocol", path: "/v3/watch", header: http.Header{"Sec-Websocket-Protocol": {"Bearer, nonsense"}}, say: []said{{`{"create_request":{"key":"YQ=="}}`, 1, ""}}},
	{name: "token as cookie", path: "/v3/watch", header: http.Header{"Cookie": {"token=nonsense"}}, say: []said{{`{"create_request":{"key":"YQ=="}}`, 1, ""}}},
	{name: "another subprotocol", path: "/v3/watch", header: http.Header{"Sec-Websocket-Protocol": {"chat"}}, say: []said{{`{"create_request":{"key":"YQ=="}}`, 1, ""}}},
	{name: "another origin", path: "/v3/watch", header: http.Header{"Origin": {"http://elsewhere"}}, say: []said{{`{"create_request":{"key":"YQ=="}}`, 1, ""}}},
}

// TestWebsockets calls the streams of the gateway over websockets.
func TestWebsockets(t *testing.T) {
	for _, c := range talks {
		if err := systems.begin(false); err != nil {
			t.Fatal(err)
		}
		if err := systems.both(func(s *target) error { return s.grant(context.Background(), 7) }); err != nil {
			t.Fatal(err)
		}
		systems.same(t, c.name, func(s *target) (string, error) { return s.talk(c) })
	}
	for _, path := range []string{"/version", "/health", "/nothing", "/v3", "/metrics"} {
		systems.same(t, path, func(s *target) (string, error) {
			c, r, err := s.socket(0, path, nil)
			if err == nil {
				_ = c.Close()
				return "a websocket", nil
			}
			return fmt.Sprintf("%d %v", r.StatusCode, err), nil
		})
	}
}

func (t *target) talk(c talk) (string, error) {
	conn, r, err := t.socket(0, c.path, c.header)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	text := fmt.Sprintf("subprotocol %q\n", r.Header.Get("Sec-WebSocket-Protocol"))
	for _, s := range c.say {
		if s.text != "" {
			if err := conn.WriteMessage(websocket.TextMessage, []byte(t.revisions(s.text))); err != nil {
				return text, err
			}
		}
		if s.put != "" {
			if _, err := pb.NewKVClient(t.conns[0]).Put(context.Background(), &pb.PutRequest{Key: []byte(s.put), Value: []byte("v")}); err != nil {
				return text, err
			}
		}
		for range s.answers {
			kind, b, err := conn.ReadMessage()
			if err != nil {
				return text, err
			}
			text += fmt.Sprintf("%d %s\n", kind, t.json(string(b)))
		}
	}
	if c.ends {
		if _, b, err := conn.ReadMessage(); err == nil {
			text += "more: " + string(b)
		}
	}
	return text, nil
}

// TestStreamsOverHTTP sends several requests in the body of one call, good and bad ones, and reads how it ends.
func TestStreamsOverHTTP(t *testing.T) {
	if err := systems.begin(false); err != nil {
		t.Fatal(err)
	}
	if err := systems.both(func(s *target) error { return s.grant(context.Background(), 7) }); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		systems.compareHTTP(t, post("/v3/kv/put", `{"key":"YQ==","value":"MQ=="}`))
	}
	systems.compareHTTP(t, post("/v3/kv/compaction", `{"revision":"REV+3","physical":true}`))
	first, now := `{"create_request":{"key":"YQ==","start_revision":"REV+4"}}`, `{"create_request":{"key":"YQ=="}}`
	for _, c := range []gatewayCall{
		{path: "/v3/watch", body: first, lines: 2},
		{path: "/v3/watch", body: `{"create_request":{"key":"YQ==","start_revision":"REV+2"}}`, lines: 2}, // compacted
		{path: "/v3/watch", body: `{"create_request":{"key":"YQ==","start_revision":"REV+99"}}`, lines: 1},
		{path: "/v3/watch", body: now + now, lines: 2},
		{path: "/v3/watch", body: now + "\n" + `{"cancel_request":{"watch_id":"0"}}`, lines: 2},
		{path: "/v3/watch", body: `{"cancel_request":{"watch_id":"9"}}` + first, lines: 2},
		{path: "/v3/watch", body: `{"progress_request":{}}` + first, lines: 2},
		{path: "/v3/watch", body: now + `{"progress_request":{}}`, lines: 2, sorted: true},
		{path: "/v3/watch", body: `{"create_request":{"key":"YQ==","start_revision":"REV+4","filters":["NOPUT"]}}` + now, lines: 2},
		{path: "/v3/watch", body: `{"create_request":{"key":"YQ==","filters":["NOTHING"]}}`, lines: 1},
		{path: "/v3/watch", body: `{"create_request":{"key":"YQ==","start_revision":"x"}}`, silent: true},
		{path: "/v3/watch", body: `{"create_request":`, silent: true},
		{path: "/v3/watch", body: `nonsense`, silent: true},
		{path: "/v3/watch", body: `[]`, silent: true},
		{path: "/v3/watch", body: `{"create_request":{"key":"YQ==","watch_id":"3"}}{"create_request":{"key":"YQ==","watch_id":"3"}}`, lines: 2},
		{path: "/v3/watch", body: `{"create_request":{"key":"YQ=="},"cancel_request":{"watch_id":"1"}}`, silent: true},
		{path: "/v3/lease/keepalive", body: `{"ID":"7"}`},
		{path: "/v3/lease/keepalive", body: `{"ID":"7"}{"ID":"7"}` + "\n" + `{"ID":"8"}`},
		{path: "/v3/lease/keepalive", body: `{"ID":"7"}nonsense`},
		{path: "/v3/lease/keepalive", body: `{"ID":"x"}`},
		{path: "/v3/lease/keepalive", body: ``},
		{path: "/v3/lease/keepalive", body: `{}`},
		{path: "/v3/kv/range/stream", body: `{"key":"YQ=="}`},
		{path: "/v3/kv/rangestream", body: `{"key":"YQ=="}`},
		{path: "/v3/election/observe", body: `nonsense`},
		{path: "/v3/maintenance/snapshot", body: `nonsense`},
	} {
		c.method = "POST"
		systems.compareHTTP(t, c)
	}
}

// TestSnapshotOverHTTP puts the pieces of a snapshot together.
func TestSnapshotOverHTTP(t *testing.T) {
	if err := systems.begin(false); err != nil {
		t.Fatal(err)
	}
	systems.compareHTTP(t, post("/v3/kv/put", `{"key":"YQ==","value":"MQ=="}`))
	systems.same(t, "snapshot", func(s *target) (string, error) {
		client := http.Client{Transport: s.transport(), Timeout: time.Minute}
		r, err := client.Post(s.url(1)+"/v3/maintenance/snapshot", "application/json", strings.NewReader("{}"))
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		var whole []byte
		var left, version string
		for lines := bufio.NewReader(r.Body); ; {
			line, err := lines.ReadBytes('\n')
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return "", err
			}
			var piece struct {
				Result struct {
					Blob      string `json:"blob"`
					Remaining string `json:"remaining_bytes"`
					Version   string `json:"version"`
				} `json:"result"`
			}
			if err := json.Unmarshal(line, &piece); err != nil {
				return "", err
			}
			b, err := base64.StdEncoding.DecodeString(piece.Result.Blob)
			if err != nil {
				return "", err
			}
			whole, left, version = append(whole, b...), piece.Result.Remaining, piece.Result.Version
		}
		if len(whole) < sha256.Size {
			return "", io.ErrUnexpectedEOF
		}
		sum := sha256.Sum256(whole[:len(whole)-sha256.Size])
		return fmt.Sprintf("%d %s, hash right: %v, left %q, version %q", r.StatusCode, r.Header.Get("Content-Type"),
			string(sum[:]) == string(whole[len(whole)-sha256.Size:]), left, version), nil
	})
}

// TestUsersOverHTTP brings tokens in every header that may hold one, over HTTP and over websockets.
func TestUsersOverHTTP(t *testing.T) {
	systems.guarded(t, func(step func(op) error) error {
		ops, err := parseScript(`
m1 Auth.UserAdd name:"root" password:"pw"
m1 Auth.UserGrantRole user:"root" role:"root"
m1 Auth.UserAdd name:"alice" password:"pw"
m1 Auth.RoleAdd name:"r"
m1 Auth.RoleGrantPermission name:"r" perm:{permType:READWRITE key:"a" range_end:"c"}
m1 Auth.UserGrantRole user:"alice" role:"r"
m1 Auth.AuthEnable
m1 Auth.Authenticate name:"root" password:"pw"
m1 Auth.Authenticate name:"alice" password:"pw"
`)
		if err != nil {
			return err
		}
		if err := stepwise(t, ops, pairs == nil, step); err != nil {
			return err
		}
		calls := []gatewayCall{
			post("/v3/auth/authenticate", `{"name":"alice","password":"pw"}`), post("/v3/auth/authenticate", `{"name":"alice","password":"x"}`),
			post("/v3/auth/authenticate", `{"name":"nobody","password":"x"}`), post("/v3/auth/authenticate", `{}`),
			post("/v3/auth/status", `{}`), post("/v3/cluster/member/list", `{}`), post("/v3/maintenance/status", `{}`),
			get("/health"), get("/readyz"), get("/version"), blind("/metrics"),
		}
		for _, header := range []map[string]string{
			nil, {"Authorization": "TOKEN:alice"}, {"Authorization": "Bearer TOKEN:alice"}, {"authorization": "Bearer TOKEN:alice"},
			{"Authorization": "Bearer nonsense"}, {"Authorization": "Basic YWxpY2U6cHc="}, {"Authorization": ""},
			{"Grpc-Metadata-Token": "TOKEN:alice"}, {"Grpc-Metadata-Authorization": "Bearer TOKEN:alice"}, {"Token": "TOKEN:alice"},
			{"Authorization": "TOKEN:root"}, {"Authorization": "TOKEN:alice", "Grpc-Metadata-Token": "TOKEN:root"},
		} {
			for _, c := range []gatewayCall{
				post("/v3/kv/put", `{"key":"YQ==","value":"MQ=="}`), post("/v3/kv/range", `{"key":"YQ=="}`), post("/v3/kv/range", `{"key":"eA=="}`),
				post("/v3/kv/txn", `{"success":[{"request_put":{"key":"Yg=="}},{"request_range":{"key":"eA=="}}]}`), post("/v3/auth/user/list", `{}`),
				post("/v3/lock/lock", `{"name":"YQ==","lease":"9"}`), {method: "POST", path: "/v3/watch", body: `{"create_request":{"key":"YQ=="}}`, lines: 1},
				{method: "POST", path: "/v3/watch", body: `{"create_request":{"key":"eA=="}}`, lines: 1}, post("/v3/lease/keepalive", `{"ID":"7"}`),
			} {
				c.header = header
				calls = append(calls, c)
			}
		}
		for _, c := range calls {
			systems.compareHTTP(t, c)
		}
		if pairs != nil {
			return nil // a certificate with a name is refused at the gateway, which was seen above
		}
		for _, header := range []string{"Sec-Websocket-Protocol", "Cookie", ""} {
			for _, key := range []string{"YQ==", "eA=="} {
				systems.same(t, header+" of a websocket", func(s *target) (string, error) {
					h := http.Header{}
					switch header {
					case "Cookie":
						h.Set(header, "token="+s.tokens["alice"])
					case "Sec-Websocket-Protocol":
						h.Set(header, "Bearer, "+s.tokens["alice"])
					}
					return s.talk(talk{path: "/v3/watch", header: h, say: []said{{`{"create_request":{"key":"` + key + `"}}`, 1, ""}}})
				})
			}
		}
		return nil
	})
}
