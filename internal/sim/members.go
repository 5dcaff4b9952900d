package sim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/server"
)

// changes is what is known of the members' comings and goings, by the ids of members.
type changes struct {
	asked    map[uint64]bool // whose removal was asked for, and may happen at any time
	removed  map[uint64]bool // whose removal was acknowledged
	promoted map[uint64]bool // whose promotion was acknowledged
	mayVote  map[uint64]bool // founders, and those whose promotion somebody asked for
}

// newcomer makes of a node one that joins the cluster at its next start, as a learner that asks for its vote or not.
func (r *run) newcomer(n *node, promote bool) {
	n.options.Founders, n.options.Promote = nil, promote
	n.options.Join = func(ctx context.Context) (server.Joined, error) {
		body, err := json.Marshal(server.JoinRequest{Name: n.name, PeerURLs: n.options.PeerURLs})
		if err != nil {
			return server.Joined{}, err
		}
		for deadline := time.Now().Add(recovery); time.Now().Before(deadline); {
			for _, other := range r.nodes {
				l := other.current()
				if l == nil {
					continue
				}
				var joined server.Joined
				if joined, err = r.askToJoin(ctx, l, body); err == nil {
					return joined, nil
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		return server.Joined{}, fmt.Errorf("nobody takes it for %v: %w", recovery, err)
	}
}

func (r *run) askToJoin(ctx context.Context, l *life, body []byte) (server.Joined, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	answer, err := r.network.Ask(ctx, l.id, server.CallJoin, body)
	if err != nil {
		return server.Joined{}, err
	}
	return server.DecodeJoined(answer)
}

// up starts a node that is down. One that finds itself removed has left, if that was asked for.
func (r *run) up(n *node) error {
	err := n.start()
	if errors.Is(err, server.ErrRemoved) && r.changes.asked[n.id] {
		r.left(n)
		return nil
	}
	return err
}

// look tells of members that cannot go on, and lets go of those that were removed as asked for.
func (r *run) look() error {
	for _, n := range r.members() {
		switch err := n.failed(); {
		case errors.Is(err, server.ErrRemoved) && r.changes.asked[n.id]:
			n.crash(100)
			r.left(n)
		case err != nil:
			return err
		}
	}
	return nil
}

// left makes a spare of a node that was removed.
func (r *run) left(n *node) {
	n.in = false
	r.wipe(n)
}

// wipe gives a node that is down an empty disk.
func (r *run) wipe(n *node) {
	n.wiped = append(n.wiped, n.disk)
	n.disk = NewDisk(r.o.Seed<<16|uint64(n.lives)<<8|uint64(n.name[1]), n.disk.o)
}

// table is who the members are, as agreed on now; nil if nobody can say.
func (r *run) table(rng *rand.Rand) []*pb.Member {
	l := r.someNode(rng).current()
	if l == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(l.ctx, 3*time.Second)
	defer cancel()
	list, err := l.services.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	if err != nil {
		return nil
	}
	return list.Members
}

// spendable are the nodes that may go without the rest being unable to go on whatever else happens to one of them: two
// voters must stay. There are none while a removal may still happen that was not acknowledged.
func (r *run) spendable(table []*pb.Member) []*node {
	voters := 0
	for _, m := range table {
		if r.changes.asked[m.ID] {
			return nil
		}
		if !m.IsLearner {
			voters++
		}
	}
	var nodes []*node
	for _, n := range r.members() {
		i := slices.IndexFunc(table, func(m *pb.Member) bool { return m.ID == n.id })
		if i >= 0 && (table[i].IsLearner || voters > 2) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// meanwhile makes a change while something happens to members, or nothing.
func (r *run) meanwhile(rng *rand.Rand, change func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		change()
	}()
	time.Sleep(between(rng, 0, 300*time.Millisecond))
	do := [...]func(*run, *rand.Rand) error{crashOne, crashAll, partition, oneWay, pauseOne, moveLeader, slowDisk, nil, nil}[rng.IntN(9)]
	var err error
	if do != nil {
		err = do(r, rng)
	}
	<-done
	return err
}

// join starts a node that joins.
func (r *run) join(rng *rand.Rand, n *node) error {
	promote := rng.IntN(2) == 0
	r.newcomer(n, promote)
	var failed error
	err := r.meanwhile(rng, func() { failed = n.start() })
	if failed != nil {
		return fmt.Errorf("membership: %s cannot join: %w", n.name, failed)
	}
	n.in, r.changes.mayVote[n.id] = true, promote
	return err
}

// spares are the nodes that are not in the cluster.
func (r *run) spares() []*node {
	return slices.DeleteFunc(slices.Clone(r.nodes), func(n *node) bool { return n.in })
}

func joinOne(r *run, rng *rand.Rand) error {
	spares := r.spares()
	if len(spares) == 0 {
		return nil
	}
	return r.join(rng, spares[rng.IntN(len(spares))])
}

// joinAll lets all spares join at one moment, as learners that each need the cluster's state, and ask for their votes or not.
func joinAll(r *run, rng *rand.Rand) error {
	spares := r.spares()
	promote, failed := make([]bool, len(spares)), make([]error, len(spares))
	for i, n := range spares {
		promote[i] = rng.IntN(2) == 0
		r.newcomer(n, promote[i])
	}
	err := r.meanwhile(rng, func() {
		var starting sync.WaitGroup
		for i, n := range spares {
			starting.Go(func() { failed[i] = n.start() })
		}
		starting.Wait()
	})
	for i, n := range spares {
		if failed[i] != nil {
			return fmt.Errorf("membership: %s cannot join: %w", n.name, failed[i])
		}
		n.in, r.changes.mayVote[n.id] = true, promote[i]
	}
	return err
}

// wipeOne takes a member's disk away. It comes back by itself, in the place of what it was.
func wipeOne(r *run, rng *rand.Rand) error {
	nodes := r.spendable(r.table(rng))
	if len(nodes) == 0 {
		return nil
	}
	n := nodes[rng.IntN(len(nodes))]
	was := n.id
	r.ask(was)
	n.crash(0)
	r.left(n)
	if err := r.join(rng, n); err != nil {
		return err
	}
	r.changes.removed[was] = true
	return nil
}

// promoteOne asks for a learner's vote, if there is a learner.
func promoteOne(r *run, rng *rand.Rand) error {
	table := r.table(rng)
	i := slices.IndexFunc(table, func(m *pb.Member) bool { return m.IsLearner })
	l := r.someNode(rng).current()
	if i < 0 || l == nil {
		return nil
	}
	r.changes.mayVote[table[i].ID] = true
	acknowledged := false
	err := r.meanwhile(rng, func() {
		ctx, cancel := context.WithTimeout(l.ctx, 5*time.Second)
		defer cancel()
		_, err := l.services.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: table[i].ID})
		acknowledged = err == nil && l.alive()
	})
	if acknowledged {
		r.changes.promoted[table[i].ID] = true
	}
	return err
}

// updateOne gives a member another peer URL, and nothing else.
func updateOne(r *run, rng *rand.Rand) error {
	n, l := r.someNode(rng), r.someNode(rng).current()
	if l == nil {
		return nil
	}
	url := fmt.Sprintf("http://%s-%d:2380", n.name, rng.IntN(1000))
	return r.meanwhile(rng, func() {
		ctx, cancel := context.WithTimeout(l.ctx, 5*time.Second)
		defer cancel()
		_, _ = l.services.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: n.id, PeerURLs: []string{url}}) // may well fail
	})
}

