package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/server"
	"github.com/trivet-kv/trivet/internal/transport"
)

// Options describe a run. Zero values take the defaults.
type Options struct {
	Seed     uint64
	Members  int           // default 3
	Spares   int           // nodes that are no members at first and may join; default 2, negative: none
	Clients  int           // default 5
	Keys     int           // default 4
	Duration time.Duration // of faults and requests, in fake time; default 20 s
	Think    time.Duration // the longest pause of a client between two requests; default 20 ms

	ValueBytes int      // of each value, about; default 64
	Faults     []string // the only kinds of fault, by the names in trouble.go; default all

	// SyncsLate plants a bug: the files of the raft log say at once that they are synced, and are so much later, as if
	// members acknowledged before the fsync. The run must fail then. Only "power cut" goes well with it, and a
	// MemTableBytes and a LogSegmentBytes that are never reached: members that are left with different parts of what they
	// acknowledged, or with state that is ahead of the log, make raft panic, as it should, and a segment whose beginning
	// is lost is refused at the start, before any client can be disappointed.
	SyncsLate time.Duration
	// Zombies plants a bug: members do not tell others that they were removed. The run must fail then.
	Zombies bool
	// ForgetLogs plants another: in the fault "lost data" the member does not know that it lost its log, and goes on with an
	// empty one. LeaderGone makes that fault the last one of a run, and the leader that dies in it stay away: with the bug it
	// could not come back, for what it holds as agreed is no more.
	ForgetLogs, LeaderGone bool
	// QuotaBytes is the size of a member's state from which on it takes nothing that makes it grow; default: never reached.
	QuotaBytes int64
	// MemTableBytes is how much a member applies before it makes its state durable; default 64 KiB.
	MemTableBytes int64
	// LogSegmentBytes is the length of a segment of the raft log; default 64 KiB.
	LogSegmentBytes int64

	Logger *slog.Logger // of the members and of what the run does to them; default: none
}

// Vary draws a cluster, its clients and their habits from the seed, and leaves the rest of o as it is.
func (o Options) Vary() Options {
	rng := rand.New(rand.NewPCG(o.Seed, 3))
	o.Members = [...]int{3, 3, 3, 5, 1}[rng.IntN(5)]
	o.Clients = 2 + rng.IntN(10)
	o.Keys = 1 + rng.IntN(8)
	o.Think = time.Duration(1+rng.IntN(40)) * time.Millisecond
	o.ValueBytes = 1 << rng.IntN(10)
	o.MemTableBytes = 32 << (10 + rng.IntN(6))
	return o
}

func (o *Options) setDefaults() {
	def := func(n *int, d int) {
		if *n == 0 {
			*n = d
		}
	}
	def(&o.Members, 3)
	def(&o.Spares, 2)
	def(&o.Clients, 5)
	def(&o.Keys, 4)
	def(&o.ValueBytes, 64)
	if o.Duration == 0 {
		o.Duration = 20 * time.Second
	}
	if o.Think == 0 {
		o.Think = 20 * time.Millisecond
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 64 << 10
	}
	if o.LogSegmentBytes == 0 {
		o.LogSegmentBytes = 64 << 10
	}
	if o.Logger == nil {
		o.Logger = discard
	}
}

// Outcome is what a run left behind: what clients were answered, and what happened.
type Outcome struct {
	Report
	ops []*Op
	log *Log // nil if the run ended before the members agreed
}

// Check holds the answers that clients were given against what happened; see the function Check. It is to be called
// outside the bubble, for patience is of the wall clock.
func (o *Outcome) Check(patience time.Duration) error {
	if o.log == nil {
		return nil
	}
	return Check(o.ops, o.log, patience)
}

// Report says what a run was made of.
type Report struct {
	Requests, Unknown int
	Leases            int
	Revision          int64
	Events            int // that all watchers saw together
	Skipped           int // stretches of history that watchers were told to be compacted
	Faults            map[string]int
	Checkpoints       int64 // that members installed
	NoSpace           int   // faults after which the alarm NOSPACE was raised
}

func (r Report) String() string {
	return fmt.Sprintf("%d requests, %d without answer, %d leases, %d revisions, %d events watched, %d compacted under watchers, %d checkpoints installed, faults %v",
		r.Requests, r.Unknown, r.Leases, r.Revision, r.Events, r.Skipped, r.Checkpoints, r.Faults)
}

