package gateway

import (
	"context"
	"net/http"
	"strings"
	"testing"
)

// The token of a websocket's client becomes the header that other clients send (E#19522, E#21929).
func TestTokenOfAWebsocket(t *testing.T) {
	for _, c := range []struct{ header, value, want string }{
		{"Sec-WebSocket-Protocol", "Bearer, abc.1", "Bearer abc.1"},
		{"Sec-WebSocket-Protocol", "Bearer,abc.1", "Bearer abc.1"},
		{"Cookie", "token=abc.1", "Bearer abc.1"},
		{"Authorization", "abc.1", "abc.1"},
		{"Grpc-Metadata-Token", "abc.1", ""},
	} {
		r, err := http.NewRequest(http.MethodGet, "http://x/v3/watch", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(c.header, c.value)
		r.Header.Set("Upgrade", "websocket")
		out := socketRequest(context.Background(), r, strings.NewReader(""))
		if got := out.Header.Get("Authorization"); got != c.want || out.Method != http.MethodPost || out.Header.Get("Upgrade") != "" {
			t.Errorf("%s: %s became %s %q", c.header, c.value, out.Method, out.Header)
		}
	}
}
