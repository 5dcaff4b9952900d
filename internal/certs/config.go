package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

func (s *Set) baseConfig(g *generation) *tls.Config {
	c := &tls.Config{
		MinVersion: s.o.MinVersion, MaxVersion: s.o.MaxVersion, CipherSuites: s.o.CipherSuites,
		// Also called when a session is resumed, unlike VerifyPeerCertificate.
		VerifyConnection: func(cs tls.ConnectionState) error { return s.verify(g, cs) },
		// Records that grow from 1.4 KiB are for browsers that draw while a page loads; here they cost system calls.
		DynamicRecordSizingDisabled: true,
	}
	if c.MinVersion == 0 {
		c.MinVersion = tls.VersionTLS12
	}
	return c
}

func (s *Set) serverConfig(g *generation) *tls.Config {
	if g.pair == nil {
		return nil
	}
	c := s.baseConfig(g)
	c.Certificates = []tls.Certificate{*g.pair}
	c.NextProtos = s.o.NextProtos
	if s.o.ClientCertAuth || s.o.TrustedCAFile != "" {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, g.pool
	}
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if conn, ok := hello.Conn.(*helloConn); ok {
			conn.hello = Hello{ServerName: hello.ServerName, Protos: slices.Clone(hello.SupportedProtos)}
		}
		return nil, nil
	}
	return c
}

func (s *Set) clientConfig(g *generation) *tls.Config {
	c := s.baseConfig(g)
	c.RootCAs, c.InsecureSkipVerify = g.pool, s.o.SelfSigned
	pair := g.dialler
	if pair == nil {
		pair = g.pair
	}
	if pair != nil {
		// Shown whatever authorities the other side names, as etcd does.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	return c
}

// Reasons for which a certificate that is valid in itself is refused.
var (
	errRevoked    = errors.New("the certificate is revoked")
	errNotAllowed = errors.New("the certificate's name is not among those allowed")
	errAddress    = errors.New("the certificate does not name the address that its owner connects from")
)

// verify checks what the standard verification does not.
func (s *Set) verify(g *generation, cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	for _, c := range cs.PeerCertificates {
		if g.revoked[string(c.SerialNumber.Bytes())] {
			return fmt.Errorf("%w (serial %x)", errRevoked, c.SerialNumber)
		}
	}
	leaf := cs.PeerCertificates[0]
	if a := s.o.AllowedCNs; len(a) > 0 && !slices.Contains(a, leaf.Subject.CommonName) {
		return fmt.Errorf("%w (common name %q, allowed %q)", errNotAllowed, leaf.Subject.CommonName, a)
	}
	if a := s.o.AllowedHostnames; len(a) > 0 && !slices.ContainsFunc(a, func(h string) bool { return leaf.VerifyHostname(h) == nil }) {
		return fmt.Errorf("%w (it is for %q, allowed %q)", errNotAllowed, namesOf(leaf), a)
	}
	return nil
}

// checkAddress holds the names in a certificate against the address that its owner connects from, as etcd does: by IP
// address, by the names that the address has, and by the addresses that the names have. A certificate without names, or a
// unix socket, passes.
func (s *Set) checkAddress(ctx context.Context, leaf *x509.Certificate, remote net.Addr) error {
	if len(leaf.IPAddresses) == 0 && len(leaf.DNSNames) == 0 || remote.Network() == "unix" {
		return nil
	}
	host, _, err := net.SplitHostPort(remote.String())
	if err != nil {
		return fmt.Errorf("%w: %w", errAddress, err)
	}
	if leaf.VerifyHostname(host) == nil && net.ParseIP(host) != nil {
		return nil
	}
	if len(leaf.DNSNames) > 0 {
		var ok bool
		if ok, err = s.resolvesTo(ctx, host, leaf.DNSNames); ok {
			return nil
		}
	}
	if err != nil {
		err = fmt.Errorf("; looking up: %w", err)
		return fmt.Errorf("%w (it is for %q)%w", errAddress, namesOf(leaf), err)
	}
	return fmt.Errorf("%w (it is for %q)", errAddress, namesOf(leaf))
}

func (s *Set) resolvesTo(ctx context.Context, host string, dnsNames []string) (bool, error) {
	reverse, err := s.o.Resolver.LookupAddr(ctx, host)
	for _, name := range reverse {
		name = strings.TrimSuffix(name, ".")
		for _, d := range dnsNames {
			if suffix, wild := strings.CutPrefix(d, "*"); d == name || wild && strings.HasPrefix(suffix, ".") && strings.HasSuffix(name, suffix) {
				return true, nil
			}
		}
	}
	for _, d := range dnsNames {
		if strings.HasPrefix(d, "*.") {
			continue
		}
		addrs, e := s.o.Resolver.LookupHost(ctx, d)
		if e != nil {
			err = e
		}
		if slices.Contains(addrs, host) {
			return true, nil
		}
	}
	return false, err
}

func namesOf(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
