// Discovery shows service discovery: an instance registers its address under a lease that it keeps alive, so its entry
// vanishes when it dies; a client lists the instances once and then watches them come and go.
//
//	discovery --service web --id web-1 --register 10.0.0.1:80    registers until it is interrupted
//	discovery --service web                                      prints who is there, and every change
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"sort"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func main() {
	log.SetFlags(0)
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "client URLs of the cluster, separated by commas")
	service := flag.String("service", "web", "name of the service")
	id := flag.String("id", "1", "name of this instance, with --register")
	address := flag.String("register", "", "register this address; without it, watch the service")
	ttl := flag.Int64("ttl", 5, "seconds until the entry of a dead instance vanishes")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	client, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ","), DialTimeout: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	if *address != "" {
		err = register(ctx, client, *service, *id, *address, *ttl)
	} else {
		err = watch(ctx, client, *service, func(sign, id, address string) { fmt.Println(sign, id, address) })
	}
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

func prefix(service string) string { return "services/" + service + "/" }

// register keeps the instance's entry in the store until ctx ends, and then takes it out at once.
func register(ctx context.Context, client *clientv3.Client, service, id, address string, ttl int64) error {
	for {
		lease, err := client.Grant(ctx, ttl)
		if err != nil {
			return err
		}
		if _, err := client.Put(ctx, prefix(service)+id, address, clientv3.WithLease(lease.ID)); err != nil {
			return err
		}
		alive, err := client.KeepAlive(ctx, lease.ID)
		if err != nil {
			return err
		}
		fmt.Println("registered", id, address)
		for range alive { // one answer per renewal, every third of the TTL
		}
		if ctx.Err() != nil {
			// ctx has ended, but a tidy goodbye is worth another second.
			bye, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := client.Revoke(bye, lease.ID)
			fmt.Println("left", id)
			return err
		}
		// The cluster could not be reached for a whole TTL and the lease is gone: start over with a new one.
		fmt.Println("lease lost", id)
	}
}

// watch calls seen with "+" for each instance that is there or comes (or changes its address) and "-" for each that
// goes, until ctx ends.
func watch(ctx context.Context, client *clientv3.Client, service string, seen func(sign, id, address string)) error {
	known := map[string]string{}
	for {
		list, err := client.Get(ctx, prefix(service), clientv3.WithPrefix())
		if err != nil {
			return err
		}
		now := map[string]string{}
		for _, kv := range list.Kvs {
			now[strings.TrimPrefix(string(kv.Key), prefix(service))] = string(kv.Value)
		}
		compare(known, now, seen)
		known = now
		// The watch begins right behind the list, so nothing between the two is missed.
		err = follow(ctx, client, service, list.Header.Revision+1, known, seen)
		if err != rpctypes.ErrCompacted {
			return err
		}
		// The watcher was away so long that the changes it missed are forgotten: list again.
	}
}

func follow(ctx context.Context, client *clientv3.Client, service string, revision int64, known map[string]string, seen func(sign, id, address string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for answer := range client.Watch(ctx, prefix(service), clientv3.WithPrefix(), clientv3.WithRev(revision)) {
		if err := answer.Err(); err != nil {
			return err
		}
		for _, event := range answer.Events {
			id := strings.TrimPrefix(string(event.Kv.Key), prefix(service))
			if event.Type == clientv3.EventTypeDelete {
				seen("-", id, known[id])
				delete(known, id)
			} else {
				seen("+", id, string(event.Kv.Value))
				known[id] = string(event.Kv.Value)
			}
		}
	}
	return ctx.Err()
}

// compare tells what changed between two lists of instances, in order of their names.
func compare(before, now map[string]string, seen func(sign, id, address string)) {
	var ids []string
	for id := range before {
		if _, still := now[id]; !still {
			ids = append(ids, id)
		}
	}
	for id, address := range now {
		if before[id] != address {
			ids = append(ids, id)
		}
	}
	sort.Strings(ids)
	for _, id := range ids {
		if address, there := now[id]; there {
			seen("+", id, address)
		} else {
			seen("-", id, before[id])
		}
	}
}
