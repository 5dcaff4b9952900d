// Package cluster starts a cluster as real processes on loopback and reads from /proc what they cost. It knows nothing of
// what is inside: any binary that takes etcd's flags will do. What it reads is there on Linux alone.
package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Cluster is members that run as processes of this machine.
type Cluster struct {
	Members []*Member
	dir     string
}

// Member is one of them.
type Member struct {
	Name, Client, Peer string      // the addresses as host:port
	tls                *tls.Config // of clients; nil: without
	args               []string
	dir                string
	process            *exec.Cmd
	exited             chan struct{} // closed when process has ended
	spent              atomic.Int64  // CPU time of processes that have ended, in ns; complete when exited is closed
}

// Start starts n members with command, the binary and its leading arguments, and waits until each answers a linearizable
// read. Extra flags go to every member. Data and logs are kept under dir.
func Start(ctx context.Context, dir string, n int, command []string, extra ...string) (*Cluster, error) {
	return StartSecure(ctx, nil, dir, n, command, extra...)
}

// StartSecure is Start over TLS, for clients and between members, if clients have settings for it. The extra flags say
// where the members find their certificates.
func StartSecure(ctx context.Context, clients *tls.Config, dir string, n int, command []string, extra ...string) (*Cluster, error) {
	scheme := "http://"
	if clients != nil {
		scheme = "https://"
	}
	addrs, err := freeAddrs(2 * n)
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: dir}
	var initial []string
	for i := range n {
		m := &Member{Name: fmt.Sprintf("m%d", i+1), Client: addrs[2*i], Peer: addrs[2*i+1], tls: clients}
		m.dir = filepath.Join(dir, m.Name)
		initial = append(initial, m.Name+"="+scheme+m.Peer)
		c.Members = append(c.Members, m)
	}
	for _, m := range c.Members {
		m.args = append(append([]string{}, command...),
			"--name="+m.Name, "--data-dir="+m.dir,
			"--listen-client-urls="+scheme+m.Client, "--advertise-client-urls="+scheme+m.Client,
			"--listen-peer-urls="+scheme+m.Peer, "--initial-advertise-peer-urls="+scheme+m.Peer,
			"--initial-cluster="+strings.Join(initial, ","), "--initial-cluster-token=bench", "--log-level=warn")
		m.args = append(m.args, extra...)
		if err := m.Start(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	for _, m := range c.Members {
		if err := m.Ready(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// Start starts the member's process; it must not be running.
func (m *Member) Start() error {
	if err := os.MkdirAll(filepath.Dir(m.dir), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(m.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	process := exec.Command(m.args[0], m.args[1:]...)
	process.Stdout, process.Stderr = out, out
	process.SysProcAttr = procAttr()
	if err := process.Start(); err != nil {
		return fmt.Errorf("start %s: %w", m.Name, err)
	}
	exited := make(chan struct{})
	m.process, m.exited = process, exited
	go func() {
		_ = process.Wait()
		m.spent.Add(int64(process.ProcessState.UserTime() + process.ProcessState.SystemTime()))
		close(exited)
	}()
	return nil
}

// Ready waits until the member answers a linearizable read, if only that it wants a user, whom it looks for after it has caught up.
func (m *Member) Ready(ctx context.Context) error {
	conn, err := m.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := pb.NewKVClient(conn).Range(try, &pb.RangeRequest{Key: []byte("ready")})
		cancel()
		if c := status.Code(err); c == codes.OK || c == codes.InvalidArgument || c == codes.PermissionDenied {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w\n%s", m.Name, err, m.log())
		case <-m.exited:
			return fmt.Errorf("%s has ended:\n%s", m.Name, m.log())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// log is the end of what the member has logged.
func (m *Member) log() []byte {
	b, err := os.ReadFile(m.dir + ".log")
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-2000):]
}

// Dial connects to the member. Answers of any size are taken, and a member that restarts is found again at once.
func (m *Member) Dial() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if m.tls != nil {
		creds = credentials.NewTLS(m.tls)
	}
	return grpc.NewClient("passthrough:///"+m.Client,
		grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.2, MaxDelay: 50 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)))
}

// Leader returns the member that leads.
func (c *Cluster) Leader(ctx context.Context) (*Member, error) {
	for ; ; time.Sleep(5 * time.Millisecond) {
		for _, m := range c.Members {
			if s, err := m.status(ctx); err == nil && s.Leader != 0 && s.Leader == s.Header.MemberId {
				return m, nil
			}
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("no member leads: %w", ctx.Err())
		}
	}
}

func (m *Member) status(ctx context.Context) (*pb.StatusResponse, error) {
	conn, err := m.Dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
}

// Others are the members except m.
func (c *Cluster) Others(m *Member) []*Member {
	return slices.DeleteFunc(slices.Clone(c.Members), func(o *Member) bool { return o == m })
}

// Pause stops the processes of all members where they are, so that an idle cluster costs nothing; Resume lets them go
// on, and returns when each has answered a linearizable read.
func (c *Cluster) Pause() error {
	var errs []error
	for _, m := range c.Members {
		errs = append(errs, m.Signal(syscall.SIGSTOP))
	}
	return errors.Join(errs...)
}

// Resume is the end of a Pause.
func (c *Cluster) Resume(ctx context.Context) error {
	for _, m := range c.Members {
		if err := m.Signal(syscall.SIGCONT); err != nil {
			return err
		}
	}
	for _, m := range c.Members {
		if err := m.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Signal sends a signal to the member's process; Wait waits for its end.
func (m *Member) Signal(s syscall.Signal) error { return m.process.Process.Signal(s) }

// Wait waits until the member's process has ended.
func (m *Member) Wait() { <-m.exited }

// Kill ends the member's process as kill -9 does, and waits until it is gone.
func (m *Member) Kill() error {
	if err := m.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	m.Wait()
	return nil
}

// Exited is closed when the member's process has ended.
func (m *Member) Exited() <-chan struct{} { return m.exited }

// PID is the member's process id.
func (m *Member) PID() int { return m.process.Process.Pid }

// Close kills every member that runs. The files stay.
func (c *Cluster) Close() error {
	for _, m := range c.Members {
		if m.process != nil {
			_ = m.process.Process.Kill()
		}
	}
	for _, m := range c.Members {
		if m.process != nil {
			<-m.exited
		}
	}
	return nil
}

// clockTick is the unit of CPU times in /proc: USER_HZ, 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// CPU is the user and system time that all members together have used, in all their lives.
func (c *Cluster) CPU() (time.Duration, error) {
	var total time.Duration
	for _, m := range c.Members {
		d, err := m.cpu()
		if err != nil {
			return 0, err
		}
		total += d
	}
	return total, nil
}

func (m *Member) cpu() (time.Duration, error) {
	select {
	case <-m.exited:
		return time.Duration(m.spent.Load()), nil
	default:
	}
	spent := time.Duration(m.spent.Load()) // of earlier processes: read before this one can have ended
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.PID()))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		<-m.exited // it is just ending
		return time.Duration(m.spent.Load()), nil
	}
	if err != nil {
		return 0, err
	}
	// The second field is the name in brackets and may hold spaces; utime and stime are fields 14 and 15.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	total := spent
	for _, f := range fields[11:13] {
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ticks) * clockTick
	}
	return total, nil
}

// Memory is a member's anonymous memory now and its largest resident size so far, in bytes.
func (m *Member) Memory() (anonymous, peak int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.PID()))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		kib := strings.TrimSuffix(strings.TrimSpace(value), " kB")
		switch name {
		case "RssAnon":
			anonymous, err = strconv.ParseInt(kib, 10, 64)
		case "VmHWM":
			peak, err = strconv.ParseInt(kib, 10, 64)
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return anonymous << 10, peak << 10, nil
}

// Disk is the bytes that the files of the member take on disk.
func (m *Member) Disk() (int64, error) {
	var total int64
	err := filepath.WalkDir(m.dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err == nil {
			total += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	return total, err
}

// freeAddrs finds n free loopback addresses, all different.
func freeAddrs(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}
