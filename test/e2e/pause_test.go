package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
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

// TestPausedUnderLoad stops a member's process under load again and again, the leader and a follower in turn, each time with a write
// on the way to its disk that ends only a moment after the process goes on. No call, before it or after, is refused because a disk
// did not answer, and nothing that was acknowledged is lost.
func TestPausedUnderLoad(t *testing.T) {
	c := newCluster(t, 3, "--slow-disk-threshold", "700ms") // calls are refused after four times that
	faults := map[*member]string{}
	for _, m := range c.members {
		faults[m] = m.startFaulty()
	}
	for _, m := range c.members {
		m.ready(30 * time.Second)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var calls sync.WaitGroup
	var done atomic.Int64
	const writers = 3 // at each member
	acked := make([]map[string]int, writers*len(c.members))
	for m, member := range c.members {
		kvs := pb.NewKVClient(c.client(member).ActiveConnection()) // the client itself would ask again
		for w := range writers {
			calls.Go(func() {
				id := m*writers + w
				acked[id] = putAndGet(ctx, t, kvs, fmt.Sprint("paused/", id), &done)
			})
		}
	}
	defer calls.Wait()
	defer stop()
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		goesOn(t, &done)
		victim := c.leader()
		if round%2 == 1 {
			victim = c.others(victim)[0]
		}
		fault(t, faults[victim], "hang", true)
		time.Sleep(20 * time.Millisecond) // a write has begun, else the round shows nothing
		victim.p.pause()
		time.Sleep(3 * time.Second)
		victim.p.resume()
		time.Sleep(200 * time.Millisecond) // it looks at its disk, which has not answered yet
		fault(t, faults[victim], "hang", false)
	}
	goesOn(t, &done)
	stop()
	calls.Wait()
	c.agree(20 * time.Second)
	end, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client := c.client(c.members...)
	for _, keys := range acked {
		for key, n := range keys {
			got, err := client.Get(end, key)
			if err != nil {
				t.Fatal(err)
			}
			// The last put of a key may have come about without an answer.
			if len(got.Kvs) != 1 || number(t, string(got.Kvs[0].Value)) < int64(n) {
				t.Errorf("%s is %v, and %d was acknowledged", key, got.Kvs, n)
			}
		}
	}
}

// TestLeasesOverAPause stops all members for longer than a lease lives, whose holder goes on sending. He keeps it; one that nobody
// renews ends.
func TestLeasesOverAPause(t *testing.T) {
	for _, members := range []int{1, 3} {
		t.Run(strconv.Itoa(members), func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, members)
			ctx, stop := context.WithTimeout(context.Background(), time.Minute)
			defer stop()
			client := c.client(c.members...)
			kept, err := client.Grant(ctx, 5)
			if err != nil {
				t.Fatal(err)
			}
			left, err := client.Grant(ctx, 5)
			if err != nil {
				t.Fatal(err)
			}
			// The client's own KeepAlive gives a lease up that was not answered for its time.
			stream, err := pb.NewLeaseClient(client.ActiveConnection()).LeaseKeepAlive(ctx)
			if err != nil {
				t.Fatal(err)
			}
			const most = 64
			for i := range most {
				if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(kept.ID)}); err != nil {
					t.Fatal(err)
				}
				answered := make(chan struct{})
				go func() {
					defer close(answered)
					got, err := stream.Recv()
					if err == nil && got.TTL != 5 {
						err = fmt.Errorf("its time is %d s", got.TTL)
					}
					if err != nil && ctx.Err() == nil {
						t.Errorf("renewal %d: %v", i, err)
					}
				}()
				if i == 2 {
					// The next is sent while nobody runs.
					<-answered
					for _, m := range c.members {
						m.p.pause()
					}
					time.Sleep(100 * time.Millisecond)
					continue
				}
				if i == 3 {
					time.Sleep(7 * time.Second)
					for _, m := range c.members {
						m.p.resume()
					}
				}
				<-answered
				if t.Failed() {
					return
				}
				if i > 3 {
					if ttl, err := client.TimeToLive(ctx, left.ID); err == nil && ttl.TTL < 0 {
						return
					}
				}
				time.Sleep(500 * time.Millisecond)
			}
			t.Error("a lease that nobody renews does not end")
		})
	}
}

// goesOn waits until a good number of calls has been answered.
func goesOn(t *testing.T, done *atomic.Int64) {
	t.Helper()
	from := done.Load()
	for end := time.Now().Add(30 * time.Second); done.Load() < from+200; time.Sleep(10 * time.Millisecond) {
		if t.Failed() || time.Now().After(end) {
			t.Fatalf("%d calls were answered, then %d in 30 s", from, done.Load()-from)
		}
	}
}

// putAndGet counts a key up and reads it back, until ctx ends, and returns the last number that was acknowledged of each key. After a put of
// which nobody knows what became it turns to another key: it may come about later.
func putAndGet(ctx context.Context, t *testing.T, kvs pb.KVClient, prefix string, done *atomic.Int64) map[string]int {
	acked := map[string]int{}
	failed := func(what string, err error) bool {
		switch {
		case err == nil:
			done.Add(1)
		case strings.Contains(err.Error(), "disk"):
			t.Errorf("a %s was refused: %v", what, err)
		case ctx.Err() == nil:
			time.Sleep(10 * time.Millisecond) // no leader, or a timeout
		}
		return err != nil
	}
	key := prefix
	for n := 1; ctx.Err() == nil; n++ {
		once, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := kvs.Put(once, &pb.PutRequest{Key: []byte(key), Value: strconv.AppendInt(nil, int64(n), 10)})
		if failed("put", err) {
			key = fmt.Sprint(prefix, " from ", n+1)
		} else {
			acked[key] = n
		}
		if last := acked[key]; last > 0 {
			got, err := kvs.Range(once, &pb.RangeRequest{Key: []byte(key)})
			if !failed("get", err) && (len(got.Kvs) != 1 || string(got.Kvs[0].Value) != strconv.Itoa(last)) {
				t.Errorf("%s is read as %v after %d was acknowledged", key, got.Kvs, last)
			}
		}
		cancel()
	}
	return acked
}
