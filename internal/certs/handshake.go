package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Hello is what a client said when it began.
type Hello struct {
	ServerName string   // the host it wants (SNI)
	Protos     []string // what it speaks (ALPN)
}

// helloConn is where the settings, which all connections share, leave what they saw of one.
type helloConn struct {
	net.Conn
	hello Hello
	heard bool // something has arrived
}

func (c *helloConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.heard {
		c.heard = true
	}
	return n, err
}

// Accept does the server's half of a handshake on a new connection, with the files as they are now, within ctx. If it
// returns an error it has told the log, and, where there is a way, the other side; the caller closes conn. An error beside
// a connection means that the handshake was done and its certificate is refused for another reason.
func (s *Set) Accept(ctx context.Context, conn net.Conn) (*tls.Conn, Hello, error) {
	c := &helloConn{Conn: conn}
	t := tls.Server(c, s.current().server)
	if err := t.HandshakeContext(ctx); err != nil {
		s.reject(c, t, err)
		return nil, c.hello, explained(err)
	}
	if certs := t.ConnectionState().PeerCertificates; s.o.CheckAddress && len(certs) > 0 {
		if err := s.checkAddress(ctx, certs[0], conn.RemoteAddr()); err != nil {
			s.reject(c, t, err)
			return t, c.hello, explained(err)
		}
	}
	return t, c.hello, nil
}

// Connect does the client's half on a connection that was dialled to host.
func (s *Set) Connect(ctx context.Context, conn net.Conn, host string) (*tls.Conn, error) {
	config := s.current().client.Clone()
	if config.ServerName = s.o.ServerName; config.ServerName == "" {
		config.ServerName = host
	}
	t := tls.Client(conn, config)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, explained(err)
	}
	return t, nil
}

// ClientConfig is for a client library that dials by itself, with the files as they are now.
func (s *Set) ClientConfig() *tls.Config { return s.current().client.Clone() }

// reject tells the log and, if it speaks no TLS, the other side.
func (s *Set) reject(c *helloConn, t *tls.Conn, err error) {
	if c.heard || !closed(err) { // otherwise somebody only looks whether the port is open
		cause, _ := explain(err)
		args := []any{"kind", s.o.Kind, "remote-addr", c.RemoteAddr().String(), "server-name", c.hello.ServerName, "error", err}
		certs := t.ConnectionState().PeerCertificates
		if unverified, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			certs = unverified.UnverifiedCertificates
		}
		if len(certs) > 0 {
			args = append(args, "subject", certs[0].Subject.String(), "names", namesOf(certs[0]))
		}
		// The beginning is what scripts look for in an etcd's log.
		s.complaints.note(hostOf(c.RemoteAddr()), "rejected connection on "+s.o.Kind+" endpoint: "+cause, args...)
	}
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok && header.Conn != nil {
		answerPlain(c.Conn, header.RecordHeader[:])
	}
}

func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed)
}

const plainText = "This port speaks TLS, and the request came without. Use https:// instead of http://.\n"

// answerPlain tells a client that began without TLS, if it speaks HTTP. That of HTTP/2 is answered in HTTP/1.1 too: gRPC
// clients recognise it, say so and wait before they try again, which they would not after a GOAWAY.
func answerPlain(conn net.Conn, head []byte) {
	switch string(head[:min(len(head), 5)]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH", "CONNE", "TRACE", "PRI *":
	default:
		return
	}
	_ = conn.SetDeadline(time.Now().Add(lingerFor))
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s", len(plainText), plainText); err != nil {
		return
	}
	// Closing while something is unread makes the kernel throw the answer away on the other side.
	if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, conn, lingerBytes)
	}
}

// Bounds on listening to a client that was told to go away.
const (
	lingerFor   = time.Second
	lingerBytes = 1 << 20
)
