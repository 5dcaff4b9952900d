package e2e

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestRollingRestart stops the members one after the other with SIGTERM and starts each again, while clients that know all
// of them put, compare and put, read, watch and keep leases alive. No call fails, nothing is lost or done twice, and the
// watchers see every revision once. The clients make each call once; what they do beyond that is etcd's client's own: it
// tries reads again that found a member gone, and writes only that cannot have been sent. The same holds for clients of the JSON
// gateway, which keep their connections.
//
// The first three stops meet the leader. TRIVET_E2E_CLIENTS sets how many clients there are, each with connections of its own.
func TestRollingRestart(t *testing.T) {
	clients, rounds := 2, 6
	if testing.Short() {
		rounds = 3
	}
	if n, err := strconv.Atoi(os.Getenv("TRIVET_E2E_CLIENTS")); err == nil {
		clients = n
	}
	c := startCluster(t, 3)
	s := startSteady(t, c, clients)
	for _, m := range c.members {
		s.meets(m)
	}
	for round := range rounds {
		m := c.members[round%3]
		if round < 3 {
			m = c.leader()
		}
		s.note("%s stops", m.name)
		m.p.signal(syscall.SIGTERM)
		if status := m.p.wait(30 * time.Second); status != 0 {
			t.Errorf("%s ended with status %d after SIGTERM:\n%s", m.name, status, tail(m.p.output(), 40))
		}
		s.note("%s has ended", m.name)
		c.start(m)
		s.note("%s is ready", m.name)
		// gRPC waits a second and longer before it dials again an address that refused. A client that has not come back to this
		// member would have nobody left if both others went meanwhile.
		s.meets(m)
	}
	s.end()
	t.Log(fmt.Sprintf("%d restarts; ", rounds) + s.summary())
	s.failures()
	s.verifyAll()
	revision := c.agree(30 * time.Second)
	s.reached(revision, 60*time.Second)
}
