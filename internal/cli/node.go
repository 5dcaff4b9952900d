package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/version"

	"github.com/trivet-kv/trivet/internal/config"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/gateway"
	"github.com/trivet-kv/trivet/internal/leader"
	"github.com/trivet-kv/trivet/internal/metrics"
	"github.com/trivet-kv/trivet/internal/raftlog"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/server"
	"github.com/trivet-kv/trivet/internal/token"
	"github.com/trivet-kv/trivet/internal/tracing"
	"github.com/trivet-kv/trivet/internal/transport"
)

// node is a member with its doors: the sockets for peers and clients, the services, and the metrics.
type node struct {
	name     string
	log      *slog.Logger
	drain    time.Duration // bounds the end of clients' calls at a stop
	handOver time.Duration // bounds handing leadership over
	member   *server.Member
	services *rpc.Services
	front    *gateway.Server
	frontEnd sync.Once // stops front
	doors    *doors
	spans    *tracing.Exporter // nil: none are sent
	failed   chan error        // room for the first
}

// startNode opens the sockets, starts the member and puts the services in front of it. Sockets come first: when a port is
// taken, nothing has been touched. On an error nothing is left running.
func startNode(c *config.Config, log *slog.Logger, fatal func(error)) (_ *node, err error) {
	doors, err := openDoors(c, log)
	if err != nil {
		return nil, err
	}
	n := &node{log: log, name: c.Name, drain: 5*time.Second + 2*c.ElectionTimeout, handOver: 2 * c.ElectionTimeout, failed: make(chan error, 1)}
	defer func() {
		if err != nil {
			doors.close()
			n.stopTracing()
		}
	}()
	tokens, err := token.New(token.Options{Spec: c.AuthToken, TTL: time.Duration(c.AuthTokenTTL) * time.Second})
	if err != nil {
		return nil, fmt.Errorf("--auth-token: %w", err)
	}
	if err := n.startTracing(c); err != nil {
		return nil, err
	}
	m := metrics.New(metrics.Identity{Version: version.Version, Product: Version})
	showGates(m, c)
	options, err := memberOptions(c, log, m, doors)
	if err != nil {
		return nil, err
	}
	options.Fatal = fatal
	options.OnToken = func(t fsm.Token) { tokens.Made(t.Token, t.Who) }
	n.member, err = server.Start(options)
	if err != nil {
		return nil, err
	}
	joinMetrics(m, n.member)
	n.services = rpc.New(rpc.Options{
		ClientCertAuth: c.ClientTLS.ClientCertAuth,
		Backend:        n.member, Logger: log, Metrics: m,
		MaxRequestBytes: int(c.MaxRequestBytes), MaxTxnOps: int(c.MaxTxnOps),
		ElectionTimeout: c.ElectionTimeout, WarnSlow: c.WarningUnaryRequestDuration, WarnApply: c.WarningApplyDuration,
		Tokens: tokens, Passwords: token.NewPasswords(int(min(c.BcryptCost, 99))),
		Tracer: n.spans.Tracer(),
	})
	n.front, err = gateway.Start(gateway.Options{
		Services: n.services, Backend: n.member, Metrics: m, Logger: log,
		GRPC: rpc.ServerOptions{
			MaxConcurrentStreams: c.MaxConcurrentStreams, KeepaliveMinTime: c.GRPCKeepAliveMinTime,
			KeepaliveInterval: c.GRPCKeepAliveInterval, KeepaliveTimeout: c.GRPCKeepAliveTimeout,
			Trace: n.spans.Handler(),
		},
		Clients: doors.clients, HTTP: doors.http, Monitor: doors.monitor,
		ClientCertAuth: c.ClientTLS.ClientCertAuth, NoJSON: !c.EnableGRPCGateway, Pprof: c.EnablePprof,
		CORS: c.CORS, HostWhitelist: c.HostWhitelist,
		CheckTimeout: 5*time.Second + 2*c.ElectionTimeout,
	})
	if err != nil {
		n.services.Stop()
		return nil, errors.Join(err, n.member.Stop(context.Background()))
	}
	n.doors = doors
	logServing(log, c, n.member.Header().MemberID)
	go n.watch() // ends with the process: a node lives as long as it
	return n, nil
}

