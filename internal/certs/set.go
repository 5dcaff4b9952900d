package certs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Options says which files make a Set, and what is asked of those who connect.
type Options struct {
	Kind string // client or peer: whom the set is for, as the log says it

	CertFile, KeyFile             string // both or none; none: a set that only dials
	ClientCertFile, ClientKeyFile string // shown when dialling; none: CertFile and KeyFile
	TrustedCAFile                 string // none: the system's
	CRLFile                       string // of certificates that are refused; none: nothing is

	// ClientCertAuth, or a TrustedCAFile, demands a valid certificate of whoever connects.
	ClientCertAuth   bool
	AllowedCNs       []string // the other side's certificate has one of these common names; none: any
	AllowedHostnames []string // or is valid for one of these hosts
	// CheckAddress demands that a certificate that names hosts is valid for the address that its owner connects from.
	CheckAddress bool
	// SelfSigned: each member made its certificate itself, so nobody can verify another's.
	SelfSigned bool
	ServerName string // who is dialled must have a certificate for it; none: for the host that was dialled

	CipherSuites           []uint16 // none: Go's choice
	MinVersion, MaxVersion uint16   // 0: TLS 1.2, and the newest
	NextProtos             []string // what the server speaks (ALPN)

	Logger *slog.Logger // required
	// Resolver is asked for the names that CheckAddress needs; nil: the system's.
	Resolver Resolver
	// FS reads files; nil: the operating system's.
	FS FS
}

// Resolver looks up names; net.Resolver does.
type Resolver interface {
	LookupAddr(ctx context.Context, addr string) (names []string, err error)
	LookupHost(ctx context.Context, host string) (addrs []string, err error)
}

// FS is what a Set needs of a file system.
type FS interface {
	ReadFile(name string) ([]byte, error)
	Stat(name string) (os.FileInfo, error)
}

type systemFS struct{}

func (systemFS) ReadFile(name string) ([]byte, error)  { return os.ReadFile(name) }
func (systemFS) Stat(name string) (os.FileInfo, error) { return os.Stat(name) }

// Set is what the files for one kind of connection hold. Its methods may be called from any goroutine.
type Set struct {
	o          Options
	complaints complaints
	generation atomic.Pointer[generation] // what handshakes use

	// Of the look at the files; one goroutine at a time.
	parts  []*part
	reader reader

	mu      sync.Mutex
	looking bool
	next    chan struct{} // closed when a look has ended that began after now
}

// lookPatience is how long a handshake waits for a look at the files before it goes on with what was read earlier.
const lookPatience = 2 * time.Second

// New reads the files. An error says what is wrong with which.
func New(o Options) (*Set, error) {
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	if o.FS == nil {
		o.FS = systemFS{}
	}
	switch {
	case (o.CertFile == "") != (o.KeyFile == ""):
		return nil, fmt.Errorf("a certificate and its key belong together; give both (certificate %q, key %q)", o.CertFile, o.KeyFile)
	case (o.ClientCertFile == "") != (o.ClientKeyFile == ""):
		return nil, fmt.Errorf("a certificate for dialling and its key belong together; give both (certificate %q, key %q)", o.ClientCertFile, o.ClientKeyFile)
	case len(o.AllowedCNs) > 0 && len(o.AllowedHostnames) > 0:
		return nil, errors.New("allowed common names and allowed hostnames exclude one another; give one of them")
	}
	s := &Set{o: o, parts: o.parts(), reader: reader{fs: o.FS, files: make(map[string]fileRead)}}
	s.complaints.log = o.Logger
	g := &generation{}
	for _, p := range s.parts {
		if _, err := p.read(g, s.reader.read); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	s.adopt(g)
	return s, nil
}

// Serves tells whether there is a certificate to serve with.
func (s *Set) Serves() bool { return s.o.CertFile != "" }

// adopt makes g what handshakes use.
func (s *Set) adopt(g *generation) {
	g.server, g.client = s.serverConfig(g), s.clientConfig(g)
	s.generation.Store(g)
}

// current looks at the files and returns what they hold, or held when they were last good.
func (s *Set) current() *generation {
	timer := time.NewTimer(lookPatience)
	defer timer.Stop()
	select {
	case <-s.look():
	case <-timer.C:
		s.complaints.note("", "the certificate files cannot be looked at, the disk does not answer; what was read before is used", "kind", s.o.Kind)
	}
	return s.generation.Load()
}

// look returns a channel that is closed once a look at the files has ended that began after the call. Who comes while
// a look is under way shares the next one.
func (s *Set) look() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = make(chan struct{})
	}
	if !s.looking {
		s.looking = true
		go s.runLooks()
	}
	return s.next
}

// runLooks ends when nobody waits for another look. On a disk that hangs it stays, one for each set.
func (s *Set) runLooks() {
	for {
		s.mu.Lock()
		done := s.next
		s.next, s.looking = nil, done != nil
		s.mu.Unlock()
		if done == nil {
			return
		}
		s.reload()
		close(done)
	}
}

// reload makes a new generation if a file holds something else that is good.
func (s *Set) reload() {
	old := s.generation.Load()
	g := *old
	changed := false
	for _, p := range s.parts {
		did, err := p.read(&g, s.reader.read)
		switch {
		case err != nil && err.Error() != p.said:
			p.said = err.Error()
			s.o.Logger.Error("a certificate file cannot be used; what was read before stays in use", "kind", s.o.Kind, "part", p.name, "error", err)
		case err == nil && (did || p.said != ""):
			p.said = ""
			s.o.Logger.Info("read certificate files", "kind", s.o.Kind, "part", p.name, "files", p.files, "new", did)
		}
		changed = changed || did
	}
	if changed {
		s.adopt(&g)
		s.describe()
	}
}

// describe tells the log how long the certificate in use is good for.
func (s *Set) describe() {
	pair := s.generation.Load().pair
	if pair == nil {
		return
	}
	leaf := pair.Leaf
	args := []any{"kind", s.o.Kind, "subject", leaf.Subject.String(), "serial", fmt.Sprintf("%x", leaf.SerialNumber),
		"not-before", leaf.NotBefore.UTC().Format(time.RFC3339), "not-after", leaf.NotAfter.UTC().Format(time.RFC3339)}
	if now := time.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		s.o.Logger.Warn("the certificate in use is not valid now; others will refuse it", args...)
		return
	}
	s.o.Logger.Info("using a certificate", args...)
}
