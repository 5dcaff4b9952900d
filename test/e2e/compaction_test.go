package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestCompactsByItself: with a period of a second old revisions are refused as compacted soon after, again and again, and
// also after the leader was killed; the present stays readable on all members alike.
func TestCompactsByItself(t *testing.T) {
	c := startCluster(t, 3, "--auto-compaction-retention=1s", "--auto-compaction-mode=periodic")
	compactsOnce := func(of *member, round int) {
		t.Helper()
		client := c.client(of)
		var first int64
		for i := range 20 {
			r, err := client.Put(t.Context(), "k", fmt.Sprintf("%d.%d", round, i))
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = r.Header.Revision
			}
		}
		for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			_, err := client.Get(t.Context(), "k", clientv3.WithRev(first))
			if errors.Is(err, rpctypes.ErrCompacted) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if time.Since(begun) > time.Minute {
				t.Fatalf("round %d: revision %d is still readable after a minute", round, first)
			}
		}
		if r, err := client.Get(t.Context(), "k"); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != fmt.Sprintf("%d.19", round) {
			t.Fatalf("round %d: the present is %v, %v", round, r, err)
		}
	}
	dead := c.leader()
	up := c.others(dead)
	for round := range 4 {
		compactsOnce(up[round%2], round)
		if round == 1 {
			c.kill(dead)
		}
	}
	c.start(dead)
	c.agree(30 * time.Second)
}
