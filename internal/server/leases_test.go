package server

import (
	"context"
	"errors"
	"testing"

	"github.com/trivet-kv/trivet/internal/kv"
)

// What one member answers about a lease, the other reads; and what only the asking member can judge is not an answer.
func TestLeaseAnswer(t *testing.T) {
	for _, a := range []leaseAnswer{
		{lease: kv.Lease{ID: 7, TTL: 10, Remaining: 3}, remaining: 9},
		{lease: kv.Lease{ID: 7}},
		{err: kv.ErrLeaseNotFound},
		{err: kv.ErrNotLeader},
	} {
		b, err := a.encode()
		if err != nil {
			t.Fatal(err)
		}
		if got := decodeLeaseAnswer(7, b); got != a {
			t.Errorf("%+v arrived as %+v", a, got)
		}
	}
	if _, err := (&leaseAnswer{err: context.Canceled}).encode(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// No bytes from a peer make a panic, and none but those of an answer make one without an error.
func FuzzLeaseAnswer(f *testing.F) {
	f.Add([]byte{leaseOK, 20, 0, 18})
	f.Add([]byte{leaseNotFound})
	f.Fuzz(func(t *testing.T, b []byte) {
		a := decodeLeaseAnswer(1, b)
		if a.err == nil && len(b) < 4 {
			t.Fatalf("%x was read as %+v", b, a)
		}
	})
}
