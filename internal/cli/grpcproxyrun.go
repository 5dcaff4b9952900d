package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapgrpc"
	"google.golang.org/grpc/grpclog"

	"github.com/trivet-kv/trivet/internal/certs"
	"github.com/trivet-kv/trivet/internal/config"
	"github.com/trivet-kv/trivet/internal/gateway"
	"github.com/trivet-kv/trivet/internal/proxy"
)

// runGRPCProxy serves until a signal ends it.
func (t terminal) runGRPCProxy(o grpcProxyOptions) error {
	level, zapLevel := slog.LevelInfo, zap.InfoLevel
	if o.debug {
		level, zapLevel = slog.LevelDebug, zap.DebugLevel
	}
	log := slog.New(newLogHandler(t.err, level, false))
	zapLog, err := logutil.CreateDefaultZapLogger(zapLevel)
	if err != nil {
		return fmt.Errorf("make the logger: %w", err)
	}
	if o.debug {
		grpclog.SetLoggerV2(zapgrpc.NewLogger(zapLog))
	} else {
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	}
	surviveClosedPipe()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	found, err := discoverEndpoints(zapLog, o.domain, o.service, o.ca, o.insecureDiscovery)
	if err != nil {
		return err
	}
	if len(found.Endpoints) > 0 {
		o.endpoints = found.Endpoints
	}
	p, err := o.proxy(log, zapLog)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan error, 1)
	var s *proxy.Server
	go func() {
		var err error
		s, err = proxy.Start(ctx, p)
		started <- err
	}()
	select {
	case err = <-started:
	case sig := <-signals:
		log.Info("received a signal; stopping", "signal", sig.String())
		stopOnSecond(signals, log)
		cancel()
		if err = <-started; err == nil {
			s.Stop()
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("grpc-proxy: %w", err)
	}
	log.Info("started gRPC proxy", "address", o.listen) // etcd's words, for scripts
	log.Info("ready to serve client requests", "address", p.Clients.Addr().String(), "tls", p.Clients.TLS != nil, "endpoints", o.endpoints)
	notifySystemd(log, daemon.SdNotifyReady)
	select {
	case sig := <-signals:
		log.Info("received a signal; stopping", "signal", sig.String())
		notifySystemd(log, daemon.SdNotifyStopping)
		stopOnSecond(signals, log)
		s.Stop()
		return nil
	case err := <-s.Failed():
		s.Stop()
		return fmt.Errorf("grpc-proxy: %w", err)
	}
}

// proxy opens the sockets, reads the certificates, and says what package proxy is to do. On an error nothing is left open.
func (o *grpcProxyOptions) proxy(log *slog.Logger, zapLog *zap.Logger) (_ proxy.Options, err error) {
	p := proxy.Options{
		Endpoints: o.endpoints, AutoSync: o.autoSync, MaxSendBytes: o.maxSend, MaxRecvBytes: o.maxRecv,
		DialPing:    proxy.Ping{Time: o.dialTime, Timeout: o.dialTimeout, Idle: o.dialIdle},
		MinPingTime: o.minPingTime, ServePing: proxy.Ping{Time: o.pingTime, Timeout: o.pingTimeout}, MaxConcurrentStreams: o.maxStreams,
		Namespace: o.namespace, LeasingPrefix: o.leasing, Ordering: o.ordering,
		AdvertiseURL: o.advertise, ResolverPrefix: o.resolver, ResolverTTL: o.resolverTTL,
		Pprof: o.pprof, LogContent: o.logContent, Logger: log, Zap: zapLog,
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return p, fmt.Errorf("--listen-addr=%s: %w", o.listen, explainListen(o.listen, err))
	}
	p.Clients = gateway.Door{Listener: l}
	defer func() {
		if err != nil {
			_ = l.Close()
			if p.Monitor.Listener != nil {
				_ = p.Monitor.Close()
			}
		}
	}()
	if p.DialTLS, err = o.dialTLS(log); err != nil {
		return p, err
	}
	if p.Clients.TLS, err = o.listenTLS(log); err != nil {
		return p, fmt.Errorf("certificates for clients: %w", err)
	}
	if p.Clients.TLS != nil {
		p.SelfTLS = p.Clients.TLS.ClientConfig()
	}
	return p, o.openMetrics(&p)
}

