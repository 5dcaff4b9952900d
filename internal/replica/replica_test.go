package replica

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/transport"
)

// TestScenarios runs the text scenarios in testdata; -rewrite writes what came out into them. Times are those of the
// bubble: a scenario takes as long as its code runs.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		bubble.Test(t, func(t *testing.T) {
			s := &scenario{t: t, waiting: map[string]chan error{}}
			defer func() {
				if s.cl != nil {
					s.cl.close()
				}
			}()
			datadriven.RunTest(t, path, s.run)
		})
	})
}

type scenario struct {
	t       *testing.T
	cl      *cluster
	d       *datadriven.TestData
	waiting map[string]chan error // what runs in the background, by name
	fills   int
}

func (s *scenario) run(t *testing.T, d *datadriven.TestData) string {
	s.d = d
	commands := map[string]func() string{
		"cluster": s.cluster, "campaign": s.campaign, "leader": s.leader, "propose": s.propose, "read": s.read,
		"wait": s.wait, "check": s.check, "partition": s.partition, "heal": s.heal, "cut": s.cut, "crash": s.crash,
		"start": s.start, "stop": s.stop, "pause": s.pause, "resume": s.resume, "disk": s.disk, "apply": s.apply,
		"run": s.sleep, "transfer": s.transfer, "status": s.status, "members": s.members, "fill": s.fill, "files": s.files,
	}
	f := commands[d.Cmd]
	if f == nil {
		d.Fatalf(t, "no such command; there are %s", strings.Join(sortedKeys(commands), " "))
	}
	return f()
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// num and dur read arguments like from=1 and limit=2s.
func (s *scenario) num(key string, otherwise uint64) uint64 {
	if !s.d.HasArg(key) {
		return otherwise
	}
	var n uint64
	s.d.ScanArgs(s.t, key, &n)
	return n
}

func (s *scenario) dur(key string, otherwise time.Duration) time.Duration {
	if !s.d.HasArg(key) {
		return otherwise
	}
	var text string
	s.d.ScanArgs(s.t, key, &text)
	d, err := time.ParseDuration(text)
	s.cl.must(err)
	return d
}

// ids reads plain numbers among the arguments, and "leader" and "others".
func (s *scenario) ids() (ids []uint64) {
	for _, a := range s.d.CmdArgs {
		if len(a.Vals) > 0 || a.Key == "any" || a.Key == "background" || a.Key == "log" {
			continue
		}
		if a.Key == "leader" {
			ids = append(ids, s.cl.leader())
			continue
		}
		id, err := strconv.ParseUint(a.Key, 10, 64)
		if err != nil {
			s.d.Fatalf(s.t, "%q is no member", a.Key)
		}
		ids = append(ids, id)
	}
	return ids
}

func (s *scenario) each(f func(id uint64)) string {
	for _, id := range s.ids() {
		f(id)
	}
	synctest.Wait()
	return ""
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, context.DeadlineExceeded):
		return "timed out"
	}
	for _, known := range []error{kv.ErrTooManyRequests, kv.ErrStopped, kv.ErrNotLeader, kv.ErrNoLeader, kv.ErrBadLeaderTransferee, kv.ErrLeaderTransferTimeout} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return err.Error()
}

func (s *scenario) cluster() string {
	c := Config{
		CatchupEntries:     s.num("catchup", 0),
		MaxQueuedProposals: int(s.num("max-proposals", 0)),
		MaxQueuedReads:     int(s.num("max-reads", 0)),
		MaxEntryBytes:      int(s.num("max-entry", 0)),
		MaxInflightBatches: int(s.num("max-inflight", 0)),
		SlowDisk:           s.dur("slow-disk", 0),
	}
	delay := time.Millisecond
	s.cl = newCluster(s.t, int(s.num("voters", 3)), int(s.num("learners", 0)),
		transport.NetworkOptions{Seed: 1, MinDelay: delay, MaxDelay: delay}, c)
	return ""
}

func (s *scenario) campaign() string {
	id := s.ids()[0]
	s.cl.must(s.cl.campaign(id))
	if !s.cl.until(3*time.Second, func() bool { return s.cl.leader() == id }) {
		return fmt.Sprintf("member %d has not become leader", id)
	}
	return ""
}

