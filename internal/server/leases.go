package server

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
)

// leaseAnswer is the answer to either call: a status byte, then the lease's TTL, its remaining time as checkpointed and
// the seconds it has left, as varints.
type leaseAnswer struct {
	lease     kv.Lease
	remaining int64
	err       error
}

const (
	leaseOK = iota
	leaseNotFound
	leaseNotLeader
)

// encode returns an error for what only the sender of the call can judge: that its context ended, for instance.
func (a *leaseAnswer) encode() ([]byte, error) {
	switch {
	case errors.Is(a.err, kv.ErrLeaseNotFound):
		return []byte{leaseNotFound}, nil
	case errors.Is(a.err, kv.ErrNotLeader):
		return []byte{leaseNotLeader}, nil
	case a.err != nil:
		return nil, a.err
	}
	b := binary.AppendVarint([]byte{leaseOK}, a.lease.TTL)
	b = binary.AppendVarint(b, a.lease.Remaining)
	return binary.AppendVarint(b, a.remaining), nil
}

func decodeLeaseAnswer(id kv.LeaseID, b []byte) leaseAnswer {
	if len(b) > 0 {
		switch b[0] {
		case leaseNotFound:
			return leaseAnswer{err: kv.ErrLeaseNotFound}
		case leaseNotLeader:
			return leaseAnswer{err: kv.ErrNotLeader}
		}
		b = b[1:]
	}
	var v [3]int64
	for i := range v {
		n := 0
		if v[i], n = binary.Varint(b); n <= 0 {
			return leaseAnswer{err: errors.New("server: malformed answer to a call about a lease")}
		}
		b = b[n:]
	}
	return leaseAnswer{lease: kv.Lease{ID: id, TTL: v[0], Remaining: v[1]}, remaining: v[2]}
}

// LeaseRenew gives the lease its whole time again and returns it in seconds. A member that is cut off refuses it with a timeout while
// its holder can still turn to another; see renewWait.
func (m *Member) LeaseRenew(ctx context.Context, id kv.LeaseID) (ttl int64, err error) {
	within, leaderless := m.options.requestTimeout(), kv.ErrNoLeader
	if l, ok := m.machine.state.Load().Leases.Lookup(id); ok {
		if wait := renewWait(l.TTL, m.options.electionTimeout()); wait < within {
			// Not for want of a leader: etcd's client gives a lease up for good that is refused so.
			within, leaderless = wait, kv.ErrTimeout
		}
	}
	a := m.askLeader(ctx, callLeaseRenew, id, within, leaderless)
	return a.remaining, a.err
}

// renewWait is how long a renewal waits for the leader: a third of the lease's time, after which etcd's clients would send the next
// one, but an election at least. They wait for an answer where they are until the lease is over, and go to another member only after
// an error, half a second later.
func renewWait(ttl int64, election time.Duration) time.Duration {
	return max(time.Duration(ttl)*time.Second/3, election)
}

// LeaseTimeToLive returns the lease and the seconds it has left.
func (m *Member) LeaseTimeToLive(ctx context.Context, id kv.LeaseID) (kv.Lease, int64, error) {
	a := m.askLeader(ctx, callLeaseTimeToLive, id, m.options.requestTimeout(), kv.ErrNoLeader)
	return a.lease, a.remaining, a.err
}

// askLeader puts the question to whoever leads until somebody answers it as the leader. Both questions may be asked again:
// a renewal that was lost and repeated gives the lease its time from the later one on. It gives up after the time given, with the
// error given if there is no leader then.
func (m *Member) askLeader(ctx context.Context, kind byte, id kv.LeaseID, within time.Duration, leaderless error) leaseAnswer {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, within, kv.ErrTimeout)
	defer cancel()
	for {
		changed := m.replica.LeaderChanged()
		a := m.askOnce(ctx, kind, id)
		if a.err == nil || errors.Is(a.err, kv.ErrLeaseNotFound) {
			return a
		}
		if ctx.Err() == nil {
			select {
			case <-changed:
			case <-time.After(m.options.Tick):
			case <-ctx.Done():
			case <-m.replica.Left():
				return leaseAnswer{err: kv.ErrStopped}
			}
		}
		if err := ctx.Err(); err != nil {
			return leaseAnswer{err: m.why(ctx, start, err, leaderless)}
		}
	}
}

