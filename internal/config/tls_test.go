package config

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"
)

func TestTLS(t *testing.T) {
	c := mustLoad(t, strings.Fields(`--cert-file=c --key-file=k --client-cert-auth --trusted-ca-file=ca --client-crl-file=crl
		--client-cert-allowed-hostname=a,b --client-cert-file=cc --client-key-file=ck
		--peer-cert-file=pc --peer-key-file=pk --peer-client-cert-auth --peer-trusted-ca-file=pca --peer-crl-file=pcrl
		--peer-cert-allowed-cn=m1,m2 --peer-client-cert-file=pcc --peer-client-key-file=pck --peer-skip-client-san-verification
		--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305 --tls-max-version=TLS1.3
		--listen-client-urls=https://127.0.0.1:2379,http://127.0.0.1:2379,unix:///tmp/s,unixs:///tmp/t --advertise-client-urls=https://a:2379,unix:///tmp/s
		--listen-peer-urls=https://127.0.0.1:2380 --initial-advertise-peer-urls=https://a:2380 --listen-metrics-urls=https://127.0.0.1:2381
		--socket-reuse-port --socket-reuse-address`), nil, "")
	want := TLS{
		CertFile: "c", KeyFile: "k", ClientCertFile: "cc", ClientKeyFile: "ck", TrustedCAFile: "ca", CRLFile: "crl", ClientCertAuth: true,
		AllowedHostnames: []string{"a", "b"},
	}
	wantPeer := TLS{
		CertFile: "pc", KeyFile: "pk", ClientCertFile: "pcc", ClientKeyFile: "pck", TrustedCAFile: "pca", CRLFile: "pcrl", ClientCertAuth: true,
		AllowedCNs: []string{"m1", "m2"}, SkipClientSANVerification: true,
	}
	same := func(a, b TLS) bool {
		cn, host := slices.Equal(a.AllowedCNs, b.AllowedCNs), slices.Equal(a.AllowedHostnames, b.AllowedHostnames)
		a.AllowedCNs, a.AllowedHostnames, b.AllowedCNs, b.AllowedHostnames = nil, nil, nil, nil
		return cn && host && a.CertFile+a.KeyFile+a.ClientCertFile+a.ClientKeyFile+a.TrustedCAFile+a.CRLFile == b.CertFile+b.KeyFile+b.ClientCertFile+b.ClientKeyFile+b.TrustedCAFile+b.CRLFile &&
			a.ClientCertAuth == b.ClientCertAuth && a.SkipClientSANVerification == b.SkipClientSANVerification && a.Auto == b.Auto
	}
	if !same(c.ClientTLS, want) || !same(c.PeerTLS, wantPeer) || c.TLSMinVersion != 0 || c.TLSMaxVersion != tls.VersionTLS13 || !c.SocketReusePort || !c.SocketReuseAddress ||
		!slices.Equal(c.CipherSuites, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256}) {
		t.Errorf("%+v", c)
	}
	if got := Address(c.ListenClientURLs[2]); got != "/tmp/s" || !Unix(c.ListenClientURLs[3]) || !Secure(c.ListenClientURLs[3]) {
		t.Error(got, c.ListenClientURLs)
	}

	c = mustLoad(t, []string{"--config-file=conf.yml"}, nil, `
listen-client-urls: https://127.0.0.1:2379
advertise-client-urls: https://127.0.0.1:2379
client-transport-security:
  cert-file: c
  key-file: k
  client-cert-file: cc
  client-key-file: ck
  client-cert-auth: true
  trusted-ca-file: ca
  allowed-cn: [m1, m2]
  skip-client-san-verification: true
peer-transport-security:
  cert-file: pc
  key-file: pk
  client-cert-auth: true
  trusted-ca-file: pca
  allowed-hostname:
    - m1.example
  skip-client-san-verification: true
  auto-tls: false
self-signed-cert-validity: 0
cipher-suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]
tls-min-version: 'TLS1.2'
tls-max-version: TLS1.2
`)
	if !same(c.ClientTLS, TLS{CertFile: "c", KeyFile: "k", ClientCertFile: "cc", ClientKeyFile: "ck", ClientCertAuth: true, TrustedCAFile: "ca", AllowedCNs: []string{"m1", "m2"}, SkipClientSANVerification: true}) ||
		!same(c.PeerTLS, TLS{CertFile: "pc", KeyFile: "pk", ClientCertAuth: true, TrustedCAFile: "pca", AllowedHostnames: []string{"m1.example"}, SkipClientSANVerification: true}) ||
		c.SelfSignedCertValidity != 1 || c.TLSMinVersion != tls.VersionTLS12 || c.TLSMaxVersion != tls.VersionTLS12 || len(c.CipherSuites) != 1 || len(c.Notes) != 2 {
		t.Errorf("%+v", c)
	}
}

