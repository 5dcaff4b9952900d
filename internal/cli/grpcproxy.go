package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
)

// grpcProxyOptions are the flags of etcd's grpc-proxy start.
type grpcProxyOptions struct {
	listen, metrics string
	dataDir         string
	debug, pprof    bool
	logContent      bool

	endpoints         []string
	autoSync          time.Duration
	domain, service   string
	insecureDiscovery bool
	dialTime          time.Duration
	dialTimeout       time.Duration
	dialIdle          bool
	maxSend, maxRecv  int

	ca, cert, key string // for members
	skipVerify    bool

	listenCA, listenCert, listenKey, listenCRL string // for clients
	ciphers                                    []string
	autoTLS                                    bool
	validity                                   uint
	minVersion, maxVersion                     string
	suites                                     []uint16 // what ciphers, minVersion and maxVersion mean
	lowest, highest                            uint16

	minPingTime, pingTime, pingTimeout time.Duration
	maxStreams                         uint32

	advertise, resolver string
	resolverTTL         int
	namespace, leasing  string
	ordering            bool
}

// maxSendBytes is etcd's default for the longest message to a member.
const maxSendBytes = 3 << 19

// grpcProxyCommand is etcd's gRPC proxy, which joins the watches of many clients and caches what they read.
func (t terminal) grpcProxyCommand() *cobra.Command {
	var o grpcProxyOptions
	start := &cobra.Command{
		Use:   "start",
		Short: "Serve clients on behalf of the members",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return t.runGRPCProxy(o)
		},
	}
	f := start.Flags()
	f.StringVar(&o.listen, "listen-addr", "127.0.0.1:23790", "where clients connect, as HOST:PORT")
	f.StringVar(&o.metrics, "metrics-addr", "", "URL on which the pages are served too: metrics and health")
	f.StringVar(&o.dataDir, "data-dir", "default.proxy", "folder for the certificate of --auto-tls")
	f.BoolVar(&o.debug, "debug", false, "log more")
	f.BoolVar(&o.pprof, "enable-pprof", false, "serve profiles under /debug/pprof/")
	f.BoolVar(&o.logContent, "experimental-enable-grpc-logging", false, "log every request and answer; those of the Auth service without their content")

	f.StringSliceVar(&o.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "the members' client addresses, comma separated")
	f.DurationVar(&o.autoSync, "endpoints-auto-sync-interval", 0, "how often to ask the members for their addresses; 0: never")
	f.StringVar(&o.domain, "discovery-srv", "", "DNS domain whose SRV records name the members")
	f.StringVar(&o.service, "discovery-srv-name", "", "suffix of the SRV service name")
	f.BoolVar(&o.insecureDiscovery, "insecure-discovery", false, "use SRV records without looking at the members' certificates")
	f.DurationVar(&o.dialTime, "dial-keepalive-time", 0, "time without a sign of a member before it is pinged; 0: never")
	f.DurationVar(&o.dialTimeout, "dial-keepalive-timeout", 20*time.Second, "time that a member has to answer a ping")
	f.BoolVar(&o.dialIdle, "permit-without-stream", false, "ping members also while there is no call")
	f.IntVar(&o.maxSend, "max-send-bytes", maxSendBytes, "longest message to a member, in bytes")
	f.IntVar(&o.maxRecv, "max-recv-bytes", math.MaxInt32, "longest message from a member, in bytes")

	f.StringVar(&o.cert, "cert", "", "certificate to show members; it may have no common name")
	f.StringVar(&o.key, "key", "", "key of --cert")
	f.StringVar(&o.ca, "cacert", "", "CA that the members' certificates are checked against")
	f.BoolVar(&o.skipVerify, "insecure-skip-tls-verify", false, "do not check the members' certificates: for tests only")

	f.StringVar(&o.listenCert, "cert-file", "", "certificate to show clients")
	f.StringVar(&o.listenKey, "key-file", "", "key of --cert-file")
	f.StringVar(&o.listenCA, "trusted-ca-file", "", "CA that certificates of clients are checked against; with it clients must have one")
	f.StringVar(&o.listenCRL, "client-crl-file", "", "list of revoked certificates of clients")
	f.StringSliceVar(&o.ciphers, "listen-cipher-suites", nil, "TLS cipher suites for clients, comma separated; empty: Go's choice")
	f.BoolVar(&o.autoTLS, "auto-tls", false, "make a certificate to show clients")
	f.UintVar(&o.validity, "self-signed-cert-validity", 1, "how long the certificate of --auto-tls is good for, in years")
	f.StringVar(&o.minVersion, "tls-min-version", "TLS1.2", "lowest TLS version for clients: TLS1.2 or TLS1.3")
	f.StringVar(&o.maxVersion, "tls-max-version", "", "highest TLS version for clients: TLS1.2 or TLS1.3; empty: Go's choice")

	f.DurationVar(&o.minPingTime, "grpc-keepalive-min-time", 5*time.Second, "a client that pings more often is sent away")
	f.DurationVar(&o.pingTime, "grpc-keepalive-interval", 2*time.Hour, "time without a sign of a client before it is pinged; 0: two hours")
	f.DurationVar(&o.pingTimeout, "grpc-keepalive-timeout", 20*time.Second, "time that a client has to answer a ping; 0: twenty seconds")
	f.Uint32Var(&o.maxStreams, "max-concurrent-streams", math.MaxUint32, "most calls at a time on one connection")

	f.StringVar(&o.advertise, "advertise-client-url", "127.0.0.1:23790", "address that clients are told as the only member; empty: they are told the members")
	f.StringVar(&o.resolver, "resolver-prefix", "", "prefix under which this proxy registers itself, and finds the other proxies")
	f.IntVar(&o.resolverTTL, "resolver-ttl", 0, "how long the registration outlives this proxy, in seconds")
	f.StringVar(&o.namespace, "namespace", "", "prefix that is put before every key of clients")
	f.StringVar(&o.leasing, "experimental-leasing-prefix", "", "prefix for leases on keys, which let this proxy answer linearizable reads by itself")
	f.BoolVar(&o.ordering, "experimental-serializable-ordering", false, "answers of serializable reads never go back to an older revision")
	cmd := &cobra.Command{Use: "grpc-proxy", Short: "A gRPC proxy in front of the members, with etcd's flags"}
	cmd.AddCommand(start)
	return cmd
}

