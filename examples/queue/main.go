// Queue shows a message queue with at-least-once delivery. Each message is a key; the revision that created it is its
// place in the queue. A worker claims a message by creating a second key that is bound to its lease, handles the
// message, and then deletes both keys in one transaction. The claim of a worker that dies vanishes with its lease, and
// the message goes to another worker: so a message can be handled twice, but never lost.
//
//	queue --send "hello"      puts one message into the queue
//	queue --worker a          handles messages until it is interrupted
//	queue --worker a --drain  handles messages until none is left
package main

import (
	"context"
	"errors"
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
	name := flag.String("queue", "jobs", "name of the queue")
	text := flag.String("send", "", "send this message")
	worker := flag.String("worker", "a", "name of this worker")
	drain := flag.Bool("drain", false, "end when the queue is empty")
	takes := flag.Duration("takes", 0, "how long handling a message takes")
	ttl := flag.Int("ttl", 5, "seconds until the messages of a dead worker go to others")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	client, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ","), DialTimeout: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	q := queue{client: client, name: *name}
	if *text != "" {
		if err = q.send(ctx, *text); err == nil {
			fmt.Println("sent", *text)
		}
	} else {
		err = q.work(ctx, *worker, *ttl, *drain, func(text string) error {
			fmt.Println("begin", *worker, text)
			select {
			case <-time.After(*takes):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

type queue struct {
	client *clientv3.Client
	name   string
}

func (q queue) messages() string { return "queue/" + q.name + "/message/" }
func (q queue) claim(message string) string {
	return "queue/" + q.name + "/claim/" + strings.TrimPrefix(message, q.messages())
}

// send returns when the message is safe in the cluster.
func (q queue) send(ctx context.Context, text string) error {
	for {
		// The clock only makes a name that is probably free; the transaction makes sure that it is.
		key := fmt.Sprintf("%s%d", q.messages(), time.Now().UnixNano())
		answer, err := q.client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, text)).
			Commit()
		if err != nil || answer.Succeeded {
			return err
		}
	}
}

var errLeaseLost = errors.New("the lease was lost: the cluster could not be reached for too long")

// work handles messages, oldest first, until ctx ends or, with drain, until there is none left.
func (q queue) work(ctx context.Context, worker string, ttl int, drain bool, handle func(text string) error) error {
	session, err := concurrency.NewSession(q.client, concurrency.WithTTL(ttl))
	if err != nil {
		return err
	}
	defer session.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		list, err := q.client.Get(ctx, q.messages(), clientv3.WithPrefix(),
			clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend), clientv3.WithLimit(100))
		if err != nil {
			return err
		}
		handled := 0
		for _, message := range list.Kvs {
			key := string(message.Key)
			mine, err := q.take(ctx, key, worker, session.Lease())
			if err != nil {
				return err
			}
			if !mine {
				continue
			}
			handled++
			if err := handle(string(message.Value)); err != nil {
				return err
			}
			kept, err := q.finish(ctx, key, session.Lease())
			if err != nil {
				return err
			}
			if kept {
				fmt.Println("done", worker, string(message.Value))
			} else {
				fmt.Println("late", worker, string(message.Value)) // somebody else has it again
			}
		}
		if handled > 0 {
			continue
		}
		if drain && len(list.Kvs) == 0 {
			return nil
		}
		if err := q.wait(ctx, session, list.Header.Revision+1); err != nil {
			return err
		}
	}
}

// take claims the message for the worker, unless somebody else has claimed or finished it.
func (q queue) take(ctx context.Context, key, worker string, lease clientv3.LeaseID) (bool, error) {
	answer, err := q.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), ">", 0),
			clientv3.Compare(clientv3.CreateRevision(q.claim(key)), "=", 0)).
		Then(clientv3.OpPut(q.claim(key), worker, clientv3.WithLease(lease))).
		Commit()
	return err == nil && answer.Succeeded, err
}

// finish takes the message out of the queue, if the claim on it is still the one made under this lease.
func (q queue) finish(ctx context.Context, key string, lease clientv3.LeaseID) (bool, error) {
	answer, err := q.client.Txn(ctx).
		If(clientv3.Compare(clientv3.LeaseValue(q.claim(key)), "=", lease)).
		Then(clientv3.OpDelete(key), clientv3.OpDelete(q.claim(key))).
		Commit()
	return err == nil && answer.Succeeded, err
}

// wait returns when, from the revision on, a message came or a claim went: then it is worth looking again.
func (q queue) wait(ctx context.Context, session *concurrency.Session, revision int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := q.client.Watch(ctx, "queue/"+q.name+"/", clientv3.WithPrefix(), clientv3.WithRev(revision))
	for {
		select {
		case <-session.Done():
			return errLeaseLost
		case answer, open := <-changes:
			if !open {
				return ctx.Err()
			}
			if answer.Err() != nil {
				return nil // compacted or cancelled: look again, and watch from there
			}
			for _, event := range answer.Events {
				isMessage := strings.HasPrefix(string(event.Kv.Key), q.messages())
				if isMessage == (event.Type == clientv3.EventTypePut) {
					return nil
				}
			}
		}
	}
}
