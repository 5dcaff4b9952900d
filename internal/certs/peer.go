package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
)

// Listen makes the connections of l ones that do the server's half of a handshake when they are opened.
func (s *Set) Listen(l net.Listener) net.Listener { return opening{l, s} }

type opening struct {
	net.Listener
	set *Set
}

// Accept returns an *Unopened.
func (o opening) Accept() (net.Conn, error) {
	conn, err := o.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &Unopened{conn, func(ctx context.Context) (net.Conn, error) {
		t, _, err := o.set.Accept(ctx, conn)
		if t != nil {
			return &open{t, conn}, err
		}
		if header, ok := errors.AsType[tls.RecordHeaderError](err); ok && string(header.RecordHeader[:]) == memberMagic {
			return conn, err
		}
		return nil, err
	}}, nil
}

// memberMagic is how members that speak no TLS begin, as far as TLS looks; such a member is told in its own protocol.
const memberMagic = "TRIVE"

// Dialled makes conn, which was dialled to host, one that does the client's half when it is opened.
func (s *Set) Dialled(conn net.Conn, host string) *Unopened {
	return &Unopened{conn, func(ctx context.Context) (net.Conn, error) {
		t, err := s.Connect(ctx, conn, host)
		if err != nil {
			return nil, err
		}
		return &open{t, conn}, nil
	}}
}

// Unopened is a connection before its handshake.
type Unopened struct {
	net.Conn
	open func(context.Context) (net.Conn, error)
}

// Open does the handshake.
func (u *Unopened) Open(ctx context.Context) (net.Conn, error) { return u.open(ctx) }

// open is a connection between members. What goes over it says itself where it ends, so that closing needs no goodbye,
// for which crypto/tls waits up to 5 s if the other side does not read.
type open struct {
	*tls.Conn
	raw net.Conn
}

// Close closes at once.
func (o *open) Close() error { return o.raw.Close() }

// Read takes the end of the connection for the end. What the other side makes of a certificate comes here, after the
// handshake has ended on this one.
func (o *open) Read(p []byte) (int, error) {
	n, err := o.Conn.Read(p)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = io.EOF
	case err != nil && strings.HasPrefix(err.Error(), remoteAlert):
		err = explained(err)
	}
	return n, err
}
