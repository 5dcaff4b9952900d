package fsm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// nobody waits for anything.
type nobody struct{}

func (nobody) Wants(_, _ uint64) bool { return false }

func randomKey(r *rand.Rand) []byte { return fmt.Appendf(nil, "k%02d", r.IntN(30)) }

func randomRange(r *rand.Rand) kv.Range {
	switch r.IntN(4) {
	case 0:
		return kv.Range{Key: randomKey(r), End: randomKey(r)}
	case 1:
		return kv.Range{Key: randomKey(r), End: []byte{0}}
	}
	return kv.Range{Key: randomKey(r)}
}

func randomOp(r *rand.Rand) command.Op {
	switch r.IntN(4) {
	case 0:
		return command.Op{DeleteRange: &command.DeleteRange{Range: randomRange(r), PrevKV: true}}
	case 1:
		return command.Op{Range: &kv.RangeOptions{Range: randomRange(r)}}
	}
	p := &command.Put{Key: randomKey(r), Value: fmt.Append(nil, r.IntN(1000)), PrevKV: r.IntN(2) == 0}
	switch r.IntN(5) {
	case 0:
		p.Lease = kv.LeaseID(r.IntN(6))
	case 1:
		p.IgnoreValue, p.Value = true, nil
	case 2:
		p.IgnoreLease = true
	}
	return command.Op{Put: p}
}

func randomCommand(r *rand.Rand, revision int64) *command.Command {
	c := randomRequest(r, revision)
	if r.IntN(4) > 0 {
		c.User, c.AuthRevision = []string{"root", "u1", "u2"}[r.IntN(3)], r.Uint64N(200)
	}
	return c
}

func randomRequest(r *rand.Rand, revision int64) *command.Command {
	switch r.IntN(18) {
	case 17:
		return &command.Command{Mark: &command.Mark{Restart: r.IntN(4) == 0}}
	case 13, 14, 15, 16:
		return &command.Command{Auth: randomAuth(r)}
	case 0:
		return &command.Command{LeaseGrant: &command.LeaseGrant{ID: kv.LeaseID(r.IntN(6)), TTL: r.Int64N(100)}}
	case 1:
		return &command.Command{LeaseRevoke: &command.LeaseRevoke{ID: kv.LeaseID(r.IntN(6)), Term: uint64(r.IntN(2) * 5)}}
	case 2:
		return &command.Command{LeaseCheckpoint: &command.LeaseCheckpoint{Leases: []kv.Lease{{ID: kv.LeaseID(r.IntN(6)), Remaining: r.Int64N(50)}}}}
	case 3:
		return &command.Command{Compact: &command.Compact{Revision: revision - r.Int64N(20)}}
	case 12:
		if r.IntN(3) > 0 { // most of the time nothing is refused
			return &command.Command{Alarm: &command.Alarm{Alarm: kv.Alarm{Type: kv.AlarmType(r.Int32N(3)), MemberID: uint64(r.IntN(2))}}}
		}
		return &command.Command{Alarm: &command.Alarm{Raise: true, Alarm: kv.Alarm{
			Type: kv.AlarmType(r.Int32N(3)), MemberID: uint64(r.IntN(2)), Own: r.IntN(2) == 0,
		}}}
	case 4, 5, 6:
		t := &command.Txn{Compare: []command.Compare{{Range: randomRange(r), Target: command.CompareVersion, Result: command.Greater, Int: r.Int64N(3)}}}
		for range r.IntN(4) {
			t.Success = append(t.Success, randomOp(r))
			t.Failure = append(t.Failure, randomOp(r))
		}
		t.Failure = append(t.Failure, command.Op{Txn: &command.Txn{Success: []command.Op{randomOp(r)}}})
		return &command.Command{Txn: t}
	}
	op := randomOp(r)
	if op.Range != nil {
		return &command.Command{MemberPublish: &command.MemberPublish{ID: 1, Name: string(randomKey(r))}}
	}
	return &command.Command{Put: op.Put, DeleteRange: op.DeleteRange}
}

// rows is every row of the state but those whose shape may depend on how entries fell into batches: the fences.
func rows(t *testing.T, s *State) []byte {
	t.Helper()
	it, err := s.Engine.NewIter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var b bytes.Buffer
	for ok := it.First(); ok; ok = it.Next() {
		if it.Key()[0] != engine.PrefixFence {
			fmt.Fprintf(&b, "%q = %q\n", it.Key(), it.Value())
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The same entries make the same rows, however they fall into batches, whether anybody waits for the answers or not, and
// whether a crash made a member apply some of them again (E#13766: an applied index that is not of one piece with its data).
func TestSameEntriesSameState(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 1))
		fsys := vfs.NewCrashableMem()
		one, other := openState(t, vfs.NewMem()), openState(t, fsys)
		var log []command.Entry
		for range 150 {
			var commands []*command.Command
			for range r.IntN(4) {
				commands = append(commands, randomCommand(r, one.Store.Revision()))
			}
			log = append(log, entry(one, commands...))
			if _, err := one.Apply(log[len(log)-1:], everybody{}); err != nil {
				t.Fatal(err)
			}
		}
		for i := 0; i < len(log); {
			n := min(1+r.IntN(20), len(log)-i)
			if _, err := other.Apply(log[i:i+n], nobody{}); err != nil {
				t.Fatal(err)
			}
			i += n
			switch r.IntN(6) {
			case 0:
				if err := other.Engine.Flush(); err != nil {
					t.Fatal(err)
				}
			case 1:
				fsys = fsys.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: r})
				other.Engine.Close()
				other = openState(t, fsys)
				i = int(other.Applied.Index - BootstrapPosition.Index)
			}
		}
		if a, b := rows(t, one), rows(t, other); !bytes.Equal(a, b) {
			t.Fatalf("seed %d: the states differ:\n%s\n--\n%s", seed, a, b)
		}
		one.Engine.Close()
		other.Engine.Close()
	}
}
