// Lock shows a distributed lock with fencing tokens. A lock bound to a lease keeps workers apart only as long as its
// holder notices in time that the lease has run out; a holder that was paused (a long garbage collection, a stopped
// virtual machine) wakes up and believes that it still holds the lock. So each holder gets a token that is greater than
// those of all before it, sends it along with every write, and the storage refuses tokens older than the newest it saw.
//
//	lock --worker a --rounds 3 --hold 1s
//
// To see a refusal, stop a worker with Ctrl-Z while it holds the lock, let another one run, and continue it with fg.
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
	worker := flag.String("worker", "a", "name of this worker")
	rounds := flag.Int("rounds", 3, "how often to take the lock")
	hold := flag.Duration("hold", time.Second, "how long to work under the lock before writing")
	ttl := flag.Int("ttl", 5, "seconds until the lock of a dead holder is free")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	client, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ","), DialTimeout: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for round := 1; round <= *rounds; round++ {
		if err := work(ctx, client, *worker, round, *hold, *ttl); err != nil {
			if ctx.Err() != nil {
				return
			}
			log.Fatal(err)
		}
	}
}

// work takes the lock, works for a while, writes the result, and gives the lock back.
func work(ctx context.Context, client *clientv3.Client, worker string, round int, hold time.Duration, ttl int) error {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(ttl))
	if err != nil {
		return err
	}
	// Closing revokes the lease, and with it the lock, whatever happened; a lease that is gone already is no error here.
	defer session.Close()
	mutex := concurrency.NewMutex(session, "lock/report")
	if err := mutex.Lock(ctx); err != nil {
		return err
	}
	// The next holder gets the lock only after this one's key is deleted, which is a later revision than this. So
	// revisions at which the lock was taken are fencing tokens, as they stand.
	token := mutex.Header().Revision
	fmt.Println("locked", worker, token)

	select {
	case <-time.After(hold): // the work
	case <-ctx.Done():
		return ctx.Err()
	}

	err = storage{client}.write(ctx, token, fmt.Sprintf("round %d of %s", round, worker))
	var refused *refusedError
	switch {
	case errors.As(err, &refused):
		fmt.Println("refused", worker, token, "newest", refused.newest)
		return nil // the work is lost, and nothing is spoilt: that is what the token is for
	case err != nil:
		return err
	}
	fmt.Println("wrote", worker, token)
	return mutex.Unlock(ctx)
}

// storage stands for whatever the lock protects: a bucket, a printer, a database. All it must be able to do is to
// compare and remember a token together with the write. It knows nothing of the lock.
type storage struct {
	kv clientv3.KV
}

const (
	newestToken = "storage/report/token"
	content     = "storage/report/content"
)

type refusedError struct{ newest string }

func (e *refusedError) Error() string { return "a later holder wrote already: token " + e.newest }

func (s storage) write(ctx context.Context, token int64, text string) error {
	// Tokens of fixed width compare as text as they do as numbers. The condition does not hold while there is no token.
	mine := fmt.Sprintf("%020d", token)
	answer, err := s.kv.Txn(ctx).
		If(clientv3.Compare(clientv3.Value(newestToken), ">", mine)).
		Then(clientv3.OpGet(newestToken)).
		Else(clientv3.OpPut(newestToken, mine), clientv3.OpPut(content, text)).
		Commit()
	if err != nil {
		return err
	}
	if answer.Succeeded {
		newest := string(answer.Responses[0].GetResponseRange().Kvs[0].Value)
		return &refusedError{newest: strings.TrimLeft(newest, "0")}
	}
	return nil
}
