package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
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

// TestReadyMeansTheVersionIsKnown asks a new cluster's member as soon as its log says that it is ready, as scripts do.
func TestReadyMeansTheVersionIsKnown(t *testing.T) {
	c := newCluster(t, 1)
	m := c.members[0]
	m.start()
	m.p.expect(60*time.Second, 0, "ready to serve client requests")
	client := c.client(m)
	s, err := client.Status(t.Context(), m.clientURL)
	if err != nil {
		t.Fatal(err)
	}
	if s.StorageVersion == "" || s.Leader == 0 {
		t.Errorf("the member said that it is ready, and tells the version %q and the leader %x", s.StorageVersion, s.Leader)
	}
	_, err = client.Downgrade(t.Context(), clientv3.DowngradeValidate, "3.0")
	if want := "invalid downgrade target version"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a downgrade to 3.0: %v, not %s", err, want)
	}
}
