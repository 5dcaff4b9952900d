package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"time"
)

// generation is what the files held at one time. It never changes: connections that are in use keep theirs. With its
// settings goes the key of its session tickets, so that no session outlives the files it was made under.
type generation struct {
	pair    *tls.Certificate // shown to who connects; nil: none
	dialler *tls.Certificate // shown to whom we connect; nil: pair
	pool    *x509.CertPool   // nil: the system's
	revoked map[string]bool  // serial numbers; nil: none

	server *tls.Config // nil without pair
	client *tls.Config
}

// part is one value that is made of one or two files.
type part struct {
	name  string
	files []string
	parse func(g *generation, contents [][]byte) error // sets g's value, or leaves it

	good   [][]byte // what the value in use was made of
	bad    [][]byte // what was last found not to make one, and why
	badErr error
	said   string // the trouble that the log was told of
}

// parts lists what the options ask for.
func (o *Options) parts() []*part {
	all := []*part{
		{name: "certificate", files: []string{o.CertFile, o.KeyFile}, parse: func(g *generation, c [][]byte) error {
			return set(&g.pair, c, parsePair)
		}},
		{name: "certificate for dialling", files: []string{o.ClientCertFile, o.ClientKeyFile}, parse: func(g *generation, c [][]byte) error {
			return set(&g.dialler, c, parsePair)
		}},
		{name: "trusted CA", files: []string{o.TrustedCAFile}, parse: func(g *generation, c [][]byte) error {
			return set(&g.pool, c, parsePool)
		}},
		{name: "revocation list", files: []string{o.CRLFile}, parse: func(g *generation, c [][]byte) error {
			return set(&g.revoked, c, parseRevoked)
		}},
	}
	return slices.DeleteFunc(all, func(p *part) bool { return p.files[0] == "" })
}

func set[T any](to *T, contents [][]byte, parse func([][]byte) (T, error)) error {
	v, err := parse(contents)
	if err == nil {
		*to = v
	}
	return err
}

// read brings g up to date with the part's files and reports whether it changed. At an error g is as before.
func (p *part) read(g *generation, read func(name string) ([]byte, error)) (bool, error) {
	contents := make([][]byte, len(p.files))
	for i, name := range p.files {
		var err error
		if contents[i], err = read(name); err != nil {
			return false, err
		}
	}
	switch {
	case same(contents, p.good):
		return false, nil
	case same(contents, p.bad):
		return false, p.badErr
	}
	if err := p.parse(g, contents); err != nil {
		p.bad, p.badErr = contents, fmt.Errorf("%s: %w", p.files[0], err)
		if len(p.files) > 1 {
			p.badErr = fmt.Errorf("%s with key %s: %w", p.files[0], p.files[1], err)
		}
		return false, p.badErr
	}
	p.good, p.bad, p.badErr = contents, nil, nil
	return true, nil
}

func same(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }

// reader reads files, and those that have not changed only once.
type reader struct {
	fs    FS
	files map[string]fileRead
}

type fileRead struct {
	content []byte
	info    os.FileInfo // as it was before the file was read
	at      time.Time
}

// settled is how long a file must not have changed when it is read, so that its time of change tells the next one: file
// systems count time in steps, on some networks of seconds.
const settled = 5 * time.Second

// maxFileBytes bounds what is read of one file. Revocation lists of a million entries fit.
const maxFileBytes = 64 << 20

func (r *reader) read(name string) ([]byte, error) {
	info, err := r.fs.Stat(name)
	if err != nil {
		return nil, err
	}
	old, ok := r.files[name]
	if ok && os.SameFile(info, old.info) && info.Size() == old.info.Size() && info.ModTime().Equal(old.info.ModTime()) &&
		old.at.Sub(info.ModTime()) > settled {
		return old.content, nil
	}
	if info.Size() > maxFileBytes {
		return nil, fmt.Errorf("%s has %d bytes; at most %d are read", name, info.Size(), maxFileBytes)
	}
	at := time.Now()
	content, err := r.fs.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r.files[name] = fileRead{content: content, info: info, at: at}
	return content, nil
}
