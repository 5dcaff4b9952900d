package sim

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
)

var (
	seeds   = flag.Int("seeds", 0, "how many seeds TestSoak runs")
	seed    = flag.Uint64("seed", 0, "run this seed alone, in TestSoak, with the members' logs on stderr if -v is given")
	faults  = flag.String("faults", "", "the only faults of TestSoak, with commas between them; \"members\": those of TestMembersChange")
	soakFor = flag.Duration("soak-duration", 60*time.Second, "fake time that each seed of TestSoak runs for")
)

// patience is how long one seed may take of the wall clock. A run that does not come back in that time is stuck: its
// members send messages for ever without time going on, or somebody waits for a mutex whose holder sleeps.
const patience = 8 * time.Minute

// simulate runs one seed in a bubble of its own.
func simulate(t *testing.T, o Options) (report Report, err error) {
	stuck := time.AfterFunc(patience, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("seed %d is stuck: %v of wall time have gone by", o.Seed, patience))
	})
	defer stuck.Stop()
	var out *Outcome
	bubble.Test(t, func(*testing.T) { out, err = Run(o) })
	return out.Report, errors.Join(err, out.Check(time.Minute))
}

// TestSimulation runs a fixed set of seeds, short ones.
func TestSimulation(t *testing.T) {
	n := 12
	if testing.Short() {
		n = 4
	}
	for seed := range uint64(n) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			began := time.Now()
			report, err := simulate(t, Options{Seed: seed})
			t.Logf("%v of wall time: %v", time.Since(began).Round(time.Millisecond), report)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		})
	}
}

// TestOneMember runs clusters of a single member, which has nobody to ask what is committed: what it showed to a reader must be
// durable (E#14140).
func TestOneMember(t *testing.T) {
	o := Options{Members: 1, Faults: []string{"crash one", "power cut", "stop one", "slow disk"}}
	for o.Seed = range uint64(4) {
		if report, err := simulate(t, o); err != nil {
			t.Fatalf("seed %d (%v): %v", o.Seed, report, err)
		}
	}
}

// TestHungDisks runs clusters whose disks hang or are slow again and again, and little else: leaders must hand over, and
// nothing may be lost.
func TestHungDisks(t *testing.T) {
	o := Options{Faults: []string{"hung disk", "slow disk", "crash one"}}
	for o.Seed = range uint64(4) {
		report, err := simulate(t, o)
		t.Logf("seed %d: %v", o.Seed, report)
		if err != nil {
			t.Fatalf("seed %d (%v): %v", o.Seed, report, err)
		}
	}
}

// TestFullDisks runs clusters whose disks are full again and again. No member may end by it, and nothing may be lost.
func TestFullDisks(t *testing.T) {
	o := Options{Faults: []string{"full disk", "crash one", "compact", "crash long"}}
	for o.Seed = range uint64(4) {
		report, err := simulate(t, o)
		t.Logf("seed %d: %v", o.Seed, report)
		if err != nil {
			t.Fatalf("seed %d (%v): %v", o.Seed, report, err)
		}
	}
}

// TestQuotas runs clusters whose states reach their quota again and again, under crashes: the alarm is raised and clears itself, on all
// members alike, what was taken is kept, and what was refused did not happen.
func TestQuotas(t *testing.T) {
	o := Options{QuotaBytes: 192 << 10, ValueBytes: 4 << 10, Faults: []string{"compact", "crash one", "crash all", "power cut", "crash long", "move leader", "stop one"}}
	raised := 0
	for o.Seed = range uint64(3) {
		report, err := simulate(t, o)
		t.Logf("seed %d: NOSPACE after %d faults; %v", o.Seed, report.NoSpace, report)
		if raised += report.NoSpace; err != nil {
			t.Fatalf("seed %d (%v): %v", o.Seed, report, err)
		}
	}
	if raised == 0 {
		t.Error("no quota was reached")
	}
}

// changing are the faults of runs that are about who the members are.
var changing = []string{
	"join", "join all", "promote", "remove", "remove leader", "remove while down", "wipe", "update", "crash one", "slow disk", "compact",
}