// run is one simulation under way.
type run struct {
	o       Options
	began   time.Time
	network *transport.Network
	history *History
	nodes   []*node // members and spares
	keys    []string
	changes changes

	watchers []*watcher
	clients  []*client
	tenants  []*tenant
	deaths   deaths
	leases   []held      // that the tenants had; written when they have ended
	calm     atomic.Bool // clients stop

	report      Report
	checkpoints atomic.Int64
}

func (r *run) quiet() bool { return r.calm.Load() }

// Run simulates one cluster. The error tells what its watchers and holders of leases were promised and did not get, and
// whether its members came to agree; what its clients were answered is in the Outcome, for Outcome.Check. Run must be
// called inside a bubble of testing/synctest, which gives it its own time; every goroutine it started has ended when it
// returns.
//
// The seed decides the faults and when they come, the requests and the manners of network and disks. It does not decide
// which of several goroutines that could run does run first, so two runs of one seed are alike but not the same; with
// one processor (GOMAXPROCS=1, -cpu 1) they are nearly so. A fault that was found once with a seed may need some
// repetitions to be found again with it.
func Run(o Options) (*Outcome, error) {
	o.setDefaults()
	r := newRun(o)
	defer r.network.Close()
	defer r.bury()
	for _, n := range r.members() {
		if err := n.start(); err != nil {
			return &Outcome{Report: r.report}, err
		}
		r.changes.mayVote[n.id] = true
	}
	watching, stopWatching := context.WithCancel(context.Background())
	var watchers, clients sync.WaitGroup
	defer watchers.Wait()
	defer stopWatching()
	for _, w := range r.watchers {
		watchers.Go(func() { w.loop(watching, r.nodes) })
	}
	for _, c := range r.clients {
		clients.Go(c.loop)
	}
	had := make([][]held, len(r.tenants))
	for i, t := range r.tenants {
		clients.Go(func() { had[i] = t.loop() })
	}
	err := r.trouble()
	r.calm.Store(true)
	clients.Wait()
	r.leases = slices.Concat(had...)
	if err != nil {
		return &Outcome{Report: r.report}, err
	}
	l, err := r.judge()
	return &Outcome{Report: r.report, ops: r.history.Ops(), log: l}, err
}

func newRun(o Options) *run {
	r := &run{
		o: o, began: time.Now(), history: &History{},
		network: transport.NewNetwork(manners(rand.New(rand.NewPCG(o.Seed, 1)), o.Seed)),
	}
	r.report.Faults, r.deaths.at = map[string]int{}, map[string]time.Duration{}
	disk := DiskOptions{Slow: []string{"/log/"}, SyncDelay: 2 * time.Millisecond, SyncsLate: o.SyncsLate}
	if o.SyncsLate == 0 {
		disk.Slow = append(disk.Slow, "/STATE") // so that putting a received checkpoint in place takes time too
	}
	known := func() map[uint64]bool { return map[uint64]bool{} }
	r.changes = changes{asked: known(), removed: known(), promoted: known(), mayVote: known()}
	r.addNodes(disk)
	for i := range o.Keys {
		r.keys = append(r.keys, fmt.Sprintf("k%d", i))
	}
	for i := range o.Clients {
		r.clients = append(r.clients, &client{run: r, id: i, rng: rand.New(rand.NewPCG(o.Seed, 100+uint64(i))), seen: map[string]int64{}})
	}
	for i := range 2 {
		r.tenants = append(r.tenants, newTenant(r, o.Clients+i))
	}
	for i := range 6 {
		w := &watcher{run: r, rng: rand.New(rand.NewPCG(o.Seed, 200+uint64(i))), sleepy: i >= 4}
		w.saw = Watched{Name: fmt.Sprintf("w%d", i), From: 1}
		if i%2 == 1 {
			w.saw.Key = r.keys[i%len(r.keys)]
		}
		r.watchers = append(r.watchers, w)
	}
	return r
}

