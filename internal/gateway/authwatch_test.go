package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// authOn switches authentication on, and returns root's client and a token of root's, fetched as JSON clients do.
func authOn(t *testing.T, m *member) (root *clientv3.Client, tok string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := dial(t, m.url)
	if _, err := c.UserAdd(ctx, "root", "pw"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UserGrantRole(ctx, "root", "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
	r, err := http.Post(m.url+"/v3/auth/authenticate", "application/json", strings.NewReader(`{"name":"root","password":"pw"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var out struct{ Token string }
	if err := json.NewDecoder(r.Body).Decode(&out); err != nil || out.Token == "" {
		t.Fatalf("no token: %v", err)
	}
	root, err = clientv3.New(clientv3.Config{Endpoints: []string{m.url}, Username: "root", Password: "pw", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root, out.Token
}

func put(t *testing.T, c *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := c.Put(ctx, "foo", "1"); err != nil {
		t.Fatal(err)
	}
}

// A watch over JSON goes by the token of its Authorization header, and is refused without one.
func TestE19522WatchOverJSONWithToken(t *testing.T) {
	m := start(t, nil)
	root, tok := authOn(t, m)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	watch := func(tok string) *bufio.Scanner {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url+"/v3/watch", strings.NewReader(`{"create_request":{"key":"Zm9v"}}`))
		if err != nil {
			t.Fatal(err)
		}
		if tok != "" {
			req.Header.Set("Authorization", tok)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return bufio.NewScanner(resp.Body)
	}
	line := func(s *bufio.Scanner, want string) {
		t.Helper()
		if !s.Scan() {
			t.Fatalf("the stream ended: %v", s.Err())
		}
		if !strings.Contains(s.Text(), want) {
			t.Fatalf("%s\nlacks %s", s.Text(), want)
		}
	}
	with := watch(tok)
	line(with, `"created":true`)
	put(t, root)
	line(with, `"events"`)
	line(watch(""), refusal)
}

const refusal = `"canceled":true`

// A watch over a websocket goes by the token behind Bearer among its subprotocols, or that of its Authorization header,
// and is refused without one.
func TestE21929WatchOverWebsocketWithToken(t *testing.T) {
	m := start(t, nil)
	root, tok := authOn(t, m)
	for _, h := range []http.Header{{"Sec-Websocket-Protocol": {"Bearer, " + tok}}, {"Authorization": {"Bearer " + tok}}} {
		c := socket(t, m, "/v3/watch", h)
		say(t, c, `{"create_request":{"key":"Zm9v"}}`)
		hear(t, c, `"created":true`)
		put(t, root)
		hear(t, c, `"events"`)
	}
	c := socket(t, m, "/v3/watch", nil)
	say(t, c, `{"create_request":{"key":"Zm9v"}}`)
	hear(t, c, refusal)
}
