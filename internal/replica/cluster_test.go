package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/raftlog"
	"github.com/trivet-kv/trivet/internal/transport"
)

// A toy cluster: real replicas and logs, the network in memory, a state machine that is a list of strings, all inside a
// synctest bubble.

// toy is the state machine. What it has flushed survives a crash; the rest is replayed from the log, as with the engine.
type toy struct {
	fs vfs.FS

	mu         sync.Mutex
	state      toyState
	known      map[string]bool // the commands in state
	flushedTo  uint64
	flushEvery uint64
	onFlush    func(uint64)
	applyDelay time.Duration
	installing chan struct{} // if set, Install waits for it
	installs   int
	fail       error
}

type toyState struct {
	Applied   Position
	ConfState []byte
	Commands  []string
	Contexts  []string
}

const toyFile = "state/toy"

func openToy(fs vfs.FS, bootstrap toyState) (*toy, error) {
	m := &toy{fs: fs, flushEvery: 50, known: map[string]bool{}}
	if err := fs.MkdirAll("state", 0o700); err != nil {
		return nil, err
	}
	// The directory itself must survive a crash too.
	root, err := fs.OpenDir("")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(root.Sync(), root.Close()); err != nil {
		return nil, err
	}
	s, err := readToy(fs, toyFile)
	if errors.Is(err, os.ErrNotExist) {
		m.state = bootstrap
		return m, m.flushLocked()
	}
	m.flushedTo = s.Applied.Index
	m.replaceLocked(s)
	return m, err
}

func (m *toy) replaceLocked(s toyState) {
	m.state, m.known = s, map[string]bool{}
	for _, cmd := range s.Commands {
		m.known[cmd] = true
	}
}

func readToy(fs vfs.FS, name string) (s toyState, err error) {
	f, err := fs.Open(name)
	if err != nil {
		return s, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(b, &s)
}

func writeToy(fs vfs.FS, dir, name string, s toyState) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := fs.PathJoin(dir, name+".tmp")
	f, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close(), fs.Rename(tmp, fs.PathJoin(dir, name))); err != nil {
		return err
	}
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (m *toy) flushLocked() error {
	m.flushedTo = m.state.Applied.Index
	return writeToy(m.fs, "state", "toy", m.state)
}

func (m *toy) Apply(entries []command.Entry) error {
	m.mu.Lock()
	delay := m.applyDelay
	m.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	for _, e := range entries {
		if e.Index != m.state.Applied.Index+1 || e.Term < m.state.Applied.Term {
			return fmt.Errorf("entry %d of term %d after %+v", e.Index, e.Term, m.state.Applied)
		}
		m.state.Applied = Position{e.Index, e.Term}
		if len(e.Data) == 0 {
			continue
		}
		if err := command.Batch(e.Data, func(_ uint64, cmd []byte) error {
			m.state.Commands = append(m.state.Commands, string(cmd))
			m.known[string(cmd)] = true
			return nil
		}); err != nil {
			return err
		}
	}
	return m.maybeFlushLocked()
}

func (m *toy) maybeFlushLocked() error {
	if m.state.Applied.Index-m.flushedTo < m.flushEvery {
		return nil
	}
	if err := m.flushLocked(); err != nil {
		return err
	}
	m.onFlush(m.flushedTo)
	return nil
}

func (m *toy) CheckConf(command.Entry) (bool, error) { return true, nil }

func (m *toy) ApplyConf(e command.Entry, confState []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.Index != m.state.Applied.Index+1 {
		return fmt.Errorf("entry %d after %+v", e.Index, m.state.Applied)
	}
	m.state.Applied = Position{e.Index, e.Term}
	if confState == nil {
		e.Data = nil
	} else {
		m.state.ConfState = confState
	}
	m.state.Contexts = append(m.state.Contexts, string(e.Data))
	return m.maybeFlushLocked()
}

func (m *toy) Checkpoint(ctx context.Context) (Checkpoint, error) {
	m.mu.Lock()
	s := m.state
	s.Commands = slices.Clone(s.Commands)
	m.mu.Unlock()
	dir := fmt.Sprintf("checkpoint-%d", s.Applied.Index)
	if err := m.fs.MkdirAll(dir, 0o700); err != nil {
		return Checkpoint{}, err
	}
	return Checkpoint{dir, s.Applied, s.ConfState, func() { _ = m.fs.RemoveAll(dir) }}, writeToy(m.fs, dir, "toy", s)
}

func (m *toy) Install(_ context.Context, s Snapshot) error {
	got, err := readToy(m.fs, m.fs.PathJoin(s.Dir, "toy"))
	if err != nil {
		return err
	}
	if got.Applied != s.Applied || !bytes.Equal(got.ConfState, s.ConfState) {
		return fmt.Errorf("the files are at %+v, the snapshot at %+v", got.Applied, s.Applied)
	}
	m.mu.Lock()
	installing := m.installing
	m.mu.Unlock()
	if installing != nil {
		<-installing
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.replaceLocked(got)
	m.installs++
	return m.flushLocked()
}

func (m *toy) commands() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.state.Commands)
}

