package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/internal/transport"
)

// trouble does to the cluster what the seed says, until the run's duration is over. An error is a promise broken
// meanwhile, such as a member that does not start again.
func (r *run) trouble() error {
	rng := rand.New(rand.NewPCG(r.o.Seed, 2))
	for time.Since(r.began) < r.o.Duration {
		time.Sleep(between(rng, 100*time.Millisecond, 1500*time.Millisecond))
		f := r.chooseFault(rng)
		r.report.Faults[f.name]++
		r.o.Logger.Info("fault", "name", f.name, "at", time.Since(r.began))
		if err := f.do(r, rng); err != nil {
			return fmt.Errorf("%s at %v: %w", f.name, time.Since(r.began), err)
		}
		if r.noSpace() {
			r.report.NoSpace++
		}
		if err := r.look(); err != nil {
			return fmt.Errorf("after %s at %v: %w", f.name, time.Since(r.began), err)
		}
	}
	return nil
}

func between(rng *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(rng.Int64N(int64(high-low)))
}

// fault is one kind of disturbance. It leaves every member running when it returns.
type fault struct {
	name   string
	weight int
	do     func(r *run, rng *rand.Rand) error
}

var disturbances = []fault{
	{"crash one", 6, crashOne},
	{"crash all", 3, crashAll},
	{"power cut", 2, powerCut},
	{"crash long", 2, crashLong},
	{"stop one", 2, stopOne},
	{"partition", 4, partition},
	{"one-way cut", 2, oneWay},
	{"bad network", 4, badNetwork},
	{"pause", 2, pauseOne},
	{"slow disk", 2, slowDisk},
	{"hung disk", 2, hungDisk},
	{"full disk", 2, fullDisk},
	{"failing disk", 1, failingDisk},
	{"compact", 4, compact},
	{"move leader", 2, moveLeader},
	{"lost data", 2, loseData},
	{"join", 3, joinOne},
	{"join all", 1, joinAll},
	{"promote", 2, promoteOne},
	{"remove", 3, removeOne},
	{"remove leader", 2, removeLeader},
	{"remove while down", 1, removeDown},
	{"wipe", 2, wipeOne},
	{"update", 1, updateOne},
}

func (r *run) chooseFault(rng *rand.Rand) fault {
	var among []fault
	sum := 0
	for _, f := range disturbances {
		if r.o.Faults == nil || slices.Contains(r.o.Faults, f.name) {
			among = append(among, f)
			sum += f.weight
		}
	}
	at := rng.IntN(sum)
	for _, f := range among {
		if at -= f.weight; at < 0 {
			return f
		}
	}
	panic("sim: no fault")
}

// keep draws how much of what was not synced survives a crash, in percent: mostly nothing or a part.
func keep(rng *rand.Rand) int { return [...]int{0, 0, 30, 70, 100}[rng.IntN(5)] }

// members are the nodes that are in the cluster.
func (r *run) members() []*node {
	var in []*node
	for _, n := range r.nodes {
		if n.in {
			in = append(in, n)
		}
	}
	return in
}

func (r *run) someNode(rng *rand.Rand) *node {
	in := r.members()
	return in[rng.IntN(len(in))]
}

func (r *run) leader() *node {
	for _, n := range r.members() {
		if l := n.current(); l != nil && l.member.Leader() == l.id {
			return n
		}
	}
	return nil
}

func crashOne(r *run, rng *rand.Rand) error {
	n := r.someNode(rng)
	if leader := r.leader(); leader != nil && rng.IntN(2) == 0 {
		n = leader
	}
	n.crash(keep(rng))
	time.Sleep(between(rng, 0, 2*time.Second))
	return r.up(n)
}

func crashAll(r *run, rng *rand.Rand) error {
	nodes := r.members()
	order := rng.Perm(len(nodes))
	for _, i := range order {
		nodes[i].crash(keep(rng))
		if rng.IntN(2) == 0 {
			time.Sleep(between(rng, 0, 50*time.Millisecond))
		}
	}
	for _, i := range order {
		time.Sleep(between(rng, 0, 500*time.Millisecond))
		if err := r.up(nodes[i]); err != nil {
			return err
		}
	}
	return nil
}

// powerCut ends all members at one moment, with everything lost that was not synced.
func powerCut(r *run, rng *rand.Rand) error {
	nodes := r.members()
	for _, n := range nodes {
		n.crash(0)
	}
	for _, n := range nodes {
		time.Sleep(between(rng, 0, 100*time.Millisecond))
		if err := r.up(n); err != nil {
			return err
		}
	}
	return nil
}

// crashLong keeps a member away until the others have cut their logs, so that it needs a checkpoint. Putting that in place
// may take it long, while the others go on, perhaps under another leader, which has to send a checkpoint of its own.
func crashLong(r *run, rng *rand.Rand) error {
	n := r.someNode(rng)
	n.crash(keep(rng))
	time.Sleep(between(rng, 4*time.Second, 8*time.Second))
	if err := r.up(n); err != nil || rng.IntN(2) == 0 {
		return err
	}
	n.disk.SetSlower(500 + rng.IntN(3000))
	defer n.disk.SetSlower(1)
	for range 2 {
		time.Sleep(between(rng, 500*time.Millisecond, 3*time.Second))
		if err := moveLeader(r, rng); err != nil {
			return err
		}
	}
	return nil
}

func stopOne(r *run, rng *rand.Rand) error {
	n := r.someNode(rng)
	if err := n.stop(5 * time.Second); err != nil {
		return err
	}
	time.Sleep(between(rng, 0, time.Second))
	return r.up(n)
}

