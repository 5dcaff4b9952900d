package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestLogIsJSON has a client do what libraries like to complain about: every line of the log is still one JSON object.
func TestLogIsJSON(t *testing.T) {
	c := startCluster(t, 1)
	m := c.members[0]
	// As in etcd a stream that does not decode is not answered: the client gives up.
	client := &http.Client{Timeout: 2 * time.Second}
	for _, path := range []string{"/v3/watch", "/v3/lease/keepalive"} {
		if answer, err := client.Post(m.clientURL+path, "application/json", strings.NewReader("garbage")); err == nil {
			answer.Body.Close()
		}
	}
	if status := m.p.stop(30 * time.Second); status != 0 {
		t.Errorf("the member ended with status %d", status)
	}
	for _, line := range m.p.output() {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
}