func (m *toy) has(cmd string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known[cmd]
}

// slowFS makes syncs take time, and calls step after everything that changes the disk.
type slowFS struct {
	vfs.FS
	mu    sync.Mutex
	delay time.Duration
	fail  error         // of every sync from now on
	hung  chan struct{} // if set, syncs wait until it is closed
	step  func()
}

func (s *slowFS) sync(f func() error) error {
	s.mu.Lock()
	d, fail, hung := s.delay, s.fail, s.hung
	s.mu.Unlock()
	if hung != nil {
		<-hung
	}
	if d > 0 {
		time.Sleep(d)
	}
	if fail != nil {
		return fail
	}
	return s.stepped(f())
}

// hang makes every sync wait until what it returns is called.
func (s *slowFS) hang() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hung := make(chan struct{})
	s.hung = hung
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.hung = nil
		close(hung)
	}
}

func (s *slowFS) breakSyncs(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *slowFS) stepped(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.step != nil {
		s.step() // one at a time
	}
	return err
}

func (s *slowFS) set(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

func (s *slowFS) watch(step func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step = step
}

func (s *slowFS) Rename(from, to string) error { return s.stepped(s.FS.Rename(from, to)) }
func (s *slowFS) Remove(name string) error     { return s.stepped(s.FS.Remove(name)) }
func (s *slowFS) RemoveAll(name string) error  { return s.stepped(s.FS.RemoveAll(name)) }

func (s *slowFS) OpenDir(name string) (vfs.File, error) {
	f, err := s.FS.OpenDir(name)
	return slowFile{f, s}, err
}

func (s *slowFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, c)
	return slowFile{f, s}, s.stepped(err)
}

func (s *slowFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := s.FS.OpenReadWrite(name, c, o...)
	return slowFile{f, s}, err
}

func (s *slowFS) ReuseForWrite(a, b string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.ReuseForWrite(a, b, c)
	return slowFile{f, s}, s.stepped(err)
}

type slowFile struct {
	vfs.File
	fs *slowFS
}

func (f slowFile) Sync() error     { return f.fs.sync(f.File.Sync) }
func (f slowFile) SyncData() error { return f.fs.sync(f.File.SyncData) }

func (f slowFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.fs.stepped(err)
}

func (f slowFile) WriteAt(p []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(p, at)
	return n, f.fs.stepped(err)
}

// member is one toy member; what lies on disk outlives node.
type member struct {
	id   uint64
	mem  *vfs.MemFS
	node *node
}

type node struct {
	fs       *slowFS
	log      *raftlog.Log
	machine  *toy
	endpoint *transport.Endpoint
	r        *Replica
}

// raftLog passes writes on under raftlog's own names.
type raftLog struct{ *raftlog.Log }

func (l raftLog) Append(w Write) {
	l.Log.Append(raftlog.Write{HardState: w.HardState, Entries: w.Entries, Reset: (*raftlog.Position)(w.Reset), Sync: w.Sync, Done: w.Done})
}

type cluster struct {
	t       *testing.T
	net     *transport.Network
	rng     *rand.Rand
	members map[uint64]*member
	config  Config // of every member, but for what is its own
	boot    toyState
	log     io.Writer
	ackMu   sync.Mutex
	acked   []string // commands that their proposer has seen applied
	origin  uint64
}

func newCluster(t *testing.T, voters, learners int, o transport.NetworkOptions, c Config) *cluster {
	cl := &cluster{
		t: t, net: transport.NewNetwork(o), rng: rand.New(rand.NewPCG(o.Seed, 77)), members: map[uint64]*member{}, config: c,
		log: io.Discard,
	}
	if os.Getenv("TRIVET_TEST_LOG") != "" {
		cl.log = os.Stderr
	}
	var vs, ls []uint64
	for i := range uint64(voters + learners) {
		if id := i + 1; int(i) < voters {
			vs = append(vs, id)
		} else {
			ls = append(ls, id)
		}
		cl.members[i+1] = &member{id: i + 1, mem: vfs.NewCrashableMem()}
	}
	cl.boot = toyState{Applied: Position{1, 1}, ConfState: EncodeConfState(vs, ls)}
	for _, id := range cl.ids() {
		cl.start(id)
	}
	return cl
}

func (cl *cluster) ids() []uint64 { return slices.Sorted(maps.Keys(cl.members)) }