func partition(r *run, rng *rand.Rand) error {
	nodes := r.members()
	order := rng.Perm(len(nodes))
	var groups [3][]uint64
	for i, at := range order {
		if l := nodes[at].current(); l != nil {
			g := 0
			if i > 0 {
				g = rng.IntN(3)
			}
			groups[g] = append(groups[g], l.id)
		}
	}
	r.network.Partition(groups[:]...)
	time.Sleep(between(rng, 100*time.Millisecond, 8*time.Second))
	r.network.Heal()
	return nil
}

func oneWay(r *run, rng *rand.Rand) error {
	nodes := r.members()
	if len(nodes) < 2 {
		return nil
	}
	order := rng.Perm(len(nodes))
	from, to := nodes[order[0]].current(), nodes[order[1]].current()
	r.network.Cut(from.id, to.id)
	time.Sleep(between(rng, 100*time.Millisecond, 3*time.Second))
	r.network.Heal()
	return nil
}

// manners are those of a network on a good day.
func manners(rng *rand.Rand, seed uint64) transport.NetworkOptions {
	return transport.NetworkOptions{Seed: seed, MinDelay: 50 * time.Microsecond, MaxDelay: between(rng, 100*time.Microsecond, 5*time.Millisecond)}
}

func badNetwork(r *run, rng *rand.Rand) error {
	bad := transport.NetworkOptions{
		MaxDelay:  between(rng, time.Millisecond, 200*time.Millisecond),
		Loss:      rng.Float64() * 0.3,
		Duplicate: rng.Float64() * 0.2,
	}
	r.network.SetOptions(bad)
	time.Sleep(between(rng, 500*time.Millisecond, 5*time.Second))
	r.network.SetOptions(manners(rng, 0))
	return nil
}

// pauseOne cuts a member off in both directions without telling anybody, and then lets everything through that waited:
// what a member sees of its peers after its process was stopped for a while, or they of it.
func pauseOne(r *run, rng *rand.Rand) error {
	l := r.someNode(rng).current()
	r.network.Pause(l.id)
	time.Sleep(between(rng, 100*time.Millisecond, 3*time.Second))
	r.network.Resume(l.id)
	return nil
}

func slowDisk(r *run, rng *rand.Rand) error {
	n := r.someNode(rng)
	n.disk.SetSlower(10 + rng.IntN(200))
	time.Sleep(between(rng, 500*time.Millisecond, 5*time.Second))
	n.disk.SetSlower(1)
	return nil
}

// hungDisk lets the disk of one member, mostly the leader, answer no sync for a while, or until it crashes. The others must
// have another leader soon.
func hungDisk(r *run, rng *rand.Rand) error {
	n := r.someNode(rng)
	if leader := r.leader(); leader != nil && rng.IntN(4) > 0 {
		n = leader
	}
	n.disk.SetHung(true)
	defer n.disk.SetHung(false)
	time.Sleep(between(rng, 100*time.Millisecond, 4*time.Second))
	const patience = 20 * time.Second
	for began := time.Now(); n.voters() > 2; time.Sleep(10 * time.Millisecond) {
		if leader := r.leader(); leader != nil && leader != n {
			break
		}
		if time.Since(began) > patience {
			return fmt.Errorf("the disk of %s has answered nothing for %v and nobody else leads", n.name, patience)
		}
	}
	if rng.IntN(3) == 0 {
		n.crash(keep(rng))
		time.Sleep(between(rng, 0, time.Second))
		return n.start()
	}
	return nil
}

// fullDisk leaves no room on the disk of one member, mostly the leader, for a while, or until it crashes. The member must not
// give up, which trouble looks for, and go on when there is room.
func fullDisk(r *run, rng *rand.Rand) error {
	n := r.someNode(rng)
	if leader := r.leader(); leader != nil && rng.IntN(3) > 0 {
		n = leader
	}
	n.disk.SetRoom(rng.IntN(200))
	defer n.disk.SetRoom(-1)
	time.Sleep(between(rng, 100*time.Millisecond, 8*time.Second))
	if rng.IntN(4) == 0 {
		n.crash(keep(rng))
		time.Sleep(between(rng, 0, time.Second))
		return n.start()
	}
	return nil
}

// failingDisk fails the syncs of one member's log. The member must give up rather than go on, and comes back on a disk
// that lost what it could not sync.
func failingDisk(r *run, rng *rand.Rand) error {
	n := r.someNode(rng)
	n.disk.SetFailing(true)
	defer n.disk.SetFailing(false)
	const patience = 20 * time.Second
	for began := time.Now(); n.failed() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			return fmt.Errorf("%s goes on although its log could not be synced for %v", n.name, patience)
		}
	}
	n.crash(0)
	n.disk.SetFailing(false)
	time.Sleep(between(rng, 0, time.Second))
	return r.up(n)
}

// compact forgets some of the history that the watchers which are waited for have seen.
func compact(r *run, rng *rand.Rand) error {
	upTo := int64(1) << 62
	for _, w := range r.watchers {
		if !w.sleepy && w.saw.Key == "" {
			upTo = min(upTo, w.next()-1)
		}
	}
	upTo -= rng.Int64N(50)
	l := r.someNode(rng).current()
	if upTo < 1 || l == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(l.ctx, 2*time.Second)
	defer cancel()
	_, _ = l.services.Compact(ctx, &pb.CompactionRequest{Revision: upTo, Physical: rng.IntN(2) == 0}) // may well fail
	return nil
}

func moveLeader(r *run, rng *rand.Rand) error {
	leader := r.leader()
	if leader == nil {
		return nil
	}
	l, to := leader.current(), r.someNode(rng).current()
	ctx, cancel := context.WithTimeout(l.ctx, time.Second)
	defer cancel()
	_, _ = l.services.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: to.id}) // may well fail
	return nil
}