// addNodes makes the founders, and the spares, which join later if at all.
func (r *run) addNodes(disk DiskOptions) {
	o := &r.o
	var founders []server.Founder
	for i := range o.Members + max(0, o.Spares) {
		founders = append(founders, server.Founder{Name: fmt.Sprintf("m%d", i+1), PeerURLs: []string{fmt.Sprintf("http://m%d:2380", i+1)}})
	}
	for i, f := range founders {
		options := server.Options{
			DataDir: "/data", Name: f.Name, PeerURLs: f.PeerURLs, ClientURLs: []string{fmt.Sprintf("http://%s:2379", f.Name)},
			Founders: founders[:o.Members], Token: "sim", Logger: o.Logger, MaxLearners: uint64(len(founders)), StrictReconfig: o.Seed%2 == 0,
			Tick: 20 * time.Millisecond, ElectionTicks: 10, SlowDisk: 100 * time.Millisecond,
			// Little of everything, so that logs are cut, tables flushed and checkpoints sent within seconds.
			CatchupEntries: 100, MemTableBytes: o.MemTableBytes, CacheBytes: 1 << 20, LogSegmentBytes: o.LogSegmentBytes,
			IntegrityInterval: time.Second, QuotaBytes: o.QuotaBytes,
		}
		options.Observer.Replica.Installed = func(uint64, time.Duration) { r.checkpoints.Add(1) }
		n := &node{
			name: f.Name, network: r.network, history: r.history, options: options, in: i < o.Members, untold: o.Zombies,
			disk: NewDisk(o.Seed<<8|uint64(i), disk),
		}
		if !n.in {
			r.newcomer(n, false)
		}
		r.nodes = append(r.nodes, n)
	}
}

// bury waits until all lives have ended.
func (r *run) bury() {
	for _, n := range r.nodes {
		n.crash(100)
	}
	for _, n := range r.nodes {
		n.ended.Wait()
		for _, d := range append(n.wiped, n.disk) {
			d.Wait()
		}
	}
}

// recovery is how long, in fake time, an undisturbed cluster may take to be as it should.
const recovery = 60 * time.Second

// judge ends all disturbance, waits until the members agree, and checks what watchers and holders of leases were told.
func (r *run) judge() (*Log, error) {
	last, err := r.settle()
	if err != nil {
		return nil, err
	}
	r.finalReads()
	l, err := r.truth(last)
	if err != nil {
		return nil, err
	}
	ops := r.history.Ops()
	r.count(ops, last)
	var broken errList
	checkLeases(&broken, r.leases, &r.deaths, l)
	errs := []error{broken.err(), r.leasesLeft()}
	for _, w := range r.watchers {
		errs = append(errs, r.arrived(w, l))
	}
	return l, errors.Join(append(errs, r.lateWatchers(l)...)...)
}

// lateWatchers read, at the end, all the history that is left from each member alone.
func (r *run) lateWatchers(l *Log) []error {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	var late []*watcher
	for i, n := range r.members() {
		w := &watcher{run: r, rng: rand.New(rand.NewPCG(r.o.Seed, 400+uint64(i)))}
		w.saw = Watched{Name: "of " + n.name + " at the end", From: max(1, n.current().member.Store().CompactRevision())}
		late = append(late, w)
		running.Go(func() { w.loop(ctx, []*node{n}) })
	}
	var errs []error
	for _, w := range late {
		errs = append(errs, r.arrived(w, l))
	}
	return errs
}

func (r *run) count(ops []*Op, last int64) {
	r.report.Requests, r.report.Leases, r.report.Revision, r.report.Checkpoints = len(ops), len(r.leases), last, r.checkpoints.Load()
	for _, o := range ops {
		if !o.Known {
			r.report.Unknown++
		}
	}
	for _, w := range r.watchers {
		r.report.Events += len(w.saw.Seen)
		r.report.Skipped += len(w.saw.Skipped)
	}
}

// settle brings every member back and waits until all hold the same: revision, compact revision and hash, and who they are.
func (r *run) settle() (revision int64, err error) {
	r.network.Heal()
	r.network.SetOptions(transport.NetworkOptions{MaxDelay: time.Millisecond})
	for _, n := range r.members() {
		if n.current() == nil {
			if err := r.up(n); err != nil {
				return 0, err
			}
		}
	}
	// Requests that nobody waits for any more may still be on their way, and leases have to end.
	time.Sleep(15 * time.Second)
	if err := r.makeRoom(); err != nil {
		return 0, err
	}
	state := ""
	for deadline := time.Now().Add(recovery); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err := r.look(); err != nil {
			return 0, err
		}
		var same bool
		revision, same, state = r.hashes()
		who := r.whoIsIn()
		if same && who == nil {
			return revision, nil
		}
		if who != nil {
			state += who.Error()
		}
	}
	return 0, fmt.Errorf("agreement: the members do not agree %v after the last fault: %s", recovery, state)
}