// TestMembersChange runs clusters whose members come and go all the time.
func TestMembersChange(t *testing.T) {
	n := 4
	if testing.Short() {
		n = 2
	}
	for seed := range uint64(n) {
		report, err := simulate(t, Options{Seed: seed, Faults: changing})
		t.Logf("seed %d: %v", seed, report)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestZombiesAreFound makes sure that members which go on after their removal, because nobody tells them, are found out.
func TestZombiesAreFound(t *testing.T) {
	for seed := range uint64(plantedSeeds) {
		report, err := simulate(t, Options{Seed: seed, Faults: []string{"join", "promote", "remove while down"}, Zombies: true})
		t.Logf("seed %d (%v) finds: %.300v", seed, report, err)
		if err != nil && strings.Contains(err.Error(), "membership: ") {
			return
		}
	}
	t.Fatalf("members that are not told of their removal ran %d seeds, and nothing was found", plantedSeeds)
}

// plantedSeeds is how many seeds may pass before the planted bug is found.
const plantedSeeds = 5

var plantedOptions = Options{Faults: []string{"power cut"}, Duration: 5 * time.Second, MemTableBytes: 64 << 20, LogSegmentBytes: 16 << 20}

// TestPlantedBug makes sure that a cluster which acknowledges before the fsync is found out, by what its clients were
// told: a write that was acknowledged and is lost, and requests that porcupine cannot put in one order.
func TestPlantedBug(t *testing.T) {
	o := plantedOptions
	o.SyncsLate = 200 * time.Millisecond
	missing := map[string]bool{"write: acknowledged": true, "linearizable:": true}
	for o.Seed = range uint64(plantedSeeds) {
		report, err := simulate(t, o)
		t.Logf("seed %d (%v) finds: %.1000v", o.Seed, report, err)
		for kind := range missing {
			if err != nil && strings.Contains(err.Error(), kind) {
				delete(missing, kind)
			}
		}
		if len(missing) == 0 {
			return
		}
	}
	t.Fatalf("members that acknowledge before the fsync ran %d seeds, and nothing was found of kind %v", plantedSeeds, missing)
}

// TestSameFaultsWithoutTheBug makes sure that it is the bug that TestPlantedBug finds.
func TestSameFaultsWithoutTheBug(t *testing.T) {
	o := plantedOptions
	for o.Seed = range uint64(plantedSeeds) {
		if report, err := simulate(t, o); err != nil {
			t.Fatalf("seed %d (%v): %v", o.Seed, report, err)
		}
	}
}

// lostDataOptions make the leader and one other agree, for a third that is cut off, on what the other forgets.
var lostDataOptions = Options{Faults: []string{"lost data"}, Duration: 8 * time.Second, MemTableBytes: 64 << 20, LeaderGone: true}

// TestPlantedForgetting makes sure that a member which goes on without its log, as if it had never had one, is found out: a
// write that was acknowledged is lost.
func TestPlantedForgetting(t *testing.T) {
	o := lostDataOptions
	o.ForgetLogs = true
	for o.Seed = range uint64(plantedSeeds) {
		report, err := simulate(t, o)
		t.Logf("seed %d (%v) finds: %.1000v", o.Seed, report, err)
		if err != nil && strings.Contains(err.Error(), "write: acknowledged") {
			return
		}
	}
	t.Fatalf("members that forget their logs ran %d seeds, and no write was found to be lost", plantedSeeds)
}

// TestLostData makes sure that it is the bug that TestPlantedForgetting finds, and runs the fault with leaders that come back.
func TestLostData(t *testing.T) {
	for _, gone := range []bool{true, false} {
		o := lostDataOptions
		o.LeaderGone = gone
		for o.Seed = range uint64(plantedSeeds) {
			if report, err := simulate(t, o); err != nil {
				t.Fatalf("seed %d (%v): %v", o.Seed, report, err)
			}
		}
	}
}

// TestSoak runs as many seeds as asked for, longer ones, from one that differs between runs; or one seed again:
//
//	go test ./internal/sim -run Soak -seeds 100 -timeout 0
//	go test ./internal/sim -run Soak -seeds 100 -faults members -timeout 0
//	go test ./internal/sim -run Soak -seed 12345 -v
func TestSoak(t *testing.T) {
	o := Options{Duration: *soakFor}
	if *faults != "" {
		o.Faults = strings.Split(*faults, ",")
	}
	if *faults == "members" {
		o.Faults = changing
	}
	if *seed != 0 {
		if o.Seed = *seed; testing.Verbose() {
			o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		report, err := simulate(t, o.Vary())
		if t.Log(report); err != nil {
			t.Fatalf("seed %d: %v", o.Seed, err)
		}
		return
	}
	first := uint64(time.Now().UnixNano()) & 0xffffffff
	for i := range uint64(*seeds) {
		o.Seed = first + i
		t.Logf("seed %d", o.Seed) // with -v it is seen at once, should the run not come back
		began := time.Now()
		report, err := simulate(t, o.Vary())
		if t.Logf("seed %d: %v of wall time: %v", o.Seed, time.Since(began).Round(time.Millisecond), report); err != nil {
			t.Errorf("seed %d: %v", o.Seed, err)
		}
	}
}
