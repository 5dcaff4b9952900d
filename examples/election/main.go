// Election shows leader election: of several candidates one leads, and when it resigns, dies or loses its lease,
// another takes over. The term printed with each leader grows from leader to leader, so it serves as a fencing token
// for what the leader does (see the example lock).
//
//	election --candidate a
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func main() {
	log.SetFlags(0)
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "client URLs of the cluster, separated by commas")
	candidate := flag.String("candidate", "a", "name of this candidate")
	election := flag.String("election", "election/scheduler", "prefix of the election's keys")
	ttl := flag.Int("ttl", 5, "seconds until a dead leader is replaced")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	client, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ","), DialTimeout: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for ctx.Err() == nil {
		if err := stand(ctx, client, *election, *candidate, *ttl); err != nil && ctx.Err() == nil {
			// The cluster may be without a leader itself for a moment: stand again.
			log.Println("trying again:", err)
			time.Sleep(200 * time.Millisecond)
		}
	}
	fmt.Println("bye", *candidate)
}

// stand campaigns once and leads until ctx ends or the lease is lost.
func stand(ctx context.Context, client *clientv3.Client, name, candidate string, ttl int) error {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(ttl))
	if err != nil {
		return err
	}
	defer session.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	election := concurrency.NewElection(session, name)

	go func() { // everybody learns who leads, and when that changes
		for leader := range election.Observe(ctx) {
			kv := leader.Kvs[0]
			fmt.Printf("%s sees leader %s term %d\n", candidate, kv.Value, kv.CreateRevision)
		}
	}()

	go func() { // a lease that runs out ends the campaign too
		select {
		case <-session.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := election.Campaign(ctx, candidate); err != nil {
		return err
	}
	fmt.Printf("%s leads term %d\n", candidate, election.Rev())
	lead(ctx)
	fmt.Printf("%s stops leading term %d\n", candidate, election.Rev())

	// When the program was told to end, the others need not wait for the lease to run out.
	bye, done := context.WithTimeout(context.Background(), time.Second)
	defer done()
	return election.Resign(bye)
}

// lead is where the leader's work goes: it must end when ctx ends.
func lead(ctx context.Context) { <-ctx.Done() }
