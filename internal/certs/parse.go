package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// errCut: PEM's decoder skips what it cannot read, also the second half of a file that is being written.
var errCut = errors.New("the file is cut off: a block begins and does not end")

// blocks returns the PEM blocks of a file that is whole.
func blocks(content []byte) ([]*pem.Block, error) {
	var all []*pem.Block
	for {
		b, rest := pem.Decode(content)
		if b == nil {
			break
		}
		all, content = append(all, b), rest
	}
	if bytes.Contains(content, []byte("-----BEGIN")) {
		return nil, errCut
	}
	return all, nil
}

// parsePair makes a certificate, with its chain, of the contents of a certificate file and a key file.
func parsePair(contents [][]byte) (*tls.Certificate, error) {
	for _, c := range contents {
		if _, err := blocks(c); err != nil {
			return nil, err
		}
	}
	pair, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return nil, err
	}
	return &pair, nil
}

// parsePool makes a pool of the certificates in a file.
func parsePool(contents [][]byte) (*x509.CertPool, error) {
	all, err := blocks(contents[0])
	if err != nil {
		return nil, err
	}
	pool, n := x509.NewCertPool(), 0
	for _, b := range all {
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n+1, err)
		}
		pool.AddCert(cert)
		n++
	}
	if n == 0 {
		return nil, errors.New("there is no certificate in it; name a file with certificates in PEM form")
	}
	return pool, nil
}

// parseRevoked makes the set of revoked serial numbers of a revocation list, in DER, or lists in PEM. Like etcd it goes by
// serial numbers alone and looks neither at the list's signature nor at its end: a list that is out of date still refuses
// what it names.
func parseRevoked(contents [][]byte) (map[string]bool, error) {
	lists := [][]byte{contents[0]}
	all, err := blocks(contents[0])
	if err != nil {
		return nil, err
	}
	if len(all) > 0 {
		lists = nil
		for _, b := range all {
			lists = append(lists, b.Bytes)
		}
	}
	revoked := map[string]bool{}
	for _, der := range lists {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, err
		}
		for _, e := range list.RevokedCertificateEntries {
			revoked[string(e.SerialNumber.Bytes())] = true
		}
	}
	return revoked, nil
}
