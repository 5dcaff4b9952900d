package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/internal/kv"
)

// leasePrefix begins the keys that hang on leases: they are deleted when their lease ends, not by a request.
const leasePrefix = "lease/"

// tenant takes one lease after the other, hangs a key on it, keeps it alive for a while and lets go of it.
type tenant struct {
	client
	leases int // that it asked for: a key is never used again, for a request without answer may take effect late
}

// held is one lease and what was promised about it.
type held struct {
	id    int64
	key   string
	ttl   time.Duration
	until time.Duration // since the start of the run: no member may end the lease before
}

// deaths notes when lease keys were seen to be deleted first.
type deaths struct {
	mu sync.Mutex
	at map[string]time.Duration
}

func (d *deaths) note(key string, at time.Duration) {
	if !strings.HasPrefix(key, leasePrefix) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.at[key]; !known {
		d.at[key] = at
	}
}

// loop runs until the run tells clients to stop. It returns the leases that it had.
func (t *tenant) loop() []held {
	var all []held
	for !t.run.quiet() {
		if h, ok := t.take(); ok {
			t.keep(&h)
			all = append(all, h)
		}
		time.Sleep(time.Duration(t.rng.Int64N(int64(500 * time.Millisecond))))
	}
	return all
}

func (t *tenant) someLife() *life { return t.run.nodes[t.rng.IntN(len(t.run.nodes))].current() }

// take makes a lease with a key; false if either was not acknowledged.
func (t *tenant) take() (held, bool) {
	l := t.someLife()
	if l == nil {
		return held{}, false
	}
	t.leases++
	h := held{key: fmt.Sprintf("%s%d.%d", leasePrefix, t.id, t.leases)}
	asked := time.Since(t.run.began)
	ctx, cancel := context.WithTimeout(l.ctx, 3*time.Second)
	defer cancel()
	ask := &pb.LeaseGrantRequest{TTL: 2 + t.rng.Int64N(3)}
	if t.rng.IntN(2) == 0 { // else the member chooses
		ask.ID = int64(t.id)<<32 | int64(t.leases)
	}
	granted, err := l.services.LeaseGrant(ctx, ask)
	if err != nil || !l.alive() {
		return held{}, false
	}
	h.id, h.ttl = granted.ID, time.Duration(granted.TTL)*time.Second
	h.until = asked + h.ttl
	o := t.send(l, Op{Client: t.id, Kind: Put, Key: h.key, Value: t.value(), Lease: h.id})
	return h, o.Known
}

// keep renews the lease for a random time through random members, and lets go of it then, or before if it is gone.
func (t *tenant) keep(h *held) {
	for until := time.Now().Add(time.Duration(t.rng.Int64N(int64(8 * time.Second)))); time.Now().Before(until); {
		time.Sleep(time.Duration(t.rng.Int64N(int64(h.ttl / 2))))
		l := t.someLife()
		if l == nil {
			continue
		}
		asked := time.Since(t.run.began)
		ctx, cancel := context.WithTimeout(l.ctx, time.Second)
		ttl, err := l.member.LeaseRenew(ctx, kv.LeaseID(h.id))
		cancel()
		switch {
		case !l.alive():
		case err == nil:
			h.until = max(h.until, asked+time.Duration(ttl)*time.Second)
		case errors.Is(err, kv.ErrLeaseNotFound), errors.Is(err, rpctypes.ErrGRPCLeaseNotFound):
			return
		}
	}
}

// checkLeases: a lease does not end before the time that its holder was promised last, and it ends some time after.
func checkLeases(f *errList, all []held, d *deaths, l *Log) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range all {
		died, dead := d.at[h.key]
		switch {
		case !dead && l.At(h.key, l.Last).Version > 0:
			f.add("lease", "%s (lease %x) is still there at the end, although it was promised until %v only", h.key, h.id, h.until)
		case dead && died < h.until:
			f.add("lease", "%s (lease %x) was deleted before %v, although it was promised until %v", h.key, h.id, died, h.until)
		}
	}
}

// leasesLeft tells of the leases that a member still has, when none should be left.
func (r *run) leasesLeft() error {
	var errs []error
	for _, n := range r.members() {
		if ids := n.current().member.Leases(); len(ids) > 0 {
			errs = append(errs, fmt.Errorf("lease: %s has %d leases at the end, which nobody keeps alive: %x", n.name, len(ids), ids))
		}
	}
	return errors.Join(errs...)
}

// newTenant makes a tenant with its own source of choices.
func newTenant(r *run, id int) *tenant {
	return &tenant{
		client: client{run: r, id: id, rng: rand.New(rand.NewPCG(r.o.Seed, 100+uint64(id))), seen: map[string]int64{}},
	}
}
