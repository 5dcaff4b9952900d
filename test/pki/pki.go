// Package pki makes certificate authorities, certificates and revocation lists for tests, while they run: none is ever
// kept in the tree. It is for tests alone, and its certificates prove nothing to anybody else. What cannot fail but for a
// mistake in a test panics.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// CA is a certificate authority.
type CA struct {
	Cert *x509.Certificate
	PEM  []byte
	key  *ecdsa.PrivateKey
}

// Pair is a certificate with its key, both in PEM.
type Pair struct {
	Cert, Key []byte
	X509      *x509.Certificate
}

// Spec says what a certificate is for. Without times it is valid from an hour ago for a day. It serves for both ends of a
// connection unless Usages says otherwise.
type Spec struct {
	CN                  string
	Hosts               []string // IP addresses and names
	NotBefore, NotAfter time.Time
	Usages              []x509.ExtKeyUsage
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprintf("pki: %v", err))
	}
	return v
}

func serial() *big.Int { return must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))) }

// NewCA makes an authority that signs itself.
func NewCA(name string) *CA {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	return &CA{Cert: must(x509.ParseCertificate(der)), PEM: encode("CERTIFICATE", der), key: key}
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Issue makes a certificate.
func (ca *CA) Issue(s Spec) *Pair {
	if s.NotBefore.IsZero() {
		s.NotBefore = time.Now().Add(-time.Hour)
	}
	if s.NotAfter.IsZero() {
		s.NotAfter = time.Now().Add(24 * time.Hour)
	}
	if s.Usages == nil {
		s.Usages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: s.CN}, NotBefore: s.NotBefore, NotAfter: s.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: s.Usages,
	}
	for _, h := range s.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der := must(x509.CreateCertificate(rand.Reader, template, ca.Cert, &key.PublicKey, ca.key))
	return &Pair{
		Cert: encode("CERTIFICATE", der), X509: must(x509.ParseCertificate(der)),
		Key: encode("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(key))),
	}
}

// Revoke makes a revocation list, in DER, of the certificates given.
func (ca *CA) Revoke(pairs ...*Pair) []byte {
	list := &x509.RevocationList{Number: serial(), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(24 * time.Hour)}
	for _, p := range pairs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: p.X509.SerialNumber, RevocationTime: time.Now().Add(-time.Minute),
		})
	}
	return must(x509.CreateRevocationList(rand.Reader, list, ca.Cert, ca.key))
}

// Write puts content into dir/name, by a rename, so that a reader sees the old file or the new one. It returns the path.
func Write(dir, name string, content []byte) string {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".next", content, 0o600); err != nil {
		panic(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		panic(err)
	}
	return path
}

// WriteTo puts the pair into dir/name.pem and dir/name-key.pem, and returns the paths.
func (p *Pair) WriteTo(dir, name string) (cert, key string) {
	return Write(dir, name+".pem", p.Cert), Write(dir, name+"-key.pem", p.Key)
}