// leader waits until the members alive (or those named) agree on a leader, and says who, and whether it was there within
// the time given.
func (s *scenario) leader() string {
	among := s.ids()
	within := s.dur("within", 5*time.Second)
	if !s.cl.until(within, func() bool { return s.cl.leader(among...) != 0 }) {
		return fmt.Sprintf("no leader within %s", within)
	}
	if s.d.HasArg("any") {
		return fmt.Sprintf("a leader within %s", within)
	}
	return fmt.Sprintf("leader %d", s.cl.leader(among...))
}

// propose has one command per line of input, or n of them; in the background if it has a name.
func (s *scenario) propose() string {
	from, limit := s.num("from", 1), s.dur("limit", 3*time.Second)
	var out []string
	for _, line := range strings.Fields(s.d.Input) {
		if s.d.HasArg("background") {
			ch := make(chan error, 1)
			s.waiting[line] = ch
			cl := s.cl
			go func() { ch <- cl.propose(from, line, limit) }()
			continue
		}
		out = append(out, line+": "+outcome(s.cl.propose(from, line, limit)))
	}
	synctest.Wait()
	return strings.Join(out, "\n")
}

// fill proposes n commands at once through one member and waits until that member has applied all of them. It counts its
// own: the member may still be applying what others proposed before.
func (s *scenario) fill() string {
	from, n := s.num("from", 1), int(s.num("n", 100))
	r := s.cl.members[from].node.r
	refused := map[string]int{}
	size := s.num("size", 10)
	s.fills++
	prefix := fmt.Sprintf("fill-%d-", s.fills)
	taken := 0
	for i := range n {
		err := r.Propose(s.t.Context(), nil, []byte(prefix+strconv.Itoa(i)+"-"+strings.Repeat("x", int(size))))
		if err != nil {
			refused[outcome(err)]++
			continue
		}
		taken++
	}
	out := fmt.Sprintf("%d taken", taken)
	for _, k := range sortedKeys(refused) {
		out += fmt.Sprintf(", %d refused: %s", refused[k], k)
	}
	applied := func() (n int) {
		for _, cmd := range s.cl.members[from].node.machine.commands() {
			if strings.HasPrefix(cmd, prefix) {
				n++
			}
		}
		return n
	}
	if !s.d.HasArg("background") && !s.cl.until(10*time.Second, func() bool { return applied() == taken }) {
		out += fmt.Sprintf(", %d applied", applied())
	}
	return out
}

// read does a linearizable read and says whether everything acknowledged before it is seen.
func (s *scenario) read() string {
	from, limit := s.num("from", 1), s.dur("limit", 3*time.Second)
	name := "read-" + strconv.FormatUint(from, 10)
	if s.d.HasArg("background") {
		ch := make(chan error, 1)
		s.waiting[name] = ch
		cl := s.cl
		go func() { ch <- cl.read(from, limit) }()
		synctest.Wait()
		return ""
	}
	start := time.Now()
	err := s.cl.read(from, limit)
	if err == nil && s.d.HasArg("took") {
		return fmt.Sprintf("ok after %s", time.Since(start))
	}
	return outcome(err)
}

func (cl *cluster) read(from uint64, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(cl.t.Context(), limit)
	defer cancel()
	acked := cl.acknowledged()
	n := cl.members[from].node
	if err := n.r.ReadBarrier(ctx, nil); err != nil {
		return err
	}
	for _, cmd := range acked {
		if !n.machine.has(cmd) {
			return fmt.Errorf("stale read: %q was acknowledged before and is not there", cmd)
		}
	}
	return nil
}

// wait reports on what runs in the background.
func (s *scenario) wait() string {
	var out []string
	for _, name := range sortedKeys(s.waiting) {
		out = append(out, name+": "+outcome(<-s.waiting[name]))
	}
	s.waiting = map[string]chan error{}
	return strings.Join(out, "\n")
}

func (s *scenario) check() string {
	if err := s.cl.check(s.dur("within", 10*time.Second)); err != nil {
		return err.Error()
	}
	return "all agree"
}

