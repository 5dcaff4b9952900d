package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// loseData takes what a member promised from it at the worst time. The leader and just enough others to agree with it are
// cut off from the rest, so that the rest misses what clients are told. Then one of those others dies and loses its log or
// its state, everybody is connected again, that member comes back, dying once or twice more while it is rebuilt, and the leader dies. If the member now voted as what is
// left of its data lets it, it could elect one of the rest, and what was acknowledged meanwhile would be gone.
func loseData(r *run, rng *rand.Rand) error {
	table := r.table(rng)
	leader := r.leader()
	victim := r.voterBut(leader, r.spendable(table), table, rng)
	if leader == nil || victim == nil {
		return nil // nobody could help
	}
	voters := 0
	for _, m := range table {
		if !m.IsLearner {
			voters++
		}
	}
	together, rest := []uint64{leader.id, victim.id}, []uint64{}
	for _, n := range r.members() {
		switch {
		case n == leader || n == victim:
		case len(together) < voters/2+1 && isVoter(table, n):
			together = append(together, n.id)
		default:
			rest = append(rest, n.id)
		}
	}
	r.network.Partition(together, rest)
	time.Sleep(between(rng, 300*time.Millisecond, 3*time.Second))
	victim.crash(keep(rng))
	if r.o.ForgetLogs {
		if err := forgetLog(victim.disk.FS()); err != nil {
			return err
		}
		leader.crash(0) // it would find the member behind what it knows of it, and raft panics then
	} else if err := damage(victim.disk.FS(), rng); err != nil {
		return err
	}
	r.network.Heal()
	if !r.o.ForgetLogs {
		for range rng.IntN(3) { // in the middle of being rebuilt
			victim.startAndCrash(between(rng, 0, 400*time.Millisecond), keep(rng))
		}
	}
	if err := r.up(victim); err != nil {
		return err
	}
	time.Sleep(between(rng, 0, 20*time.Millisecond))
	if r.o.LeaderGone {
		leader.crash(0)
		r.left(leader)
		time.Sleep(r.o.Duration) // no more faults: the next leader would be lost too
		return nil
	}
	if rng.IntN(4) == 0 {
		return nil
	}
	leader.crash(keep(rng))
	time.Sleep(between(rng, 0, 3*time.Second))
	return r.up(leader)
}

// voterBut draws one of the nodes that has a vote and is not that one; nil if there is none.
func (r *run) voterBut(not *node, among []*node, table []*pb.Member, rng *rand.Rand) *node {
	for _, i := range rng.Perm(len(among)) {
		if n := among[i]; n != not && n.current() != nil && isVoter(table, n) {
			return n
		}
	}
	return nil
}

func isVoter(table []*pb.Member, n *node) bool {
	return slices.ContainsFunc(table, func(m *pb.Member) bool { return m.ID == n.id && !m.IsLearner })
}

// damage destroys a part of what a member that is down has on its disk.
func damage(fsys vfs.FS, rng *rand.Rand) error {
	kind := rng.IntN(4)
	if kind == 0 {
		return spoilLog(fsys, rng)
	}
	var errs []error
	if kind != 1 {
		errs = append(errs, fsys.RemoveAll("/data/log"))
	}
	if kind != 2 {
		errs = append(errs, fsys.Remove("/data/STATE"))
	}
	return errors.Join(errs...)
}

// spoilLog changes bytes of the log that a reader must look at: those of the header of the last segment.
func spoilLog(fsys vfs.FS, rng *rand.Rand) error {
	names, err := fsys.List("/data/log")
	if err != nil {
		return err
	}
	last := ""
	for _, name := range names {
		if bytes.HasSuffix([]byte(name), []byte(".log")) {
			last = max(last, name)
		}
	}
	f, err := fsys.OpenReadWrite("/data/log/"+last, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())}, rng.Int64N(60))
	return errors.Join(err, f.Sync(), f.Close())
}

// forgetLog is the planted bug: the log is gone, and the member does not know that it had one.
func forgetLog(fsys vfs.FS) error {
	const name = "/data/member.json"
	f, err := fsys.Open(name)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	forgotten := bytes.Replace(b, []byte(`"has_log": true`), []byte(`"has_log": false`), 1)
	if bytes.Equal(forgotten, b) {
		return fmt.Errorf("%s says nothing of a log: %s", name, b)
	}
	if f, err = fsys.Create(name, vfs.WriteCategoryUnspecified); err != nil {
		return err
	}
	_, err = f.Write(forgotten)
	return errors.Join(err, f.Sync(), f.Close(), fsys.RemoveAll("/data/log"))
}
