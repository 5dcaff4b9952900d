// Package fsm is the state machine: committed log entries go in, results and events come out, and between the two one
// engine batch changes the state. Everything that Trivet stores for its users changes here and nowhere else.
//
// The state of one member is a State: the engine with the key-value store, the leases, the users and roles, the members
// and the alarms over it. All of
// them are written through the same batch, which also holds the index and term of the last entry it contains, so that
// whatever part of history survives a crash is a prefix of the log and says how long it is. Entries are applied in log
// order by one goroutine, the replica's apply loop. Applying looks at no clock, no randomness and no configuration: every
// member that applies the same entries holds the same rows (TestSameEntriesSameState, and internal/sim).
package fsm

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/trivet-kv/trivet/internal/alarm"
	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/lease"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// State is everything the log made, over one engine.
type State struct {
	Engine  *engine.Engine
	Store   *mvcc.Store
	Leases  *lease.Leases
	Auth    *auth.Auth
	Members *member.Members
	Alarms  *alarm.Alarms

	// Applied is the position of the last entry that the state holds, and ConfState the encoded voters and learners of
	// raft after it. Both are the apply goroutine's.
	Applied   Position
	ConfState []byte

	sum   sum // the apply goroutine's
	notes atomic.Pointer[[]command.Note]
}

// Position names one entry of the log.
type Position struct{ Index, Term uint64 }

// ErrNotBootstrapped is returned by Open for an engine that holds no cluster's state yet.
var ErrNotBootstrapped = errors.New("fsm: the state was never bootstrapped")

// Open reads the state that e holds.
func Open(e *engine.Engine, o mvcc.Options) (*State, error) {
	s := &State{Engine: e}
	var err error
	if s.Applied, s.ConfState, err = ReadPosition(e); err != nil {
		return nil, err
	}
	if len(s.ConfState) == 0 {
		return nil, ErrNotBootstrapped
	}
	if s.Store, err = mvcc.Open(e, o); err != nil {
		return nil, fmt.Errorf("open the key-value store: %w", err)
	}
	if s.Leases, err = lease.Open(e); err != nil {
		return nil, fmt.Errorf("open the leases: %w", err)
	}
	if s.Auth, err = auth.Open(e); err != nil {
		return nil, fmt.Errorf("open users and roles: %w", err)
	}
	if s.Members, err = member.Open(e); err != nil {
		return nil, fmt.Errorf("open the members: %w", err)
	}
	if s.Alarms, err = alarm.Open(e); err != nil {
		return nil, fmt.Errorf("open the alarms: %w", err)
	}
	if s.sum, err = readSum(e); err != nil {
		return nil, err
	}
	s.notes.Store(&s.sum.notes)
	return s, nil
}

// BootstrapPosition is where the log of a new cluster begins: every founding member starts from the same state at this
// position, so a member that does not have that state can never be brought up from the log alone and gets a checkpoint.
var BootstrapPosition = Position{Index: 1, Term: 1}

// Bootstrap writes the first state of a new cluster and makes it durable. All founding members must be given the same
// members and conf state.
func Bootstrap(e *engine.Engine, members []member.Member, confState []byte) error {
	return bootstrap(e, members, confState, BootstrapPosition)
}

// BootstrapJoin writes the first state of a member that joins a running cluster, and makes it durable: who the others are,
// as one of them told, and nothing applied. Such a member is brought up by a checkpoint, which replaces all of it.
func BootstrapJoin(e *engine.Engine, members []member.Member, confState []byte) error {
	return bootstrap(e, members, confState, Position{})
}

func bootstrap(e *engine.Engine, members []member.Member, confState []byte, at Position) error {
	b := e.NewBatch()
	defer b.Close()
	table, err := member.Open(e)
	if err != nil {
		return err
	}
	for _, m := range members {
		if err := table.Set(b, m); err != nil {
			return err
		}
	}
	begin := sum{since: at.Index}
	if err := begin.write(b); err != nil {
		return err
	}
	if err := writePosition(b, at, confState); err != nil {
		return err
	}
	if err := b.Commit(); err != nil {
		return err
	}
	return e.Flush()
}

func writePosition(b *engine.Batch, p Position, confState []byte) error {
	if confState != nil {
		if err := b.Set(engine.MetaConfState(), confState); err != nil {
			return err
		}
	}
	return b.Set(engine.MetaApplied(), engine.AppendApplied(nil, p.Index, p.Term))
}

// ReadPosition returns the position and the conf state that the rows of r hold; a zero position if they were never
// bootstrapped.
func ReadPosition(r engine.Reader) (p Position, confState []byte, err error) {
	row, found, err := r.Get(engine.MetaApplied())
	if err != nil || !found {
		return Position{}, nil, err
	}
	if p.Index, p.Term, err = engine.DecodeApplied(row); err != nil {
		return Position{}, nil, err
	}
	confState, _, err = r.Get(engine.MetaConfState())
	return p, confState, err
}