func (cl *cluster) alive() (ids []uint64) {
	for _, id := range cl.ids() {
		if cl.members[id].node != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

func (cl *cluster) must(err error) {
	if err != nil {
		cl.t.Helper()
		cl.t.Fatal(err)
	}
}

// start opens a member's disk and runs it.
func (cl *cluster) start(id uint64) {
	cl.t.Helper()
	m := cl.members[id]
	fs := &slowFS{FS: m.mem}
	logger := slog.New(slog.NewTextHandler(cl.log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("member", id)
	log, err := raftlog.Open(raftlog.Options{FS: fs, Dir: "log", SegmentBytes: 16 << 10, Logger: logger})
	cl.must(err)
	machine, err := openToy(fs, cl.boot)
	cl.must(err)
	names, err := fs.List("")
	cl.must(err)
	for _, name := range names { // left by a crash
		if strings.HasPrefix(name, "checkpoint-") {
			cl.must(fs.RemoveAll(name))
		}
	}
	endpoint, err := cl.net.Join(transport.EndpointConfig{ID: id, FS: fs, Incoming: "incoming"})
	cl.must(err)
	c := cl.config
	cl.origin++
	checked := &checkedTransport{Endpoint: endpoint, t: cl.t}
	c.ID, c.Origin, c.Log, c.Machine, c.Transport = id, cl.origin<<8|id, raftLog{log}, machine, checked
	c.Applied, c.ConfState, c.Logger = machine.state.Applied, machine.state.ConfState, logger
	holder := make(chan *Replica, 1)
	machine.onFlush = func(applied uint64) {
		r := <-holder
		holder <- r
		r.Durable(applied)
	}
	r, err := Start(c)
	cl.must(err)
	checked.r.Store(r)
	holder <- r
	m.node = &node{fs, log, machine, endpoint, r}
	endpoint.Serve(peerHandler{r})
}

type peerHandler struct{ *Replica }

func (peerHandler) Serve(context.Context, uint64, byte, []byte) ([]byte, error) {
	return nil, errors.New("no calls here")
}

// crash ends a member as kill -9 of its process and machine would: unsynced data is lost, or some of it.
func (cl *cluster) crash(id uint64) {
	m := cl.members[id]
	cl.net.Crash(id)
	clone := m.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: cl.rng.IntN(101), RNG: cl.rng})
	m.node.stop()
	m.mem, m.node = clone, nil
}

// stop ends a node's goroutines.
func (n *node) stop() {
	n.r.Stop()
	_ = n.endpoint.Close()
	_ = n.log.Close()
}

// shutdown stops a member in order.
func (cl *cluster) shutdown(id uint64) {
	n := cl.members[id].node
	ctx, cancel := context.WithTimeout(cl.t.Context(), 5*time.Second)
	defer cancel()
	n.r.StopGracefully(ctx)
	n.stop()
	cl.members[id].node = nil
}

func (cl *cluster) close() {
	for _, id := range cl.alive() {
		cl.members[id].node.stop()
	}
	cl.net.Close()
	synctest.Wait()
}

// campaign makes a member stand for election now.
func (cl *cluster) campaign(id uint64) error {
	return cl.members[id].node.r.onLoop(cl.t.Context(), func(l *loop) { _ = l.rn.Campaign() })
}

// until polls in fake time.
func (cl *cluster) until(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		synctest.Wait()
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// leader is the member among those named, or alive, that they agree on, or zero.
func (cl *cluster) leader(among ...uint64) uint64 {
	if len(among) == 0 {
		among = cl.alive()
	}
	var leader uint64
	for i, id := range among {
		l := cl.members[id].node.r.Status().Leader
		if i > 0 && l != leader {
			return 0
		}
		leader = l
	}
	if !slices.Contains(among, leader) {
		return 0
	}
	return leader
}

// propose puts a command through one member, and notes it if that member has applied it within the limit.
func (cl *cluster) propose(id uint64, cmd string, limit time.Duration) error {
	n := cl.members[id].node
	ctx, cancel := context.WithTimeout(cl.t.Context(), limit)
	defer cancel()
	if err := n.r.Propose(ctx, nil, []byte(cmd)); err != nil {
		return err
	}
	for !n.machine.has(cmd) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(time.Millisecond)
	}
	cl.ackMu.Lock()
	defer cl.ackMu.Unlock()
	cl.acked = append(cl.acked, cmd)
	return nil
}

// check compares what the members alive hold: the same commands, each once, and all that were acknowledged.
func (cl *cluster) check(limit time.Duration) error {
	var err error
	cl.until(limit, func() bool {
		err = cl.compare()
		return err == nil
	})
	return err
}

func (cl *cluster) acknowledged() []string {
	cl.ackMu.Lock()
	defer cl.ackMu.Unlock()
	return slices.Clone(cl.acked)
}

func (cl *cluster) compare() error {
	var first []string
	for i, id := range cl.alive() {
		cmds := cl.members[id].node.machine.commands()
		if i == 0 {
			first = cmds
		}
		if !slices.Equal(first, cmds) {
			return fmt.Errorf("member %d holds %d commands, member %d holds %d, and they differ", cl.alive()[0], len(first), id, len(cmds))
		}
	}
	seen := map[string]bool{}
	for _, cmd := range first {
		if seen[cmd] {
			return fmt.Errorf("%q was applied twice", cmd)
		}
		seen[cmd] = true
	}
	for _, cmd := range cl.acknowledged() {
		if !seen[cmd] {
			return fmt.Errorf("%q was acknowledged and is gone", cmd)
		}
	}
	return nil
}
