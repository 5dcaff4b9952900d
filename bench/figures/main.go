// Command figures measures what the README quotes: three members on this machine under one generator. It prints a table;
// the numbers move with the machine, so compare figures of one run only.
//
//	go build -o /tmp/trivet ./cmd/trivet && go run -C bench ./figures --command "/tmp/trivet server"
//
// Any other binary with etcd's flags can stand in for --command.
package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/cluster"
	"github.com/trivet-kv/trivet/bench/load"
)

func main() {
	command := flag.String("command", "", "binary and leading arguments of a member, for example \"/tmp/trivet server\"")
	seconds := flag.Int("seconds", 5, "how long each load runs")
	keys := flag.Int("keys", 1_000_000, "keys of 256 bytes for the figures of a large store; 0 leaves them out")
	flag.Parse()
	if *command == "" {
		fmt.Fprintln(os.Stderr, "figures: --command is needed")
		os.Exit(2)
	}
	if err := run(strings.Fields(*command), time.Duration(*seconds)*time.Second, *keys); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

func run(command []string, d time.Duration, keys int) error {
	dir, err := os.MkdirTemp("", "figures-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	begin := time.Now()
	c, err := cluster.Start(ctx, dir, 3, command)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Printf("three members started and answering after %v\n\n", time.Since(begin).Round(time.Millisecond))
	if err := loads(ctx, c, d); err != nil {
		return err
	}
	if keys == 0 {
		return nil
	}
	return large(ctx, c, keys)
}

func loads(ctx context.Context, c *cluster.Cluster, d time.Duration) error {
	leader, err := c.Leader(ctx)
	if err != nil {
		return err
	}
	one, all := []*cluster.Member{leader}, c.Members
	fmt.Printf("%-36s %10s %10s %10s %14s %7s\n", "load", "per s", "p50", "p99", "server CPU/op", "errors")
	for _, l := range []struct {
		name    string
		to      []*cluster.Member
		clients int
		op      load.Op
	}{
		{"put 256 B, 1 client", one, 1, put},
		{"put 256 B, 64 clients", one, 64, put},
		{"put 256 B, 512 clients", one, 512, put},
		{"put 256 B, 512 clients, all members", all, 512, put},
		{"get, 1 client", one, 1, get(false)},
		{"get, 64 clients, all members", all, 64, get(false)},
		{"get, 512 clients, all members", all, 512, get(false)},
		{"serializable get, 64 clients", all, 64, get(true)},
	} {
		if _, err := load.Run(ctx, c, l.to, l.clients, d/5, l.op); err != nil { // warm-up
			return err
		}
		r, err := load.Run(ctx, c, l.to, l.clients, d, l.op)
		if err != nil {
			return err
		}
		fmt.Printf("%-36s %10.0f %10v %10v %14v %7d\n", l.name, r.PerSecond(), r.Latency.Quantile(0.5), r.Latency.Quantile(0.99),
			r.CPUPerOp().Round(100*time.Nanosecond), r.Errors)
	}
	return nil
}

// space is how many different keys the loads touch.
const space = 100_000

func key(n uint64) []byte {
	k := []byte("bench/00000000")
	binary.BigEndian.PutUint64(k[6:], n)
	return k
}

func put(ctx context.Context, conn *grpc.ClientConn, _, _ int) error {
	_, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: key(rand.Uint64N(space)), Value: make([]byte, 256)})
	return err
}

func get(serializable bool) load.Op {
	return func(ctx context.Context, conn *grpc.ClientConn, _, _ int) error {
		_, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: key(rand.Uint64N(space)), Serializable: serializable})
		return err
	}
}

// large loads many keys and prints what a member holding them takes, counts them, and restarts after kill -9.
func large(ctx context.Context, c *cluster.Cluster, keys int) error {
	conn, err := c.Members[0].Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	const clients = 256
	cpu, err := c.CPU()
	if err != nil {
		return err
	}
	errs := make(chan error, clients)
	begin := time.Now()
	for i := range clients {
		go func() {
			for n := i; n < keys; n += clients {
				if _, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: key(space + uint64(n)), Value: make([]byte, 256)}); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			return err
		}
	}
	took := time.Since(begin)
	after, err := c.CPU()
	if err != nil {
		return err
	}
	fmt.Printf("\n%d keys of 256 B: loaded in %v, %v server CPU per key\n", keys, took.Round(time.Millisecond), (after-cpu)/time.Duration(keys))
	for _, m := range c.Members {
		anonymous, peak, err := m.Memory()
		if err != nil {
			return err
		}
		disk, err := m.Disk()
		if err != nil {
			return err
		}
		fmt.Printf("%s: %d MiB anonymous memory, %d MiB peak resident, %d MiB disk\n", m.Name, anonymous>>20, peak>>20, disk>>20)
	}
	begin = time.Now()
	n, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true})
	if err != nil {
		return err
	}
	fmt.Printf("count of %d keys: %v\n", n.Count, time.Since(begin).Round(10*time.Microsecond))
	return restart(ctx, c.Members[2])
}

func restart(ctx context.Context, m *cluster.Member) error {
	if err := m.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	m.Wait()
	begin := time.Now()
	if err := m.Start(); err != nil {
		return err
	}
	if err := m.Ready(ctx); err != nil {
		return err
	}
	fmt.Printf("restart after kill -9 to the first linearizable read: %v\n", time.Since(begin).Round(time.Millisecond))
	return nil
}
