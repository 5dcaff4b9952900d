package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// failure is the error of a handshake with what it means and what to do. Its text is the same each time for the same
// certificates, so that it can be told from another.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

func explained(err error) error {
	cause, advice := explain(err)
	if advice != "" {
		cause += "; " + advice
	}
	detail := err.Error()
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired && e.Cert != nil { // its text has the time of day
		detail = fmt.Sprintf("%s is valid from %s to %s", e.Cert.Subject, e.Cert.NotBefore.UTC().Format(time.RFC3339), e.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return &failure{"TLS: " + cause + " (" + detail + ")", err}
}

// remoteAlert begins the text of an error that the other side sent.
const remoteAlert = "remote error: tls: "

// alerts are what the other side may say of why it ended the handshake, as crypto/tls writes them.
var alerts = []struct{ text, cause, advice string }{
	{"unknown certificate authority", "the other side does not know the authority of this certificate", "give both sides the same CA"},
	{"certificate required", "the other side wants a certificate", "give it one that its CA has signed"},
	{"expired certificate", "the other side says that this certificate has expired", "renew it, and compare the clocks"},
	{"bad certificate", "the other side refuses this certificate", "its log says why"},
	{"unknown certificate", "the other side refuses this certificate", "its log says why"},
	{"protocol version not supported", "no version of TLS in common", "compare --tls-min-version and --tls-max-version"},
	{"handshake failure", "no cipher suite in common", "compare --cipher-suites"},
}

// explain names the cause of a failed handshake, in words that are the same each time, and says what to do about it.
func explain(err error) (cause, advice string) {
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		switch h := string(e.RecordHeader[:]); {
		case h == "HTTP/":
			return "the other side does not speak TLS", "its URL is http://, or it is something else"
		case h == "PRI *":
			return "gRPC without TLS on a TLS port", "use an https:// endpoint and give the client the CA"
		case h == "TRIVE":
			return "a member without TLS on a TLS port", "give all members peer URLs with the same scheme"
		case strings.Trim(h[:4], "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == "" || h[:4] == "GET " || h[:4] == "PUT ":
			return "HTTP without TLS on a TLS port", "use https://"
		}
		return "something that is not TLS", ""
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if e.Reason == x509.Expired {
			return "the certificate has expired or is not valid yet", "renew it, and compare the clocks"
		}
		return "the certificate is not valid for this", ""
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the certificate is of an unknown authority", "the trusted CA file must hold the CA that signed it"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the certificate is for other names", "issue it for the host in the URL, or use one of its names"
	}
	for _, e := range []error{errRevoked, errNotAllowed, errAddress} {
		if errors.Is(err, e) {
			return e.Error(), ""
		}
	}
	text := err.Error()
	if alert, ok := strings.CutPrefix(text, remoteAlert); ok {
		for _, a := range alerts {
			if alert == a.text {
				return a.cause, a.advice
			}
		}
		return "the other side ended the handshake", ""
	}
	switch {
	case strings.Contains(text, "client didn't provide a certificate"):
		return "the client has no certificate", "give it one that the trusted CA has signed"
	case strings.Contains(text, "unsupported versions"), strings.Contains(text, "unsupported protocol version"):
		return "no version of TLS in common", "compare --tls-min-version and --tls-max-version"
	case strings.Contains(text, "no cipher suite supported"):
		return "no cipher suite in common", "compare --cipher-suites"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "the handshake took too long", ""
	case closed(err):
		return "the connection was closed during the handshake", ""
	}
	return "the handshake failed", ""
}