// makeRoom compacts until no member has too little space. The alarms must go by themselves then.
func (r *run) makeRoom() error {
	rng := rand.New(rand.NewPCG(r.o.Seed, 5))
	for deadline := time.Now().Add(recovery); r.noSpace(); time.Sleep(500 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("quota: the alarm NOSPACE is raised %v after nobody writes any more and all history is compacted", recovery)
		}
		if err := compact(r, rng); err != nil {
			return err
		}
	}
	return nil
}

// noSpace reports whether some member knows of an alarm NOSPACE.
func (r *run) noSpace() bool {
	for _, n := range r.members() {
		if l := n.current(); l != nil && slices.ContainsFunc(l.member.Alarms(), func(a kv.Alarm) bool { return a.Type == kv.AlarmNoSpace }) {
			return true
		}
	}
	return false
}

// hashes asks all members for the hash of everything they hold.
func (r *run) hashes() (revision int64, same bool, state string) {
	type answer struct {
		hash              uint32
		compact, revision int64
	}
	var first answer
	same = true
	for i, n := range r.members() {
		l := n.current()
		ctx, cancel := context.WithTimeout(l.ctx, 5*time.Second)
		err := l.member.ReadBarrier(ctx)
		var got *pb.HashKVResponse
		if err == nil {
			got, err = l.services.HashKV(ctx, &pb.HashKVRequest{})
		}
		cancel()
		if err != nil {
			same = false
			state += fmt.Sprintf("%s: %v; ", n.name, err)
			continue
		}
		a := answer{got.Hash, got.CompactRevision, got.HashRevision}
		state += fmt.Sprintf("%s: %+v; ", n.name, a)
		if i == 0 {
			first = a
		}
		same = same && a == first
	}
	return first.revision, same, state
}

// finalReads asks each member for every key, so that porcupine sees how it ended.
func (r *run) finalReads() {
	c := &client{run: r, id: r.o.Clients + len(r.tenants), rng: rand.New(rand.NewPCG(r.o.Seed, 300)), seen: map[string]int64{}}
	for _, n := range r.members() {
		for _, key := range r.keys {
			c.send(n.current(), Op{Client: c.id, Kind: Get, Key: key})
		}
		c.send(n.current(), Op{Client: c.id, Kind: List})
	}
}

// truth is what happened, as the members hold it at the end: they agree by their hashes, so one of them is asked. What is
// compacted there is taken from the first watcher that has seen all of it; if another watcher saw it differently, the
// check of what that one saw will tell.
func (r *run) truth(last int64) (*Log, error) {
	store := r.members()[0].current().member.Store()
	compacted := store.CompactRevision()
	events, err := r.compacted(compacted)
	if err != nil {
		return nil, err
	}
	err = store.Events(context.Background(), max(compacted, 1)+1, last, func(e kv.Event) error {
		events = append(events, eventOf(e))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the history of revisions %d to %d: %w", compacted+1, last, err)
	}
	return NewLog(events, last)
}

// compacted returns the history up to a revision, as the first of the watchers of everything saw it that missed none.
func (r *run) compacted(upTo int64) ([]Event, error) {
	if upTo <= 1 {
		return nil, nil
	}
	for deadline := time.Now().Add(recovery); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		for _, w := range r.watchers {
			w.mu.Lock()
			fault, seen := w.fault, w.saw.Seen
			has := w.saw.Key == "" && len(w.saw.Skipped) == 0 && w.saw.Next() > upTo
			w.mu.Unlock()
			if fault != nil {
				return nil, fault
			}
			if has {
				end := sort.Search(len(seen), func(i int) bool { return seen[i].Revision > upTo })
				return slices.Clone(seen[:end]), nil
			}
		}
	}
	return nil, fmt.Errorf("watch: no watcher of everything reached revision %d within %v", upTo, recovery)
}

// arrived waits until the watcher has seen everything, and tells what is wrong if it does not come to that.
func (r *run) arrived(w *watcher, l *Log) error {
	for deadline := time.Now().Add(recovery); ; time.Sleep(100 * time.Millisecond) {
		w.mu.Lock()
		err := w.fault
		if err == nil {
			err = w.saw.Check(l, l.Last)
		}
		w.mu.Unlock()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}
