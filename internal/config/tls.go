package config

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
)

// tlsVersions are etcd's names. Empty is the default of either end.
var tlsVersions = map[string]uint16{"": 0, "TLS1.2": tls.VersionTLS12, "TLS1.3": tls.VersionTLS13}

// completeTLS fills in what follows from other settings, and checks how they go together, by etcd's rules.
func (c *Config) completeTLS(given map[string]setting) error {
	for _, v := range []struct {
		name string
		to   *uint16
	}{{"tls-min-version", &c.TLSMinVersion}, {"tls-max-version", &c.TLSMaxVersion}} {
		s := given[v.name]
		n, ok := tlsVersions[s.value]
		if !ok {
			return fmt.Errorf("%s: not known; write TLS1.2 or TLS1.3", s.shown)
		}
		*v.to = n
	}
	if c.TLSMaxVersion != 0 && c.TLSMinVersion > c.TLSMaxVersion {
		return fmt.Errorf("%s: the lowest version is above the highest, %s; swap them", given["tls-min-version"].shown, given["tls-max-version"].shown)
	}
	suites := given["cipher-suites"]
	if suites.value != "" && c.TLSMinVersion == tls.VersionTLS13 {
		return fmt.Errorf("%s: cipher suites cannot be chosen for TLS 1.3 alone, %s; leave one of the two out", suites.shown, given["tls-min-version"].shown)
	}
	for _, name := range split(suites.value) {
		id, ok := cipherSuite(name)
		if !ok {
			return fmt.Errorf("%s: %q is not a cipher suite; write names such as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", suites.shown, name)
		}
		c.CipherSuites = append(c.CipherSuites, id)
	}
	if err := c.ClientTLS.complete(c, given, "", ctsec); err != nil {
		return err
	}
	if err := c.PeerTLS.complete(c, given, "peer-", ptsec); err != nil {
		return err
	}
	if c.SelfSignedCertValidity == 0 && (c.ClientTLS.Auto || c.PeerTLS.Auto) {
		return fmt.Errorf("%s: a certificate needs some time to be valid; write 1 or more years", given["self-signed-cert-validity"].shown)
	}
	return nil
}

// split is the elements of a list; none of an empty text.
func split(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(one string) bool { return one == "" })
}

// cipherSuite finds a suite by its name, or by one of the two that older versions of etcd had.
func cipherSuite(name string) (uint16, bool) {
	for _, s := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		if s.Name == name || s.Name == name+"_SHA256" && strings.HasSuffix(name, "_CHACHA20_POLY1305") {
			return s.ID, true
		}
	}
	return 0, false
}

// complete is for one kind of connection; prefix is that of its flags, section of its keys in the configuration file.
func (t *TLS) complete(c *Config, given map[string]setting, prefix, section string) error {
	none := func(s string) bool { return s == "" }
	t.AllowedCNs, t.AllowedHostnames = slices.DeleteFunc(t.AllowedCNs, none), slices.DeleteFunc(t.AllowedHostnames, none)
	// at names a setting, whether it was given or not.
	at := func(name string) string {
		if s, ok := given[name]; ok {
			return s.shown
		}
		return "--" + name
	}
	clientPrefix := prefix + "client-"
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		return fmt.Errorf("%s, %s: a certificate and its key belong together; give both", at(prefix+"cert-file"), at(prefix+"key-file"))
	case (t.ClientCertFile == "") != (t.ClientKeyFile == ""):
		return fmt.Errorf("%s, %s: a certificate and its key belong together; give both", at(clientPrefix+"cert-file"), at(clientPrefix+"key-file"))
	case len(t.AllowedCNs) > 0 && len(t.AllowedHostnames) > 0:
		return fmt.Errorf("%s: allowed common names and allowed hostnames exclude one another; give one of them", section+"allowed-cn, "+section+"allowed-hostname")
	}
	if t.Auto && t.CertFile != "" {
		c.note(slog.LevelWarn, "a certificate was given, so none is made", "setting", at(prefix+"auto-tls"))
		t.Auto = false
	}
	if t.Auto && (t.ClientCertAuth || t.TrustedCAFile != "" || t.CRLFile != "" || len(t.AllowedCNs)+len(t.AllowedHostnames) > 0) {
		// As in etcd. There is nothing that could be verified: every member has signed its own.
		c.note(slog.LevelWarn, "with certificates that members make themselves no certificate is asked for or verified; "+
			"CA, revocation list, client-cert-auth and allowed names are ignored", "setting", at(prefix+"auto-tls"))
		t.ClientCertAuth, t.TrustedCAFile, t.CRLFile, t.AllowedCNs, t.AllowedHostnames = false, "", "", nil, nil
	}
	if !t.ClientCertAuth && t.TrustedCAFile == "" {
		for _, f := range []struct {
			set  bool
			what string
		}{
			{t.CRLFile != "", "a revocation list"}, {len(t.AllowedCNs) > 0, "allowed common names"}, {len(t.AllowedHostnames) > 0, "allowed hostnames"},
		} {
			if f.set {
				c.note(slog.LevelWarn, "nobody who connects is asked for a certificate, so "+f.what+" cannot refuse anybody; give a trusted CA file",
					"setting", section+"*", "flag", "--"+prefix+"trusted-ca-file")
			}
		}
	}
	return nil
}

// checkSecure holds the URLs that are listened on against the certificates.
func (c *Config) checkSecure(name string, urls []url.URL, t *TLS, prefix string) error {
	for _, u := range urls {
		switch {
		case Secure(u) && !t.Serves():
			return fmt.Errorf("--%s: %q needs a certificate; give --%scert-file and --%skey-file, or --%sauto-tls", name, u.String(), prefix, prefix, prefix)
		case !Secure(u) && t.CertFile != "":
			c.note(slog.LevelWarn, "the URL is one without TLS, though a certificate was given; it is served without", "flag", "--"+name, "url", u.String())
		case !Secure(u) && t.ClientCertAuth:
			c.note(slog.LevelWarn, "the URL is one without TLS; clients are not asked for certificates there", "flag", "--"+name, "url", u.String())
		}
	}
	return nil
}