// removeOne removes a member, in half of the cases the leader. It must stop then.
func removeOne(r *run, rng *rand.Rand) error {
	nodes := r.spendable(r.table(rng))
	if len(nodes) == 0 {
		return nil
	}
	n, l := nodes[rng.IntN(len(nodes))], r.someNode(rng).current()
	if leader := r.leader(); rng.IntN(2) == 0 && slices.Contains(nodes, leader) {
		n = leader
	}
	return r.removeBy(rng, l, n)
}

// removeBy asks one member to remove another while something happens.
func (r *run) removeBy(rng *rand.Rand, l *life, n *node) error {
	id := n.id
	var answer error
	r.ask(id)
	err := r.meanwhile(rng, func() { answer = r.remove(l, id) })
	if r.answered(id, answer) && err == nil {
		err = r.stops(n, id)
	}
	return err
}

// removeLeader has the leader remove itself, mostly while its own disk is slow, or that of another, so that the change may be with the
// others before it is with the leader, or the other way round.
func removeLeader(r *run, rng *rand.Rand) error {
	leader := r.leader()
	if leader == nil || !slices.Contains(r.spendable(r.table(rng)), leader) {
		return nil
	}
	l := leader.current()
	if l == nil {
		return nil
	}
	slow := r.someNode(rng)
	if rng.IntN(2) == 0 {
		slow = leader
	}
	disk := slow.disk // a node that was removed gets another
	disk.SetSlower(1 + rng.IntN(300))
	defer disk.SetSlower(1)
	return r.removeBy(rng, l, leader)
}