// startTracing: until the member runs nobody makes a span.
func (n *node) startTracing(c *config.Config) error {
	if c.Tracing == nil {
		return nil
	}
	var err error
	n.spans, err = tracing.Start(tracing.Options{
		Address: c.Tracing.Address, ServiceName: c.Tracing.ServiceName, InstanceID: c.Tracing.InstanceID,
		PerMillion: int(c.Tracing.PerMillion), Logger: n.log,
	})
	if err != nil {
		return fmt.Errorf("--distributed-tracing-address=%s: %w; write HOST:PORT", c.Tracing.Address, err)
	}
	n.log.Info("distributed tracing setup enabled", "address", c.Tracing.Address, "service-name", c.Tracing.ServiceName,
		"service-instance-id", c.Tracing.InstanceID, "sampling-rate", c.Tracing.PerMillion)
	return nil
}

// lastSpans is how long a stop waits for a collector that does not answer.
const lastSpans = 2 * time.Second

// stopTracing sends what has not been sent yet.
func (n *node) stopTracing() {
	ctx, cancel := context.WithTimeout(context.Background(), lastSpans)
	defer cancel()
	if err := n.spans.Stop(ctx); err != nil {
		n.log.Warn("the last traces were not sent", "error", err)
	}
}

// watch passes the first failure on. The clients of a member that was removed are sent to others before that.
func (n *node) watch() {
	select {
	case <-n.member.Leaving():
		n.stopFront()
		n.failed <- <-n.member.Failed()
	case err := <-n.member.Failed():
		n.failed <- err
	case err := <-n.front.Failed():
		n.failed <- err
	}
}

// stopFront sends clients to other members and waits until their calls have ended, as long as a call may take.
func (n *node) stopFront() {
	n.frontEnd.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), n.drain)
		defer cancel()
		n.front.Stop(ctx)
	})
}

// versionTimeout bounds how long a member that could answer waits for the cluster's version before it says that it is ready.
const versionTimeout = 5 * time.Second