func (m *Member) askOnce(ctx context.Context, kind byte, id kv.LeaseID) leaseAnswer {
	switch leader := m.replica.Status().Leader; leader {
	case 0:
		return leaseAnswer{err: kv.ErrNoLeader}
	case m.identity.MemberID:
		return m.askSelf(ctx, kind, id)
	default:
		ctx, cancel := context.WithTimeout(ctx, m.options.electionTimeout())
		defer cancel()
		answer, err := m.transport.Call(ctx, leader, kind, binary.BigEndian.AppendUint64(nil, uint64(id)))
		if err != nil {
			return leaseAnswer{err: err}
		}
		return decodeLeaseAnswer(id, answer)
	}
}

// askSelf answers as the leader, if this member leads.
func (m *Member) askSelf(ctx context.Context, kind byte, id kv.LeaseID) (a leaseAnswer) {
	if kind == callLeaseRenew {
		a.remaining, a.err = m.jobs.Renew(ctx, id)
	} else {
		a.lease, a.remaining, a.err = m.jobs.TimeToLive(ctx, id)
	}
	return a
}

// LeaseKeys returns the keys attached to a lease, in key order.
func (m *Member) LeaseKeys(id kv.LeaseID) ([][]byte, error) {
	s := m.machine.state.Load()
	return s.Leases.Keys(s.Engine, id)
}

// SkimLease visits keys of a lease as lease.Leases.Skim does.
func (m *Member) SkimLease(id kv.LeaseID, visit func(key []byte) ([]byte, error)) error {
	s := m.machine.state.Load()
	return s.Leases.Skim(s.Engine, id, visit)
}

// Leases returns the ids of the leases in order.
func (m *Member) Leases() []kv.LeaseID { return m.machine.state.Load().Leases.IDs() }

// leasesChanged tells the leader's clock what became of leases.
func (m *Member) leasesChanged(changes []fsm.LeaseChange) {
	for _, c := range changes {
		if c.Revoked {
			m.jobs.Revoked(c.Lease.ID)
		} else {
			m.jobs.Changed(c.Lease)
		}
	}
}

// leads returns nil if this member led in the term through a round that began after the call, and has applied what was
// committed by then.
func (m *Member) leads(ctx context.Context, term uint64) error {
	still := func() bool {
		s := m.replica.Status()
		return s.Leader == m.identity.MemberID && s.Term == term
	}
	if !still() {
		return kv.ErrNotLeader
	}
	if err := m.replica.ReadBarrier(ctx, nil); err != nil {
		return err
	}
	if !still() {
		return kv.ErrNotLeader
	}
	return nil
}

// watchLeader starts and ends the leader's jobs as leadership comes and goes. It runs until the member stops.
func (m *Member) watchLeader() {
	var term uint64 // in which the jobs run; 0: they do not
	led := false    // there was a leader
	defer m.jobs.Stop()
	for {
		changed := m.replica.LeaderChanged()
		s := m.replica.Status()
		if s.Leader == 0 && led {
			m.leadership.noteLost(time.Now())
		}
		led = s.Leader != 0
		switch leads := s.Leader == m.identity.MemberID; {
		case leads && s.Term != term:
			term = s.Term
			m.jobs.Start(term, m.machine.state.Load().Leases)
		case !leads && term != 0:
			term = 0
			m.jobs.Stop()
		}
		select {
		case <-changed:
		case <-m.life.Done():
			return
		}
	}
}