// removeDown removes a member while it is down. When it comes back it must be told.
func removeDown(r *run, rng *rand.Rand) error {
	nodes := r.spendable(r.table(rng))
	if len(nodes) == 0 {
		return nil
	}
	n := nodes[rng.IntN(len(nodes))]
	n.crash(keep(rng))
	others := slices.DeleteFunc(r.members(), func(o *node) bool { return o == n })
	id := n.id
	r.ask(id)
	acknowledged := r.answered(id, r.remove(others[rng.IntN(len(others))].current(), id))
	if err := r.up(n); err != nil || !acknowledged {
		return err
	}
	return r.stops(n, id)
}

// ask notes that a member's removal is asked for.
func (r *run) ask(id uint64) { r.changes.asked[id] = true }

// remove asks a member to remove another.
func (r *run) remove(l *life, id uint64) error {
	ctx, cancel := context.WithTimeout(l.ctx, 5*time.Second)
	defer cancel()
	_, err := l.services.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
	if err == nil && !l.alive() {
		err = context.Canceled
	}
	return err
}

// answered notes what came of asking, and reports whether the removal was acknowledged. Some refusals come before anybody else
// has heard of it.
func (r *run) answered(id uint64, err error) bool {
	switch {
	case err == nil:
		r.changes.removed[id] = true
	case errors.Is(err, rpctypes.ErrGRPCUnhealthy), errors.Is(err, rpctypes.ErrGRPCMemberNotEnoughStarted):
		delete(r.changes.asked, id)
	}
	return err == nil
}

// stops waits until a member that was removed does not run any more.
func (r *run) stops(n *node, id uint64) error {
	for deadline := time.Now().Add(recovery / 2); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err := r.look(); err != nil || !n.in || n.id != id {
			return err
		}
	}
	return fmt.Errorf("membership: %s (%x) was removed %v ago, and goes on", n.name, id, recovery/2)
}

// whoIsIn removes members that nobody runs (whoever asked for them was not answered), and tells whether all members agree
// on who they are.
func (r *run) whoIsIn() error {
	var running []uint64
	var all []view
	for _, n := range r.members() {
		m := n.current().member
		v := view{members: m.Members()}
		v.voters, v.learners = m.Counted()
		running, all = append(running, n.id), append(all, v)
	}
	for _, m := range all[0].members {
		if slices.Contains(running, m.ID) {
			continue
		}
		r.ask(m.ID)
		r.answered(m.ID, r.remove(r.members()[0].current(), m.ID))
	}
	return checkMembers(running, all, r.changes)
}

// view is who the members are, as one of them has it: in its table, and in its raft.
type view struct {
	members          []rpc.Member
	voters, learners []uint64
}

// checkMembers holds what the members that run say of one another against what was asked for.
func checkMembers(running []uint64, all []view, c changes) error {
	var f errList
	running = slices.Sorted(slices.Values(running))
	sorted := func(members []rpc.Member) string {
		return fmt.Sprintf("%+v", slices.SortedFunc(slices.Values(members), func(a, b rpc.Member) int { return cmp.Compare(a.ID, b.ID) }))
	}
	for _, v := range all {
		var voters, learners []uint64
		for _, m := range v.members {
			if m.Learner {
				learners = append(learners, m.ID)
			} else {
				voters = append(voters, m.ID)
			}
			if c.removed[m.ID] {
				f.add("membership", "%x was removed, and is there again", m.ID)
			}
			if c.promoted[m.ID] && m.Learner {
				f.add("membership", "%x was given a vote, and is a learner again", m.ID)
			}
			if !c.mayVote[m.ID] && !m.Learner {
				f.add("membership", "%x has a vote that nobody asked for", m.ID)
			}
		}
		if ids := slices.Sorted(slices.Values(slices.Concat(voters, learners))); !slices.Equal(ids, running) {
			f.add("membership", "the members are %x for one of them, and %x run", ids, running)
		}
		if !same(voters, v.voters) || !same(learners, v.learners) {
			f.add("membership", "the voters are %x and the learners %x, and raft counts with %x and %x", voters, learners, v.voters, v.learners)
		}
		if a, b := sorted(all[0].members), sorted(v.members); a != b {
			f.add("membership", "two members differ on who they are: %s and %s", a, b)
		}
	}
	return f.err()
}

func same(a, b []uint64) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