// check refuses flags that cannot be meant.
func (o *grpcProxyOptions) check() error {
	if _, _, err := net.SplitHostPort(o.listen); err != nil {
		return fmt.Errorf("--listen-addr=%s: not an address; write it as HOST:PORT", o.listen)
	}
	if len(o.endpoints) == 0 && o.domain == "" {
		return errors.New("--endpoints is empty; name at least one member as HOST:PORT")
	}
	for _, e := range o.endpoints {
		if u, err := url.Parse(e); e == o.listen || err == nil && u.Host == o.listen {
			return fmt.Errorf("--endpoints: %q is where this proxy listens itself; name the members, or another --listen-addr", e)
		}
	}
	switch {
	case o.resolver != "" && o.resolverTTL < 1:
		return fmt.Errorf("--resolver-ttl=%d: a registration needs some time to live; write 1 or more seconds", o.resolverTTL)
	case o.resolver == "" && o.resolverTTL > 0:
		return fmt.Errorf("--resolver-ttl=%d: there is no --resolver-prefix to register under; give both or none", o.resolverTTL)
	case o.resolver != "" && o.advertise == "":
		return fmt.Errorf("--resolver-prefix=%s: there is nothing to register; give --advertise-client-url too", o.resolver)
	case o.maxSend < 0 || o.maxRecv < 0:
		return fmt.Errorf("--max-send-bytes=%d, --max-recv-bytes=%d: lengths cannot be negative", o.maxSend, o.maxRecv)
	case o.maxRecv > 0 && o.maxSend > o.maxRecv:
		return fmt.Errorf("--max-send-bytes=%d is more than --max-recv-bytes=%d: what is written could not be read; give a larger --max-recv-bytes", o.maxSend, o.maxRecv)
	}
	return o.checkTLS()
}

func (o *grpcProxyOptions) checkTLS() error {
	switch {
	case (o.cert == "") != (o.key == ""):
		return errors.New("--cert, --key: a certificate and its key belong together; give both")
	case (o.listenCert == "") != (o.listenKey == ""):
		return errors.New("--cert-file, --key-file: a certificate and its key belong together; give both")
	case o.listenCA != "" && o.listenCert == "":
		return errors.New("--trusted-ca-file: clients can only be asked for certificates over TLS; give --cert-file and --key-file too")
	case o.autoTLS && o.validity == 0:
		return errors.New("--self-signed-cert-validity=0: a certificate needs some time to be valid; write 1 or more years")
	}
	for _, v := range []struct {
		flag, text string
		to         *uint16
	}{{"tls-min-version", o.minVersion, &o.lowest}, {"tls-max-version", o.maxVersion, &o.highest}} {
		n, err := tlsutil.GetTLSVersion(v.text)
		if err != nil {
			return fmt.Errorf("--%s=%s: not known; write TLS1.2 or TLS1.3", v.flag, v.text)
		}
		*v.to = n
	}
	if o.highest != 0 && o.lowest > o.highest {
		return fmt.Errorf("--tls-min-version=%s: the lowest version is above the highest, --tls-max-version=%s; swap them", o.minVersion, o.maxVersion)
	}
	if o.ciphers = slices.DeleteFunc(o.ciphers, func(s string) bool { return strings.TrimSpace(s) == "" }); len(o.ciphers) == 0 {
		return nil
	}
	if o.lowest == tls.VersionTLS13 {
		return fmt.Errorf("--listen-cipher-suites=%s: cipher suites cannot be chosen for TLS 1.3 alone, --tls-min-version=%s; leave one of the two out", strings.Join(o.ciphers, ","), o.minVersion)
	}
	suites, err := tlsutil.GetCipherSuites(o.ciphers)
	if err != nil {
		return fmt.Errorf("--listen-cipher-suites=%s: %w; write names such as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", strings.Join(o.ciphers, ","), err)
	}
	o.suites = suites
	return nil
}
