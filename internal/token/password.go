package token

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/bcrypt"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Passwords hashes and compares passwords. Each takes some ten milliseconds of a processor on purpose, so that only some
// are done at one time, and the rest wait: all other requests go on beside them.
type Passwords struct {
	cost    int
	places  chan struct{}
	waiting atomic.Int64
	dummy   func() []byte // a hash of nobody's password
}

// maxWaiting bounds who waits; the next is told kv.ErrTooManyRequests.
const maxWaiting = 1024

// NewPasswords makes hashes of a cost from 4 to 31; another is etcd's default, 10.
func NewPasswords(cost int) *Passwords {
	if cost < bcrypt.MinCost || cost > bcrypt.MaxCost {
		cost = bcrypt.DefaultCost
	}
	return &Passwords{
		cost: cost, places: make(chan struct{}, max(1, min(runtime.GOMAXPROCS(0), runtime.NumCPU())/2)),
		dummy: sync.OnceValue(func() []byte {
			h, _ := bcrypt.GenerateFromPassword([]byte(Nonce()), cost) // it fails for long passwords only
			return h
		}),
	}
}

// Hash returns the hash of a password; an error for one of more than 72 bytes.
func (p *Passwords) Hash(ctx context.Context, password string) (hash []byte, err error) {
	done := p.enter(ctx, &err)
	if err != nil {
		return nil, err
	}
	defer done()
	return bcrypt.GenerateFromPassword([]byte(password), p.cost)
}

// Compare returns nil if hash is that of the password, kv.ErrAuthFailed if it is not. With no hash it fails after the same
// time, so that nobody learns which users there are.
func (p *Passwords) Compare(ctx context.Context, hash []byte, password string) (err error) {
	done := p.enter(ctx, &err)
	if err != nil {
		return err
	}
	defer done()
	if len(hash) == 0 {
		_ = bcrypt.CompareHashAndPassword(p.dummy(), []byte(password))
		return kv.ErrAuthFailed
	}
	if bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil {
		return kv.ErrAuthFailed
	}
	return nil
}

// enter waits for a place.
func (p *Passwords) enter(ctx context.Context, err *error) (leave func()) {
	defer p.waiting.Add(-1)
	if p.waiting.Add(1) > maxWaiting {
		*err = kv.ErrTooManyRequests
		return nil
	}
	select {
	case p.places <- struct{}{}:
		return func() { <-p.places }
	case <-ctx.Done():
		*err = ctx.Err()
		return nil
	}
}