// waitReady closes ready once this member has read from the cluster: there is a leader, and it was heard of. A new cluster
// also has its version by then, as in etcd: Status tells it, and a downgrade is refused or done for it. A member that rejoins
// has the version in its own state and waits for nothing.
func (n *node) waitReady(ctx context.Context, ready chan<- struct{}) {
	var since time.Time // when it first read
	for ctx.Err() == nil {
		if since.IsZero() && n.member.ReadBarrier(ctx) == nil {
			since = time.Now()
		}
		version, _ := n.member.ClusterVersion()
		if !since.IsZero() && (version != "" || time.Since(since) >= versionTimeout) {
			close(ready)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// closeTimeout bounds what a stop waits for at the end: mostly for the disk, which makes the state durable.
const closeTimeout = 10 * time.Second

// errNotClosed ends a stop that the disk, most likely, holds up. Nothing is lost by it: what was acknowledged is in the log.
var errNotClosed = errors.New("the stop takes too long and is broken off: the disk is slow or hangs. Nothing is lost; the next start applies the end of the log again")

// stop takes everything down in the reverse order. Clients are sent to other members while leadership is handed over, so
// that neither waits for the other; calls under way are answered, which takes at most as long as a call may; then the member
// stops and its state is made durable. No part of it can hold up the end for longer than its bound.
func (n *node) stop() error {
	n.log.Info(msgClosing, "name", n.name)
	done := make(chan error, 1)
	go func() { done <- n.stopInOrder() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("stop the member: %w", err)
		}
		n.log.Info(msgClosed, "name", n.name)
		return nil
	case <-time.After(n.drain + n.handOver + closeTimeout):
		return errNotClosed
	}
}

func (n *node) stopInOrder() error {
	ctx, cancel := context.WithTimeout(context.Background(), n.drain)
	defer cancel()
	handed := make(chan struct{})
	go func() {
		defer close(handed)
		n.member.HandOver(ctx)
	}()
	n.stopFront()
	<-handed
	last, end := context.WithTimeout(context.Background(), n.handOver)
	defer end()
	err := n.member.Stop(last)
	n.stopTracing()
	return err
}

// abort takes everything down like stop, but makes nothing durable: the member's data is not to be trusted. After an error parts
// of it still run, and nobody else may open the data: the process must end.
func (n *node) abort() error {
	done := make(chan error, 1)
	go func() { // ends with the process at the latest
		ctx, cancel := context.WithTimeout(context.Background(), n.drain)
		defer cancel()
		n.services.Stop()
		n.stopFront()
		err := n.member.Abort(ctx)
		n.stopTracing()
		done <- err
	}()
	select {
	case err := <-done:
		if errors.Is(err, raftlog.ErrHung) {
			return err
		}
		if err != nil {
			n.log.Warn("stopping the member before it is rebuilt", "error", err)
		}
		return nil
	case <-time.After(n.drain + n.handOver + closeTimeout):
		return errNotClosed
	}
}

func memberOptions(c *config.Config, log *slog.Logger, m *metrics.Metrics, doors *doors) (server.Options, error) {
	o := server.Options{
		DataDir: c.DataDir, NoFsync: c.UnsafeNoFsync, Name: c.Name, Token: c.InitialClusterToken,
		PeerURLs: config.Strings(c.AdvertisePeerURLs), ClientURLs: config.Strings(c.AdvertiseClientURLs),
		Tick: c.Heartbeat, ElectionTicks: int(c.ElectionTimeout / c.Heartbeat), CatchupEntries: c.SnapshotCatchupEntries,
		SlowDisk:        c.SlowDiskThreshold,
		WatchProgress:   c.WatchProgressNotifyInterval,
		MaxRequestBytes: int(c.MaxRequestBytes), QuotaBytes: c.QuotaBackendBytes, QuotaManualDisarm: c.QuotaManualDisarm,
		Origin: rand.Uint64() | 1, // never zero
		Logger: log,
	}
	if c.WALDir != "" {
		var err error
		if o.LogDir, err = filepath.Abs(c.WALDir); err != nil {
			return o, fmt.Errorf("--wal-dir=%s: %w", c.WALDir, err)
		}
	}
	o.StrictReconfig, o.MaxLearners, o.ForceNewCluster = c.StrictReconfigCheck, uint64(c.MaxLearners), c.ForceNewCluster
	o.Retention = leader.Retention{Period: c.AutoCompactionPeriod, Revisions: c.AutoCompactionRevisions}
	o.InitialCorruptCheck, o.CorruptCheckTime = c.Gates["InitialCorruptCheck"], c.CorruptCheckTime
	if c.Gates["CompactHashCheck"] {
		o.CompactHashCheckTime = c.CompactHashCheckTime
	}
	o.APIVersion, o.DowngradeCheck = version.Version, c.DowngradeCheckTime
	switch {
	case len(c.Join) > 0:
		o.Join, o.Answers, o.Promote = joinEndpoints(c, log, doors), answers(c, doors), true
	case c.InitialClusterState == "existing":
		o.Join = joinExisting(c, log, doors)
	}
	for _, f := range c.InitialCluster {
		o.Founders = append(o.Founders, server.Founder{Name: f.Name, PeerURLs: f.PeerURLs})
	}
	self := "" // this member's id, which the observers need and which is known once the network is joined
	o.Transport = func(tc server.TransportConfig) (server.Transport, error) {
		self = fmt.Sprintf("%x", tc.MemberID)
		return transport.New(transport.Config{
			ClusterID: tc.ClusterID, ID: tc.MemberID, Version: Version, Peers: tc.Peers, Listeners: doors.peers, Dial: doors.dialPeer, Addrs: o.PeerURLs,
			FS: tc.FS, Incoming: tc.Incoming, Logger: log, Observer: observeTransport(m, self),
		})
	}
	o.OnStateJob = stateJob()
	o.Observer = observeMember(m, log, c.WarningApplyDuration, c.Heartbeat)
	return o, nil
}
