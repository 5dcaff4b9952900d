// Package token owns the tokens by which clients say who they are: simple ones, which the log makes and each member keeps
// in memory until they are not used for some time, and JSON web tokens, which a key makes and checks. It also hashes and
// compares passwords, few at a time. It decides nothing about permissions, and knows no requests.
//
// A token is a secret. Nothing here logs one, and no error holds one.
//
// Whether the user of a token still is who it was when the token was made is for package auth to say (View.Valid, and
// Permissions for signed tokens), so that nothing has to be told here when users change.
package token

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/auth"
)

// Kind is a kind of tokens.
type Kind uint8

// The kinds.
const (
	None   Kind = iota // nobody gets a token, and none is right
	Simple             // random, known to the members
	Signed             // JWT
)

// DefaultTTL is how long a token lives if nothing else is said.
const DefaultTTL = 5 * time.Minute

// MaxSimple bounds the simple tokens that a member remembers; beyond, some go before their time.
const MaxSimple = 1 << 18

// Options says which tokens there are.
type Options struct {
	// Spec is the value of --auth-token: "simple", "jwt,name=value,..." or nothing.
	Spec string
	// TTL is how long a simple token lives after it was last used. 0: DefaultTTL.
	TTL time.Duration
	// Now is the clock; nil: the real one.
	Now func() time.Time
	// MaxSimple is for tests; 0: MaxSimple.
	MaxSimple int
}

// Tokens is the tokens of one member. All methods may be called from any goroutine.
type Tokens struct {
	kind Kind
	ttl  time.Duration
	now  func() time.Time
	max  int
	jwt  *jwtKey

	mu      sync.Mutex
	simple  map[string]*entry
	sweepAt int // number of tokens at which to look for old ones
}

type entry struct {
	who  auth.Who
	ends time.Time
}

// New reads the spec. What is wrong with it is said for the flag --auth-token, without what a key file holds.
func New(o Options) (*Tokens, error) {
	t := &Tokens{ttl: o.TTL, now: o.Now, max: o.MaxSimple, simple: make(map[string]*entry)}
	if t.ttl <= 0 {
		t.ttl = DefaultTTL
	}
	if t.now == nil {
		t.now = time.Now
	}
	if t.max <= 0 {
		t.max = MaxSimple
	}
	t.sweepAt = min(sweepLeast, t.max)
	kind, rest, _ := strings.Cut(o.Spec, ",")
	options, err := parseOptions(rest)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "":
		t.kind = None
	case "simple":
		t.kind = Simple
	case "jwt":
		t.kind = Signed
		if t.jwt, err = newJWT(options); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("the kind of tokens %q is not known: give simple or jwt", kind)
	}
	return t, nil
}

// parseOptions reads name=value,name=value.
func parseOptions(text string) (map[string]string, error) {
	out := map[string]string{}
	if text == "" {
		return out, nil
	}
	for _, one := range strings.Split(text, ",") {
		name, value, ok := strings.Cut(one, "=")
		if _, twice := out[name]; !ok || twice || strings.Contains(value, "=") {
			return nil, fmt.Errorf("the option %q is not NAME=VALUE, given once", name)
		}
		out[name] = value
	}
	return out, nil
}

// Kind is the kind of these tokens.
func (t *Tokens) Kind() Kind { return t.kind }

// letters are what nonces are made of, as etcd makes them.
const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// Nonce is the part of a simple token that is hard to guess: 16 letters, 91 bits.
func Nonce() string {
	b := make([]byte, 0, 16)
	var r [32]byte
	for {
		_, _ = rand.Read(r[:]) // it never fails
		for _, v := range r {
			// 208 is four times 52: what is above would make some letters likelier.
			if v < 4*byte(len(letters)) && len(b) < cap(b) {
				b = append(b, letters[int(v)%len(letters)])
			}
		}
		if len(b) == cap(b) {
			return string(b)
		}
	}
}

// Index is the log entry that made a simple token, if that is what it looks like.
func Index(token string) (uint64, bool) {
	nonce, index, ok := strings.Cut(token, ".")
	if !ok || nonce == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(index, 10, 64)
	return n, err == nil
}

// Made remembers a simple token that the log made.
func (t *Tokens) Made(token string, who auth.Who) {
	if t.kind != Simple {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if len(t.simple) >= t.sweepAt {
		t.sweepLocked(now)
	}
	t.simple[token] = &entry{who: who, ends: now.Add(t.ttl)}
}

// sweepLocked forgets the tokens whose time is over. It is done when there are twice as many as it left the last time, so
// that a token made costs the same however many there are. If there is still no room, any one goes.
func (t *Tokens) sweepLocked(now time.Time) {
	for token, e := range t.simple {
		if now.After(e.ends) {
			delete(t.simple, token)
		}
	}
	for token := range t.simple {
		if len(t.simple) < t.max {
			break
		}
		delete(t.simple, token)
	}
	t.sweepAt = min(max(2*len(t.simple), sweepLeast), t.max)
}

// sweepLeast is how many tokens are never worth a look for old ones.
const sweepLeast = 1024

// Find returns whose simple token this is, and lets it live for another TTL.
func (t *Tokens) Find(token string) (auth.Who, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	e := t.simple[token]
	if e == nil {
		return auth.Who{}, false
	}
	if now.After(e.ends) {
		delete(t.simple, token)
		return auth.Who{}, false
	}
	e.ends = now.Add(t.ttl)
	return e.who, true
}

// Forget forgets a simple token.
func (t *Tokens) Forget(token string) {
	t.mu.Lock()
	delete(t.simple, token)
	t.mu.Unlock()
}

// Len is how many simple tokens are remembered, some of them perhaps over their time.
func (t *Tokens) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.simple)
}

// ErrVerifyOnly is returned for who asks for a token while there is a key to check tokens only.
var ErrVerifyOnly = errors.New("auth: token signing attempted with verify-only key")

// Sign makes a signed token.
func (t *Tokens) Sign(who auth.Who) (string, error) { return t.jwt.sign(who, t.now()) }

// Verify returns whose signed token this is.
func (t *Tokens) Verify(token string) (auth.Who, bool) { return t.jwt.verify(token, t.now) }