// openMetrics opens the socket of --metrics-addr, if there is one.
func (o *grpcProxyOptions) openMetrics(p *proxy.Options) error {
	if o.metrics == "" {
		return nil
	}
	u, err := url.Parse(o.metrics)
	if err != nil || u.Scheme == "" || config.Address(*u) == "" {
		return fmt.Errorf("--metrics-addr=%s: not a URL; write it as http://HOST:PORT or https://HOST:PORT", o.metrics)
	}
	if config.Secure(*u) && p.Clients.TLS == nil {
		return fmt.Errorf("--metrics-addr=%s: this needs a certificate; give --cert-file and --key-file, or --auto-tls", o.metrics)
	}
	l, err := listen(*u, &config.Config{})
	if err != nil {
		return fmt.Errorf("--metrics-addr=%s: %w", o.metrics, err)
	}
	p.Monitor = gateway.Door{Listener: l}
	if config.Secure(*u) {
		p.Monitor.TLS = p.Clients.TLS
	}
	return nil
}

// dialTLS is how members are spoken to; nil: without TLS, but to those with https.
func (o *grpcProxyOptions) dialTLS(log *slog.Logger) (*tls.Config, error) {
	if o.ca == "" && o.cert == "" && !o.skipVerify {
		return nil, nil
	}
	set, err := certs.New(certs.Options{Kind: "member", CertFile: o.cert, KeyFile: o.key, TrustedCAFile: o.ca, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("--cacert, --cert, --key: %w", err)
	}
	c := set.ClientConfig()
	if o.cert != "" {
		// The certificate is read again for each connection. One with a common name would make every client of this
		// proxy the user of that name.
		c.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := set.ClientConfig().GetClientCertificate(r)
			if err == nil && pair.Leaf.Subject.CommonName != "" {
				return nil, fmt.Errorf("the certificate has the common name %q, which would be the user that every client of this proxy is; use one without a common name", pair.Leaf.Subject.CommonName)
			}
			return pair, err
		}
		if _, err := c.GetClientCertificate(&tls.CertificateRequestInfo{}); err != nil {
			return nil, fmt.Errorf("--cert=%s: %w", o.cert, err)
		}
	}
	if c.InsecureSkipVerify = o.skipVerify; o.skipVerify {
		log.Warn("--insecure-skip-tls-verify was given: the members' certificates are not checked, anybody may answer in their place; this is for tests only")
	}
	return c, nil
}

// listenTLS is how clients are spoken to; nil: without TLS.
func (o *grpcProxyOptions) listenTLS(log *slog.Logger) (*certs.Set, error) {
	so := certs.Options{
		Kind: "client", CertFile: o.listenCert, KeyFile: o.listenKey, TrustedCAFile: o.listenCA, CRLFile: o.listenCRL,
		CipherSuites: o.suites, MinVersion: o.lowest, MaxVersion: o.highest, NextProtos: []string{"h2", "http/1.1"}, Logger: log,
	}
	switch {
	case o.listenCert != "":
		if o.autoTLS {
			log.Warn("a certificate was given, so none is made", "setting", "--auto-tls")
		}
	case o.autoTLS:
		hosts, err := o.ownHosts()
		if err != nil {
			return nil, err
		}
		if so.CertFile, so.KeyFile, err = certs.SelfSigned(filepath.Join(o.dataDir, "fixtures", "proxy"), hosts, time.Duration(o.validity)*year, log); err != nil {
			return nil, err
		}
		so.SelfSigned = true
	default:
		if o.listenCRL != "" {
			return nil, errors.New("--client-crl-file: clients can only be asked for certificates over TLS; give --cert-file, --key-file and --trusted-ca-file too")
		}
		return nil, nil
	}
	return certs.New(so)
}

// ownHosts are the names that a certificate of this proxy's own is for.
func (o *grpcProxyOptions) ownHosts() ([]string, error) {
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return nil, err
	}
	hosts := []string{host}
	advertised := o.advertise
	if u, err := url.Parse(advertised); err == nil && u.Host != "" {
		advertised = u.Host
	}
	if other, _, err := net.SplitHostPort(advertised); err == nil && other != host {
		hosts = append(hosts, other)
	}
	return hosts, nil
}
