package cli

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.etcd.io/etcd/client/pkg/v3/srv"
	etcdtransport "go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/proxy/tcpproxy"
	"go.uber.org/zap"
)

// gatewayOptions are the flags of etcd's gateway start.
type gatewayOptions struct {
	listen     string
	endpoints  []string
	domain     string
	service    string
	insecure   bool
	ca         string
	retryDelay time.Duration
}

// gatewayCommand is etcd's TCP proxy: it passes connections on to the first member that takes them, and does not look inside.
func (t terminal) gatewayCommand() *cobra.Command {
	var o gatewayOptions
	start := &cobra.Command{
		Use:   "start",
		Short: "Pass TCP connections on to the members",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return runGateway(o) },
	}
	f := start.Flags()
	f.StringVar(&o.listen, "listen-addr", "127.0.0.1:23790", "where to listen, as HOST:PORT")
	f.StringSliceVar(&o.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "the members' client addresses, comma separated")
	f.StringVar(&o.domain, "discovery-srv", "", "DNS domain whose SRV records name the members")
	f.StringVar(&o.service, "discovery-srv-name", "", "suffix of the SRV service name")
	f.BoolVar(&o.insecure, "insecure-discovery", false, "use SRV records without looking at the members' certificates")
	f.StringVar(&o.ca, "trusted-ca-file", "", "CA that the certificates of members found by DNS are checked against")
	f.DurationVar(&o.retryDelay, "retry-delay", time.Minute, "time between two tries of a member that does not answer")
	cmd := &cobra.Command{Use: "gateway", Short: "A TCP proxy in front of the members, with etcd's flags"}
	cmd.AddCommand(start)
	return cmd
}

// runGateway serves until a signal ends it.
func runGateway(o gatewayOptions) error {
	log, err := logutil.CreateDefaultZapLogger(zap.InfoLevel)
	if err != nil {
		return fmt.Errorf("make the logger: %w", err)
	}
	targets, err := o.targets(log)
	if err != nil {
		return err
	}
	if err := o.notItself(targets); err != nil {
		return err
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("--listen-addr=%s: %w", o.listen, explainListen(o.listen, err))
	}
	p := tcpproxy.TCPProxy{Logger: log, Listener: l, Endpoints: targets, MonitorInterval: o.retryDelay}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	ended := make(chan error, 1)
	go func() { ended <- p.Run() }()
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("telling systemd failed", zap.Error(err))
	}
	select {
	case s := <-signals:
		log.Info("received a signal; stopping", zap.String("signal", s.String()))
		_ = l.Close() // the connections under way end with the process
		return nil
	case err := <-ended:
		return fmt.Errorf("accept connections: %w", err)
	}
}

// targets are the members to pass connections on to: those that DNS names, or else those given.
func (o gatewayOptions) targets(log *zap.Logger) ([]*net.SRV, error) {
	found, err := discoverEndpoints(log, o.domain, o.service, o.ca, o.insecure)
	if err != nil {
		return nil, err
	}
	if len(found.SRVs) > 0 {
		return found.SRVs, nil
	}
	var targets []*net.SRV
	for _, e := range o.endpoints {
		addr := e
		if u, err := url.Parse(e); err == nil && u.Host != "" {
			addr = u.Host
		}
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("--endpoints: %q is not an address; write it as HOST:PORT", e)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("--endpoints: %q has the port %q; ports go from 0 to 65535", e, port)
		}
		targets = append(targets, &net.SRV{Target: host, Port: uint16(n)})
	}
	if len(targets) == 0 {
		return nil, errors.New("--endpoints is empty; name at least one member as HOST:PORT")
	}
	return targets, nil
}

// notItself refuses to pass connections on to the address that is listened on.
func (o gatewayOptions) notItself(targets []*net.SRV) error {
	host, port, err := net.SplitHostPort(o.listen)
	if err != nil {
		return fmt.Errorf("--listen-addr=%s: not an address; write it as HOST:PORT", o.listen)
	}
	own, err := net.LookupHost(host)
	if err != nil {
		return fmt.Errorf("--listen-addr=%s: %w; write an address of this machine", o.listen, err)
	}
	for _, t := range targets {
		theirs, err := net.LookupHost(t.Target)
		if err != nil {
			return fmt.Errorf("the member %s:%d: %w; name hosts that this machine can resolve", t.Target, t.Port, err)
		}
		same := slices.ContainsFunc(theirs, func(a string) bool { return slices.Contains(own, a) })
		if same && strconv.Itoa(int(t.Port)) == port {
			return fmt.Errorf("--listen-addr=%s: the member %s:%d is this very address; listen on another one", o.listen, t.Target, t.Port)
		}
	}
	return nil
}

// discoverEndpoints asks DNS for the members' client addresses: the services etcd-client-ssl and etcd-client of the domain.
// Unless insecure, those that do not show a certificate for the domain are left out.
func discoverEndpoints(log *zap.Logger, domain, service, ca string, insecure bool) (srv.SRVClients, error) {
	if domain == "" {
		return srv.SRVClients{}, nil
	}
	found, err := srv.GetClient("etcd-client", domain, service)
	if err != nil {
		return srv.SRVClients{}, fmt.Errorf("--discovery-srv=%s: %w; name a domain with SRV records for etcd-client", domain, err)
	}
	log.Info("discovered members by DNS", zap.String("domain", domain), zap.Strings("endpoints", found.Endpoints))
	if insecure {
		return *found, nil
	}
	good, err := etcdtransport.ValidateSecureEndpoints(etcdtransport.TLSInfo{TrustedCAFile: ca, ServerName: domain}, found.Endpoints)
	if err != nil {
		log.Warn("some of the members show no certificate for the domain and are left out", zap.Strings("endpoints", found.Endpoints), zap.Error(err))
	}
	var out srv.SRVClients
	for i, e := range found.Endpoints {
		if slices.Contains(good, e) {
			out.Endpoints = append(out.Endpoints, e)
			out.SRVs = append(out.SRVs, found.SRVs[i])
		}
	}
	return out, nil
}
