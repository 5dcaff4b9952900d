package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// SelfSigned returns the paths of a certificate and its key in dir, which a member signs itself. They are made when there
// are none, and made anew when the time of those there is over. hosts are the names and addresses that it is for.
func SelfSigned(dir string, hosts []string, validity time.Duration, log *slog.Logger) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert, certErr := os.ReadFile(certFile)
	key, keyErr := os.ReadFile(keyFile)
	switch {
	case certErr == nil && keyErr == nil:
		pair, err := parsePair([][]byte{cert, key})
		if err != nil {
			return "", "", fmt.Errorf("the certificate that this member made itself, %s with key %s: %w; remove both to have them made anew", certFile, keyFile, err)
		}
		if time.Now().Before(pair.Leaf.NotAfter) {
			return certFile, keyFile, nil
		}
		log.Warn("the certificate that this member made itself has expired; it makes another", "path", certFile, "not-after", pair.Leaf.NotAfter)
	case certErr != nil && !errors.Is(certErr, fs.ErrNotExist):
		return "", "", certErr
	case keyErr != nil && !errors.Is(keyErr, fs.ErrNotExist):
		return "", "", keyErr
	}
	if cert, key, err = makeSelfSigned(hosts, validity); err != nil {
		return "", "", fmt.Errorf("make a certificate: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("make a folder for certificates: %w", err)
	}
	// The certificate last: with it there is a pair.
	if err := os.Remove(certFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	if err := writeFile(keyFile, key, 0o600); err != nil {
		return "", "", err
	}
	if err := writeFile(certFile, cert, 0o644); err != nil {
		return "", "", err
	}
	log.Warn("made a certificate that nobody but this member has signed", "path", certFile, "not-after", time.Now().Add(validity).UTC().Format(time.RFC3339))
	return certFile, keyFile, nil
}

func writeFile(path string, content []byte, mode fs.FileMode) error {
	next := path + ".next"
	if err := os.WriteFile(next, content, mode); err != nil {
		return err
	}
	return os.Rename(next, path)
}

func makeSelfSigned(hosts []string, validity time.Duration) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"trivet"}},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(validity), // a minute for clocks that differ
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:        true, BasicConstraintsValid: true, // so that a client can be given it as its CA
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if h != "" {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), nil
}
