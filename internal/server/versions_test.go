package server

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
)

// TestOlderBinary: a member does not run with a binary that is older than what its cluster has agreed on, wherever it learns
// of that: in its data, from who lets it join, from its log. After a downgrade it does.
func TestOlderBinary(t *testing.T) {
	refused := func(t *testing.T, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "serves version 3.6.9 of the API, and the cluster has agreed on version 3.7.0") {
			t.Errorf("the older binary: %v", err)
		}
	}
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		binary := "3.7.3"
		c.change = func(o *Options) { o.APIVersion = binary }
		c.startAll()
		cluster := func(want string) {
			t.Helper()
			until(t, "the cluster's version "+want, func() bool {
				for _, m := range c.members {
					if v, _ := m.ClusterVersion(); v != want {
						return false
					}
				}
				return true
			})
		}
		cluster("3.7.0")

		// In its data.
		c.stop(0)
		binary = "3.6.9"
		_, err := Start(c.options(0))
		refused(t, err)

		// When it asks to be let in, before anything was changed for it.
		body, err := json.Marshal(JoinRequest{Name: "m9", PeerURLs: []string{"http://peer9"}, Version: binary})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := c.members[1].serveJoin(t.Context(), body)
		if err != nil {
			t.Fatal(err)
		}
		_, err = DecodeJoined(answer)
		refused(t, err)
		if n := len(c.members[1].Members()); n != 3 {
			t.Errorf("there are %d members", n)
		}

		// When somebody else has let it in.
		c.members = append(c.members, nil)
		c.disks = append(c.disks, newDisk())
		o := c.options(3)
		o.Join = func(context.Context) (Joined, error) { return c.members[1].joined(), nil }
		_, err = Start(o)
		refused(t, err)
		c.members = c.members[:3]

		// Once the cluster was taken back.
		binary = "3.7.3"
		c.start(0)
		if _, err := try(t, c.members[0], &command.Command{Downgrade: &command.Downgrade{Enabled: true, Target: "3.6.0"}}); err != nil {
			t.Fatal(err)
		}
		cluster("3.6.0")
		c.stop(0)
		binary = "3.6.9"
		older := c.start(0)
		put(t, older, "k", "v")

		// From its log: this one is told by hand, as leaders do not decide so while such a member is there.
		if _, err := try(t, c.members[1], &command.Command{ClusterVersion: &command.ClusterVersion{Version: "3.7.0"}}); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-older.Failed():
			refused(t, err)
		case <-time.After(time.Minute):
			t.Error("the older binary runs on")
		}
		c.stopAll()
	})
}