// partition a/b,c cuts {a} from {b, c}.
func (s *scenario) partition() string {
	var groups [][]uint64
	for _, text := range strings.Split(s.d.CmdArgs[0].Key, "/") {
		var g []uint64
		for _, id := range strings.Split(text, "-") {
			n, err := strconv.ParseUint(id, 10, 64)
			s.cl.must(err)
			g = append(g, n)
		}
		groups = append(groups, g)
	}
	s.cl.net.Partition(groups...)
	return ""
}

func (s *scenario) heal() string { s.cl.net.Heal(); return "" }

func (s *scenario) cut() string {
	s.cl.net.Cut(s.num("from", 0), s.num("to", 0))
	return ""
}

func (s *scenario) crash() string  { return s.each(s.cl.crash) }
func (s *scenario) start() string  { return s.each(s.cl.start) }
func (s *scenario) stop() string   { return s.each(s.cl.shutdown) }
func (s *scenario) pause() string  { return s.each(s.cl.net.Pause) }
func (s *scenario) resume() string { return s.each(s.cl.net.Resume) }

func (s *scenario) disk() string {
	return s.each(func(id uint64) { s.cl.members[id].node.fs.set(s.dur("sync", 0)) })
}

func (s *scenario) apply() string {
	return s.each(func(id uint64) {
		m := s.cl.members[id].node.machine
		m.mu.Lock()
		m.applyDelay = s.dur("takes", 0)
		m.mu.Unlock()
	})
}

func (s *scenario) sleep() string {
	time.Sleep(s.dur("for", time.Second))
	synctest.Wait()
	return ""
}

func (s *scenario) transfer() string {
	s.cl.until(5*time.Second, func() bool { return s.cl.leader() != 0 })
	return outcome(s.cl.members[s.num("from", s.cl.leader())].node.r.TransferLeadership(s.t.Context(), s.num("to", 2)))
}

func (s *scenario) status() string {
	var out []string
	for _, id := range s.ids() {
		st := s.cl.members[id].node.r.Status()
		m := s.cl.members[id].node.machine
		role := st.State.String()
		if st.Learner {
			role = "learner " + role
		}
		line := fmt.Sprintf("%d: %s of %d, voters %v, learners %v", id, role, st.Leader, st.Voters, st.Learners)
		if s.d.HasArg("log") {
			cut := "whole"
			if st.FirstIndex > 2 {
				cut = "cut"
			}
			line = fmt.Sprintf("%d: log %s, %d snapshots installed", id, cut, m.installs)
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// members changes the members: one change per line, such as "add 4", "learn 4", "remove 4".
func (s *scenario) members() string {
	var changes []MemberChange
	for _, line := range strings.Split(strings.TrimSpace(s.d.Input), "\n") {
		var c MemberChange
		var verb string
		if _, err := fmt.Sscan(line, &verb, &c.ID); err != nil {
			s.d.Fatalf(s.t, "%q: %v", line, err)
		}
		c.Remove, c.Learner = verb == "remove", verb == "learn"
		changes = append(changes, c)
	}
	from := s.cl.members[s.num("from", 1)].node
	before := len(from.machine.state.Contexts)
	if err := from.r.ChangeMembers(s.t.Context(), changes, []byte(s.d.Input)); err != nil {
		return outcome(err)
	}
	if !s.cl.until(3*time.Second, func() bool {
		from.machine.mu.Lock()
		defer from.machine.mu.Unlock()
		return len(from.machine.state.Contexts) > before
	}) {
		return "not applied"
	}
	return "applied with context " + strconv.Quote(from.machine.state.Contexts[before])
}

// files lists checkpoints that nobody needs any more and that are still there.
func (s *scenario) files() string {
	var left []string
	for _, id := range s.cl.alive() {
		fs := s.cl.members[id].node.fs
		for _, dir := range []string{"", "incoming"} {
			names, err := fs.List(dir)
			s.cl.must(err)
			for _, name := range names {
				if dir != "" || strings.HasPrefix(name, "checkpoint") {
					left = append(left, fmt.Sprintf("%d: %s", id, fs.PathJoin(dir, name)))
				}
			}
		}
	}
	if len(left) == 0 {
		return "no files are left"
	}
	return strings.Join(left, "\n")
}
