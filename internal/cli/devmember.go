package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/trivet-kv/trivet/internal/config"
)

// maxDevLog is how long a member's log may be when the member starts; a longer one is put aside.
const maxDevLog = 16 << 20

// devMember is one member of the cluster of command dev. Its fields belong to devCluster's loop.
type devMember struct {
	name, clientURL, peerURL string
	dataDir, logPath         string
	executable               string
	args                     []string
	client                   *clientv3.Client // of this member only; made at its first start

	cmd      *exec.Cmd // nil: not running
	leaving  bool      // it was told to go, so its end is no news
	isReady  bool
	started  time.Time
	stopWait context.CancelFunc // ends the goroutine that waits for it to be ready
}

func newDevMember(d *devDir, i int, executable string, flags []string) *devMember {
	p := d.plan.Members[i]
	m := &devMember{
		name: p.Name, clientURL: loopback(p.ClientPort), peerURL: loopback(p.PeerPort),
		dataDir: filepath.Join(d.path, p.Name), logPath: filepath.Join(d.path, p.Name+".log"), executable: executable,
	}
	m.args = append([]string{"server", "--name", m.name, "--data-dir", m.dataDir,
		"--listen-client-urls", m.clientURL, "--advertise-client-urls", m.clientURL,
		"--listen-peer-urls", m.peerURL, "--initial-advertise-peer-urls", m.peerURL,
		"--initial-cluster", d.cluster(), "--initial-cluster-token", d.plan.Token}, flags...)
	return m
}

func (m *devMember) running() bool { return m.cmd != nil }

// devExit says that a member's process ended.
type devExit struct {
	member *devMember
	cmd    *exec.Cmd
}

func (e devExit) how() string { return e.cmd.ProcessState.String() }

// why is how it ended and, if it ended by itself, what it said of that.
func (e devExit) why() string {
	if !e.cmd.ProcessState.Exited() {
		return e.how() // by a signal, of which its log knows nothing
	}
	return e.how() + ": " + e.member.lastWords()
}

// devReady says that a member answers linearizable reads, or why it was not waited for any longer.
type devReady struct {
	member *devMember
	took   time.Duration
	err    error
}

// start starts the member's process and, in the background, waits for it to be ready.
func (d *devCluster) start(m *devMember) error {
	if info, err := os.Stat(m.logPath); err == nil && info.Size() > maxDevLog {
		if err := os.Rename(m.logPath, m.logPath+".old"); err != nil {
			return err
		}
	}
	if err := m.connect(); err != nil {
		return err
	}
	log, err := os.OpenFile(m.logPath, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	cmd := exec.Command(m.executable, m.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = memberEnvironment(os.Environ())
	cmd.SysProcAttr = childAttributes()
	if err := d.starter.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", m.name, err)
	}
	m.cmd, m.leaving, m.isReady, m.started = cmd, false, false, time.Now()
	var ctx context.Context
	ctx, m.stopWait = context.WithCancel(context.Background())
	d.waits.Go(func() { d.ready <- m.waitReady(ctx, m.started) })
	d.waits.Go(func() {
		_ = cmd.Wait() // how it ended is in its state
		d.exits <- devExit{m, cmd}
	})
	return nil
}

// connect makes the client at the first start.
func (m *devMember) connect() (err error) {
	if m.client != nil {
		return nil
	}
	m.client, err = clientv3.New(clientv3.Config{
		Endpoints: []string{m.clientURL}, Logger: zap.NewNop(),
		// The member comes and goes; be quick to notice that it is back.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: time.Second,
		})},
	})
	return err
}

// checkMemberFlags finds mistakes in flags for all members before anything is made.
func checkMemberFlags(flags []string) error {
	const url = "http://127.0.0.1:2379" // of this form are those that every member gets
	_, err := config.Load(append([]string{"--listen-client-urls", url, "--advertise-client-urls", url}, flags...), nil, os.ReadFile)
	if errors.Is(err, config.ErrHelp) || errors.Is(err, config.ErrVersion) {
		err = errors.New("a member cannot be started with it; trivet help server shows it")
	}
	if err != nil {
		return fmt.Errorf("flags for the members, %s: %w", strings.Join(flags, " "), err)
	}
	return nil
}

// memberEnvironment is the environment without what would change a member's settings or answer for it.
func memberEnvironment(environ []string) []string {
	var env []string
	for _, kv := range environ {
		if !strings.HasPrefix(kv, "ETCD_") && !strings.HasPrefix(kv, "NOTIFY_SOCKET=") {
			env = append(env, kv)
		}
	}
	return env
}

// waitReady asks the member until it answers a linearizable read. While authentication is on it answers none without a
// user, and its own check, which makes such a read too, is asked instead.
func (m *devMember) waitReady(ctx context.Context, since time.Time) devReady {
	for {
		try, cancel := context.WithTimeout(ctx, time.Second)
		_, err := m.client.Get(try, "ready", clientv3.WithCountOnly())
		if errors.Is(err, rpctypes.ErrUserEmpty) {
			err = m.checkReady(try)
		}
		cancel()
		if err == nil || ctx.Err() != nil {
			return devReady{m, time.Since(since), errors.Join(err, ctx.Err())}
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (m *devMember) checkReady(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.clientURL+"/readyz", nil)
	if err != nil {
		return err
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz answers %s", r.Status)
	}
	return nil
}

// exited takes note of a process that ended.
func (d *devCluster) exited(e devExit) {
	if e.member.cmd == e.cmd {
		e.member.cmd = nil
		e.member.stopWait()
	}
}

// lastWords is why the member ended, as the end of its log tells it.
func (m *devMember) lastWords() string {
	f, err := os.Open(m.logPath)
	if err != nil {
		return "it left no log"
	}
	defer f.Close()
	const tail = 8 << 10
	if info, err := f.Stat(); err == nil && info.Size() > tail {
		f.Seek(-tail, io.SeekEnd)
	}
	text, _ := io.ReadAll(f)
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	last := lines[len(lines)-1]
	for _, l := range slices.Backward(lines) {
		if bytes.HasPrefix(l, []byte("panic: ")) || bytes.HasPrefix(l, []byte("fatal error: ")) {
			return fmt.Sprintf("%s; all of it is in %s", l, m.logPath)
		}
		if bytes.HasPrefix(l, []byte("{")) {
			break // the crash, if there was one, was in an earlier life
		}
	}
	var line struct{ Msg string }
	if json.Unmarshal(last, &line) == nil && line.Msg != "" {
		return line.Msg
	}
	return strings.TrimPrefix(string(last), "trivet: ")
}

// starter starts processes from one operating system thread that lives as long as it does: on Linux a child dies with
// the thread that started it (childAttributes), and an ordinary goroutine's thread may end at any time.
type starter struct {
	work   chan func()
	closed atomic.Bool
}

func newStarter() *starter {
	s := &starter{work: make(chan func())}
	go func() { // ends at close
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for f := range s.work {
			f()
		}
	}()
	return s
}

func (s *starter) start(cmd *exec.Cmd) error {
	done := make(chan error)
	s.work <- func() { done <- cmd.Start() }
	return <-done
}

func (s *starter) close() {
	if s.closed.CompareAndSwap(false, true) {
		close(s.work)
	}
}
