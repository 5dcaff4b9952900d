package e2e

import (
	"context"
	"strconv"
	"testing"
	"time"
)

// TestPausedLeader stops the leader's process for longer than an election takes, writes through the others, and lets it
// go on with a linearizable read waiting for it: the read must show what was written meanwhile, whatever the member
// believed when it was stopped.
func TestPausedLeader(t *testing.T) {
	c := startCluster(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	for round := range rounds {
		leader := c.leader()
		old := c.client(leader)
		if _, err := old.Put(ctx, "x", "before "+strconv.Itoa(round)); err != nil { // the connection is up
			t.Fatal(err)
		}
		leader.p.pause()
		paused := time.Now()
		others := c.client(c.others(leader)...)
		want := "written while the leader slept, round " + strconv.Itoa(round)
		for {
			once, cancel := context.WithTimeout(ctx, 2*time.Second)
			_, err := others.Put(once, "x", want)
			cancel()
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
		t.Logf("another leader took the write %v after the pause", time.Since(paused).Round(time.Millisecond))

		read := make(chan string, 1)
		go func() {
			got, err := old.Get(ctx, "x")
			if err != nil {
				read <- err.Error()
				return
			}
			read <- string(got.Kvs[0].Value)
		}()
		time.Sleep(50 * time.Millisecond) // the request waits in the socket
		leader.p.resume()
		if got := <-read; got != want {
			t.Fatalf("the member that was paused answered a linearizable read with %q, want %q", got, want)
		}
	}
	c.agree(10 * time.Second)
}
