package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// TestGracefulStop tells each member to stop in turn, the leader first: it ends with status 0, and writes through the
// others go on without an election timeout between, because a leader hands over before it goes.
func TestGracefulStop(t *testing.T) {
	const (
		electionTimeout = 40 * time.Second // so long that what took less was a hand-over, however slow the machine
		longestEnd      = 20 * time.Second
	)
	c := startCluster(t, 3, "--heartbeat-interval=1000", fmt.Sprintf("--election-timeout=%d", electionTimeout.Milliseconds()))
	for round := range 3 {
		leaving := c.leader()
		if round == 2 { // and once a follower
			leaving = c.others(leaving)[0]
		}
		gaps := startTrickle(t, c, leaving)
		time.Sleep(200 * time.Millisecond)
		began := time.Now()
		if status := leaving.p.stop(longestEnd); status != 0 {
			t.Fatalf("%s ended with status %d after SIGTERM:\n%s", leaving.name, status, tail(leaving.p.output(), 40))
		}
		ended := time.Since(began)
		time.Sleep(time.Second)
		gap, written := gaps()
		t.Logf("%s ended in %v; %d writes, the longest took %v", leaving.name, ended.Round(time.Millisecond), written, gap.Round(time.Millisecond))
		if gap >= electionTimeout {
			t.Errorf("writes stood still for %v when %s was told to stop: it did not hand over", gap, leaving.name)
		}
		c.start(leaving)
	}
	c.agree(10 * time.Second)
}

// startTrickle writes one key after the other through the members other than the one given. The function returned stops
// it and tells the longest time between two acknowledged writes, and how many there were.
func startTrickle(t *testing.T, c *cluster, not *member) func() (gap time.Duration, written int) {
	client := c.client(c.others(not)...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var longest time.Duration
	written := 0
	go func() {
		defer close(done)
		last := time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			once, cancel := context.WithTimeout(ctx, 5*time.Second)
			_, err := client.Put(once, fmt.Sprintf("trickle/%d", i%10), "x")
			cancel()
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				now := time.Now()
				longest = max(longest, now.Sub(last))
				last = now
				written++
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return func() (time.Duration, int) {
		cancel()
		<-done
		return longest, written
	}
}
