package gateway_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/trivet-kv/trivet/internal/gateway"
)

func socket(t *testing.T, m *member, path string, h http.Header) *websocket.Conn {
	t.Helper()
	c, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(m.url, "http")+path, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if want := strings.HasPrefix(h.Get("Sec-WebSocket-Protocol"), "Bearer"); want != (resp.Header.Get("Sec-WebSocket-Protocol") == "Bearer") {
		t.Errorf("subprotocol %q", resp.Header.Get("Sec-WebSocket-Protocol"))
	}
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func say(t *testing.T, c *websocket.Conn, text string) {
	t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// hear reads one message and wants each of the texts in it.
func hear(t *testing.T, c *websocket.Conn, want ...string) {
	t.Helper()
	kind, b, err := c.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	if kind != websocket.TextMessage || !json.Valid(b) {
		t.Fatalf("message of kind %d: %s", kind, b)
	}
	for _, w := range want {
		if !strings.Contains(strings.ReplaceAll(string(b), `": `, `":`), w) {
			t.Errorf("%s\nlacks %s", b, w)
		}
	}
}

// Watches over a websocket, with two watchers on one stream and a cancel; the client's end is the stream's.
func TestWatchOverWebsocket(t *testing.T) {
	m := start(t, nil)
	c := socket(t, m, "/v3/watch", nil)
	say(t, c, `{"create_request":{"key":"Zm9v"}}`)
	hear(t, c, `"created":true`)
	say(t, c, `{"create_request":`)
	say(t, c, `{"key":"YmFy","watch_id":7}}`) // a value over two messages
	hear(t, c, `"watch_id":"7"`, `"created":true`)
	for _, key := range []string{"foo", "bar"} {
		if _, err := dial(t, m.url).Put(context.Background(), key, "1"); err != nil {
			t.Fatal(err)
		}
		hear(t, c, `"events"`)
	}
	say(t, c, `{"cancel_request":{"watch_id":"7"}}`)
	hear(t, c, `"canceled":true`, `"watch_id":"7"`)
	if n := m.Hub().Stats().Streams; n != 1 {
		t.Fatalf("%d streams", n)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	wait(t, func() bool { return m.Hub().Stats().Streams == 0 })
}

// Streams are what websockets are for: a call with one answer waits for the end of its body, as in etcd. Errors come as
// one message, and then the end.
func TestErrorOverWebsocket(t *testing.T) {
	m := start(t, nil)
	c := socket(t, m, "/v3beta/nothing?method=DELETE", nil)
	hear(t, c, `"code":5`)
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("ended with %v", err)
	}
}

// A body that does not decode keeps its stream, which ends with its client, however that goes.
func TestWebsocketEndsWithItsClient(t *testing.T) {
	m := start(t, nil)
	for _, body := range []string{"garbage", `{"create_request":{"key":7}}`, `{"create_request":{"key":"YQ=="}}`} {
		c := socket(t, m, "/v3/watch", nil)
		say(t, c, body)
		wait(t, func() bool { return m.Hub().Stats().Streams == 1 })
		if err := c.NetConn().Close(); err != nil {
			t.Fatal(err)
		}
		wait(t, func() bool { return m.Hub().Stats().Streams == 0 })
	}
}

// A websocket ends with the member's stop.
func TestWebsocketEndsWithTheServices(t *testing.T) {
	m := start(t, nil)
	c := socket(t, m, "/v3/watch", nil)
	say(t, c, `{"create_request":{"key":"Zm9v"}}`)
	hear(t, c, `"created":true`)
	m.services.Stop()
	hear(t, c, `"message":"etcdserver: server stopped"`)
	if _, _, err := c.ReadMessage(); err == nil {
		t.Error("the connection lives on")
	}
}

func TestOriginsAndHosts(t *testing.T) {
	m := start(t, func(o *gateway.Options) {
		o.CORS = []string{"http://good.example:80"}
		o.HostWhitelist = []string{"good.example"}
	})
	for _, c := range []struct {
		method, host, origin string
		status               int
		allowed              string
	}{
		{"GET", "good.example:1", "http://good.example:80", 200, "http://good.example:80"},
		{"OPTIONS", "good.example", "http://good.example:80", 200, "http://good.example:80"},
		{"GET", "good.example", "http://bad.example:80", 200, ""},
		{"GET", "good.example", "", 200, ""},
		{"GET", "bad.example", "http://good.example:80", 421, ""},
		{"OPTIONS", "bad.example:1", "", 421, ""},
		{"GET", "", "", 421, ""},
	} {
		req, err := http.NewRequest(c.method, m.url+"/version", nil)
		if err != nil {
			t.Fatal(err)
		}
		if req.Host = c.host; c.host == "" {
			req.Host = "good.example::"
		}
		if c.origin != "" {
			req.Header.Set("Origin", c.origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != c.status || resp.Header.Get("Access-Control-Allow-Origin") != c.allowed {
			t.Errorf("%+v: %d %q", c, resp.StatusCode, resp.Header.Get("Access-Control-Allow-Origin"))
		}
	}
}
