package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/trivet-kv/trivet/internal/certs"
	"github.com/trivet-kv/trivet/internal/config"
	"github.com/trivet-kv/trivet/internal/gateway"
)

// doors are the sockets of a member, and its certificates.
type doors struct {
	peers                  []net.Listener
	clients, http, monitor []gateway.Door
	peerTLS                *certs.Set // for dialling too, whether there is a certificate or not
	clientTLS              *certs.Set // nil without a client URL of TLS
	dialer                 net.Dialer // of other members
	peerScheme             string     // of peers that are given as host and port: this member's own
}

// openDoors listens first, so that nothing was touched when an address is taken, and then reads the certificates, or makes
// them. On an error nothing is left open.
func openDoors(c *config.Config, log *slog.Logger) (_ *doors, err error) {
	d := &doors{}
	if c.LocalAddr.IsValid() {
		d.dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.LocalAddr, 0))
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	var peers []gateway.Door // by scheme
	for _, l := range []struct {
		flag string
		urls []url.URL
		to   *[]gateway.Door
	}{
		{"listen-peer-urls", c.ListenPeerURLs, &peers}, {"listen-client-urls", c.ListenClientURLs, &d.clients},
		{"listen-client-http-urls", c.ListenClientHTTPURLs, &d.http}, {"listen-metrics-urls", c.ListenMetricsURLs, &d.monitor},
	} {
		for _, group := range byAddress(l.urls) {
			u := group[0]
			s, err := listen(u, c)
			if err != nil {
				return d, fmt.Errorf("--%s=%s: %w", l.flag, u.String(), err)
			}
			*l.to = append(*l.to, gateway.Door{Listener: s, Plain: slices.ContainsFunc(group, func(u url.URL) bool { return !config.Secure(u) })})
			if l.to == &peers {
				d.peers = append(d.peers, s)
			}
		}
	}
	d.peerScheme = "http"
	if config.Secure(c.AdvertisePeerURLs[0]) {
		d.peerScheme = "https"
	}
	return d, d.secure(c, log, peers)
}

// byAddress groups URLs that one socket serves: those of one address, with TLS and without.
func byAddress(urls []url.URL) [][]url.URL {
	var groups [][]url.URL
	for _, u := range urls {
		i := slices.IndexFunc(groups, func(g []url.URL) bool { return config.Address(g[0]) == config.Address(u) && u.Port() != "0" })
		if i < 0 {
			groups = append(groups, []url.URL{u})
			continue
		}
		groups[i] = append(groups[i], u)
	}
	return groups
}

// secure gives the doors that need them their certificates.
func (d *doors) secure(c *config.Config, log *slog.Logger, peers []gateway.Door) error {
	var err error
	if d.peerTLS, err = newSet(c, log, "peer", &c.PeerTLS, c.ListenPeerURLs, c.AdvertisePeerURLs, !c.PeerTLS.SkipClientSANVerification); err != nil {
		return fmt.Errorf("peer certificates (%s): %w", flagsOfFiles("peer-", &c.PeerTLS), err)
	}
	for i, p := range peers {
		if !p.Plain {
			d.peers[i] = d.peerTLS.Listen(p.Listener)
		}
	}
	urls := slices.Concat(c.ListenClientURLs, c.ListenClientHTTPURLs)
	if slices.ContainsFunc(urls, config.Secure) {
		set, err := newSet(c, log, "client", &c.ClientTLS, urls, c.AdvertiseClientURLs, false)
		if err != nil {
			return fmt.Errorf("client certificates (%s): %w", flagsOfFiles("", &c.ClientTLS), err)
		}
		d.clientTLS = set
		give(d.clients, c.ListenClientURLs, set)
		give(d.http, c.ListenClientHTTPURLs, set)
	}
	if slices.ContainsFunc(c.ListenMetricsURLs, config.Secure) {
		// As in etcd these check where a certificate is used from, and the others do not.
		set, err := newSet(c, log, "metrics", &c.ClientTLS, urls, c.AdvertiseClientURLs, !c.ClientTLS.SkipClientSANVerification)
		if err != nil {
			return fmt.Errorf("client certificates (%s): %w", flagsOfFiles("", &c.ClientTLS), err)
		}
		give(d.monitor, c.ListenMetricsURLs, set)
	}
	return nil
}

