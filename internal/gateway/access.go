package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
)

// access is what is done to every HTTP request of a client before anything else.
type access struct {
	origins []string // of --cors; empty, or with a star: all
	hosts   []string // of --host-whitelist; empty, or with a star: all
	next    http.Handler
	// refuseNames tells whether calls of the JSON gateway by clients with a name in their certificate are refused.
	refuseNames func() bool
}

func listed(list []string, s string) bool {
	return len(list) == 0 || slices.Contains(list, "*") || slices.Contains(list, s)
}

// ServeHTTP does what etcd does: old paths of the gateway lead to the new, a plain request with a foreign host name is
// refused (a browser may have been led here by a name that resolves to this machine, CVE-2018-5702), origins that are
// allowed are told so, and OPTIONS is answered at once.
func (a *access) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, old := range []string{"/v3beta/", "/v3alpha/"} {
		if rest, ok := strings.CutPrefix(r.URL.Path, old); ok {
			r.URL.Path, r.URL.RawPath = "/v3/"+rest, ""
		}
	}
	if r.TLS == nil {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !listed(a.hosts, host) {
			http.Error(w, foreignHost(host), http.StatusMisdirectedRequest)
			return
		}
	} else if strings.HasPrefix(r.URL.Path, "/v3/") && named(r.TLS) && a.refuseNames() {
		// The gateway's calls are nobody's to the services: whoever thinks that they go by the certificate learns better.
		http.Error(w, "CommonName of client sending a request against gateway will be ignored and not used as expected", http.StatusBadRequest)
		return
	}
	if listed(a.origins, "*") {
		allowOrigin(w.Header(), "*")
	} else if origin := r.Header.Get("Origin"); listed(a.origins, origin) {
		allowOrigin(w.Header(), origin)
	}
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusOK)
		return
	}
	a.next.ServeHTTP(w, r)
}

// named tells whether a client has shown a certificate with a common name.
func named(t *tls.ConnectionState) bool {
	return slices.ContainsFunc(t.VerifiedChains, func(chain []*x509.Certificate) bool {
		return len(chain) > 0 && chain[0].Subject.CommonName != ""
	})
}

func allowOrigin(h http.Header, origin string) {
	h.Set("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE")
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Allow-Headers", "accept, content-type, authorization")
}

// foreignHost is etcd's answer, to the letter: tools look for it.
func foreignHost(host string) string {
	return fmt.Sprintf(`
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist %q

This requirement has been added to help prevent "DNS Rebinding" attacks (CVE-2018-5702).
`, host)
}
