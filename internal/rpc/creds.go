package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
)

// Secured is a connection whose TLS handshake was done before it came to the grpc server, and which says what came of it.
type Secured interface {
	TLSState() (state tls.ConnectionState, secure bool)
}

// doorCredentials leave handshakes to the front door, and tell the services what it found: who asks peer.FromContext gets
// credentials.TLSInfo over TLS, and nothing about a plain connection or one of the JSON gateway.
type doorCredentials struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (doorCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, authInfo(c), nil
}

// authInfo is what the front door found out about a connection.
func authInfo(c net.Conn) credentials.AuthInfo {
	s, ok := c.(Secured)
	if !ok {
		return nil
	}
	state, secure := s.TLSState()
	if !secure {
		return nil
	}
	info := credentials.TLSInfo{State: state}
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	return info
}

// ClientHandshake implements credentials.TransportCredentials; there is no client.
func (doorCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("rpc: these credentials are a server's")
}

// Info implements credentials.TransportCredentials.
func (doorCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (d doorCredentials) Clone() credentials.TransportCredentials { return d }

// OverrideServerName implements credentials.TransportCredentials.
func (doorCredentials) OverrideServerName(string) error { return nil }