func TestTLSNotes(t *testing.T) {
	const certificate = "--cert-file=c --key-file=k "
	for args, want := range map[string]string{
		certificate + "--auto-tls":                                      "a certificate was given, so none is made",
		"--auto-tls --client-cert-auth --trusted-ca-file=x":             "are ignored",
		"--peer-auto-tls --peer-crl-file=x":                             "are ignored",
		certificate:                                                     "it is served without",
		"--client-cert-auth":                                            "clients are not asked for certificates there",
		"--peer-cert-file=c --peer-key-file=k --peer-cert-allowed-cn=x": "allowed common names cannot refuse anybody",
		"--client-crl-file=x":                                           "a revocation list cannot refuse anybody",
		certificate + "--client-cert-allowed-hostname=x":                "allowed hostnames cannot refuse anybody",
	} {
		c := mustLoad(t, strings.Fields(args), nil, "")
		if !strings.Contains(notes(c), want) {
			t.Errorf("%s: no note of %q: %s", args, want, notes(c))
		}
		if c.ClientTLS.Auto && (c.ClientTLS.ClientCertAuth || c.ClientTLS.TrustedCAFile != "") || c.PeerTLS.Auto && c.PeerTLS.CRLFile != "" {
			t.Errorf("%s: %+v", args, c)
		}
	}
	if c := mustLoad(t, []string{"--auto-tls", "--peer-auto-tls"}, nil, ""); len(c.Notes) != 0 || !c.ClientTLS.Auto || !c.PeerTLS.Auto {
		t.Errorf("%v", c.Notes)
	}
}

func TestTLSBadInput(t *testing.T) {
	for args, want := range map[string]string{
		"--cert-file=c":                                                             "--cert-file=c, --key-file: a certificate and its key belong together; give both",
		"--peer-client-key-file=c":                                                  "--peer-client-cert-file, --peer-client-key-file=c: a certificate and its key belong together",
		"--client-cert-file=c":                                                      "--client-cert-file=c, --client-key-file: ",
		"--listen-peer-urls=https://127.0.0.1:2380":                                 `--listen-peer-urls: "https://127.0.0.1:2380" needs a certificate; give --peer-cert-file and --peer-key-file, or --peer-auto-tls`,
		"--listen-metrics-urls=https://127.0.0.1:91":                                `--listen-metrics-urls: "https://127.0.0.1:91" needs a certificate; give --cert-file and --key-file, or --auto-tls`,
		"--listen-client-urls=unixs:///s --advertise-client-urls=unixs:///s":        `"unixs:///s" needs a certificate`,
		"--peer-cert-allowed-cn=a --peer-cert-allowed-hostname=b":                   "exclude one another; give one of them",
		"--cipher-suites=RC5":                                                       `--cipher-suites=RC5: "RC5" is not a cipher suite`,
		"--cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA --tls-min-version=TLS1.3":     "cipher suites cannot be chosen for TLS 1.3 alone, --tls-min-version=TLS1.3",
		"--tls-min-version=TLS1.1":                                                  "--tls-min-version=TLS1.1: not known; write TLS1.2 or TLS1.3",
		"--tls-min-version=TLS1.3 --tls-max-version=TLS1.2":                         "--tls-min-version=TLS1.3: the lowest version is above the highest, --tls-max-version=TLS1.2",
		"--auto-tls --self-signed-cert-validity=0":                                  "--self-signed-cert-validity=0: a certificate needs some time to be valid",
		"--listen-peer-urls=unix://":                                                `"unix://" has no path; write it as unix:///PATH`,
		"--listen-peer-urls=unix:///s?x":                                            "more than a scheme and an address",
		"--listen-metrics-urls=http://127.0.0.1:91,https://127.0.0.1:91 --auto-tls": `is also in --listen-metrics-urls`,
	} {
		if _, err := load(t, strings.Fields(args), nil, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", args, err, want)
		}
	}
}