// flagsOfFiles tells the flags that were given for a set's files, so that an error about one of them shows where it came
// from.
func flagsOfFiles(prefix string, t *config.TLS) string {
	crl := "client-crl-file"
	if prefix != "" {
		crl = prefix + "crl-file"
	}
	var given []string
	for _, f := range [][2]string{
		{prefix + "cert-file", t.CertFile}, {prefix + "key-file", t.KeyFile},
		{prefix + "client-cert-file", t.ClientCertFile}, {prefix + "client-key-file", t.ClientKeyFile},
		{prefix + "trusted-ca-file", t.TrustedCAFile}, {crl, t.CRLFile},
	} {
		if f[1] != "" {
			given = append(given, "--"+f[0]+"="+f[1])
		}
	}
	if len(given) == 0 {
		return "made by this member"
	}
	return strings.Join(given, ", ")
}

// give hands a set to the doors that have a URL with TLS.
func give(doors []gateway.Door, urls []url.URL, set *certs.Set) {
	for i, group := range byAddress(urls) {
		if slices.ContainsFunc(group, config.Secure) {
			doors[i].TLS = set
		}
	}
}

// year is how long --self-signed-cert-validity=1 is.
const year = 365 * 24 * time.Hour

func newSet(c *config.Config, log *slog.Logger, kind string, t *config.TLS, listen, advertise []url.URL, checkAddress bool) (*certs.Set, error) {
	o := certs.Options{
		Kind: kind, CertFile: t.CertFile, KeyFile: t.KeyFile, ClientCertFile: t.ClientCertFile, ClientKeyFile: t.ClientKeyFile,
		TrustedCAFile: t.TrustedCAFile, CRLFile: t.CRLFile, ClientCertAuth: t.ClientCertAuth,
		AllowedCNs: t.AllowedCNs, AllowedHostnames: t.AllowedHostnames, CheckAddress: checkAddress, SelfSigned: t.Auto,
		CipherSuites: c.CipherSuites, MinVersion: c.TLSMinVersion, MaxVersion: c.TLSMaxVersion, Logger: log,
	}
	if kind != "peer" {
		o.NextProtos = []string{"h2", "http/1.1"}
	}
	if t.Auto {
		var hosts []string
		for _, u := range slices.Concat(listen, advertise) {
			if !config.Unix(u) {
				hosts = append(hosts, u.Hostname())
			}
		}
		slices.Sort(hosts)
		folder := "client" // also of the metrics
		if kind == "peer" {
			folder = kind
		}
		var err error
		o.CertFile, o.KeyFile, err = certs.SelfSigned(filepath.Join(c.DataDir, "fixtures", folder), slices.Compact(hosts), time.Duration(c.SelfSignedCertValidity)*year, log)
		if err != nil {
			return nil, err
		}
		o.ClientCertFile, o.ClientKeyFile = "", ""
	}
	return certs.New(o)
}

// dialPeer connects to a member at one of its peer URLs, or at a host and port.
func (d *doors) dialPeer(ctx context.Context, peerURL string) (net.Conn, error) {
	if !strings.Contains(peerURL, ":/") {
		peerURL = d.peerScheme + "://" + peerURL
	}
	u, err := url.Parse(peerURL)
	if err != nil {
		return nil, fmt.Errorf("the peer URL %q: %w", peerURL, err)
	}
	network := "tcp"
	if config.Unix(*u) {
		network = "unix"
	}
	dialer := d.dialer
	if network == "unix" {
		dialer.LocalAddr = nil
	}
	conn, err := dialer.DialContext(ctx, network, config.Address(*u))
	if err != nil || !config.Secure(*u) {
		return conn, err
	}
	return d.peerTLS.Dialled(conn, u.Hostname()), nil
}

// listen opens the socket of a URL.
func listen(u url.URL, c *config.Config) (net.Listener, error) {
	address := config.Address(u)
	if config.Unix(u) {
		if err := clearSocket(address); err != nil {
			return nil, err
		}
		return net.Listen("unix", address)
	}
	lc := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		return setReuse(conn, c.SocketReusePort, c.SocketReuseAddress)
	}}
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, explainListen(address, err)
	}
	return l, nil
}

// clearSocket removes a unix socket that a process which was killed has left. It touches nothing else.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there already and is no socket; name another path, or remove it", path)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return fmt.Errorf("another process listens on %s already; stop it, or name another path", path)
	}
	return os.Remove(path)
}

// explainListen says what to do about an address that cannot be listened on.
func explainListen(host string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("another process listens on %s already; stop it, or choose another port", host)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s is not an address of this machine; choose one of its addresses, or 0.0.0.0 for all", host)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("listening on %s is not allowed; choose a port from 1024 up", host)
	}
	return err
}

func (d *doors) close() {
	for _, l := range d.peers {
		l.Close()
	}
	for _, l := range slices.Concat(d.clients, d.http, d.monitor) {
		l.Close()
	}
}
