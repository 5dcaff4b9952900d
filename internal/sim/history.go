package sim

import (
	"fmt"
	"math"
	"sync"
	"time"
)

// Pair is one version of a key as a member answered it. A Pair with Version 0 says that the key does not exist.
type Pair struct {
	Value                string
	Create, Mod, Version int64
}

// Kind is what an Op does.
type Kind uint8

// The kinds of Op.
const (
	Get    Kind = iota // one key, linearizable or serializable
	Put                // one key, with a value that no other Op writes
	Swap               // put if the key's mod revision is Expect, else get
	Delete             // one key
	List               // all keys of the run
	Both               // put two keys in one transaction
)

func (k Kind) String() string { return [...]string{"get", "put", "swap", "delete", "list", "both"}[k] }

// Op is one request of a client and what became of it. Call and Return are positions in the one order in which all
// clients began and ended their requests: fake time stands still while goroutines run, so it cannot order them.
type Op struct {
	Client       int
	Member       uint64
	Kind         Kind
	Key, Value   string
	Key2, Value2 string // of Both; a key other than Key
	Expect       int64
	Lease        int64 // of a Put: the lease that the key hangs on
	Serializable bool

	Call, Return int64
	At           time.Duration // since the start of the run, when called

	// Known is false for a request that ended in an error or with the death of its member: then it may have taken
	// effect, may do so later, or never, and nothing below is set but Err.
	Known     bool
	Err       string
	Revision  int64 // of the answer's header: for a write that changed something, its own
	Succeeded bool  // of a Swap
	Deleted   int64
	Pair      Pair            // of a Get or a Swap that did not succeed
	Pairs     map[string]Pair // of a List
}

// writes reports whether the Op, known, changed its key.
func (o *Op) writes() bool {
	return o.Kind == Put || o.Kind == Both || o.Kind == Swap && o.Succeeded || o.Kind == Delete && o.Deleted > 0
}

func (o *Op) String() string {
	s := fmt.Sprintf("[%d..%d at %v] client %d, member %x: %v %s", o.Call, o.Return, o.At, o.Client, o.Member, o.Kind, o.Key)
	if o.Value != "" {
		s += fmt.Sprintf("=%s", o.Value)
	}
	if o.Kind == Both {
		s += fmt.Sprintf(" and %s=%s", o.Key2, o.Value2)
	}
	if o.Kind == Swap {
		s += fmt.Sprintf(" if mod is %d", o.Expect)
	}
	if o.Serializable {
		s += " serializable"
	}
	if !o.Known {
		return s + " -> unknown: " + o.Err
	}
	s += fmt.Sprintf(" -> revision %d", o.Revision)
	switch o.Kind {
	case Get:
		s += fmt.Sprintf(" %+v", o.Pair)
	case Swap:
		s += fmt.Sprintf(" succeeded %v %+v", o.Succeeded, o.Pair)
	case Delete:
		s += fmt.Sprintf(" deleted %d", o.Deleted)
	case List:
		s += fmt.Sprintf(" %d keys", len(o.Pairs))
	}
	return s
}

// never is the Return of an Op that has not returned.
const never = math.MaxInt64

// History records what clients did. It may be used from any goroutine.
type History struct {
	mu    sync.Mutex
	clock int64
	ops   []*Op
}

// Begin records that a client is about to send o, and returns the recorded Op for End.
func (h *History) Begin(o Op) *Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	o.Call, o.Return = h.clock, never
	h.ops = append(h.ops, &o)
	return &o
}

// End records the answer that fill writes into the Op, unless still is not true any more: then the answer came from a
// member that is dead already, no client can have had it, and the outcome stays unknown.
func (h *History) End(o *Op, still func() bool, fill func(o *Op)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	if !still() {
		o.Err = "the member died"
		return
	}
	fill(o)
	if o.Known {
		o.Return = h.clock
	}
}

// Locked runs f while no Op can end: what f takes away from a member, no answer can contradict.
func (h *History) Locked(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// Ops returns what was recorded, in the order of the calls. Nothing may be recorded any more.
func (h *History) Ops() []*Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ops
}
