package sim

import (
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// resolve tells, from the history, which of the requests with unknown outcome took effect, and until when: values are
// unique, and who was answered at a revision was answered after everything up to it had happened. Requests that did not
// take effect are left out.
func resolve(ops []*Op, l *Log) []*Op {
	seen := newSightings(ops)
	claimed := map[int64]bool{}   // revisions of deletes that were acknowledged
	firstLost := map[string]*Op{} // of a key: the first delete without answer
	known := make([]*Op, 0, len(ops))
	for _, o := range ops {
		switch {
		case o.Known:
			known = append(known, o)
			if o.Kind == Delete && o.Deleted > 0 {
				claimed[o.Revision] = true
			}
		case o.Kind == Delete:
			if firstLost[o.Key] == nil {
				firstLost[o.Key] = o
			}
		case o.Kind == Put || o.Kind == Swap:
			if e, found := l.Put(o.Value); found {
				did := *o
				did.Known, did.Succeeded, did.Revision = true, true, e.Revision
				did.Return = seen.by(e.Revision, o.Call)
				known = append(known, &did)
			}
		}
	}
	// A delete leaves no value behind. Those in the history that nobody was acknowledged are by some of the requests
	// without answer, none of which began before the first.
	for _, e := range l.Events {
		if lost := firstLost[e.Key]; e.Delete && lost != nil && !claimed[e.Revision] && !strings.HasPrefix(e.Key, leasePrefix) {
			did := *lost
			did.Known, did.Deleted, did.Revision = true, 1, e.Revision
			did.Return = seen.by(e.Revision, lost.Call)
			known = append(known, &did)
		}
	}
	return known
}

// sightings tells when a revision was first known to have happened.
type sightings struct {
	revisions []int64 // ascending
	returns   []int64 // the earliest return of an answer at this revision or a later one
	all       []*Op   // that were answered, by revision
}

func newSightings(ops []*Op) *sightings {
	s := &sightings{}
	for _, o := range ops {
		if o.Known {
			s.all = append(s.all, o)
		}
	}
	sort.Slice(s.all, func(i, j int) bool { return s.all[i].Revision < s.all[j].Revision })
	s.revisions, s.returns = make([]int64, len(s.all)), make([]int64, len(s.all))
	earliest := int64(never)
	for i := len(s.all) - 1; i >= 0; i-- {
		earliest = min(earliest, s.all[i].Return)
		s.revisions[i], s.returns[i] = s.all[i].Revision, earliest
	}
	return s
}

// by is the earliest return of an answer that shows the revision; never if there is none, or only answers from before
// the call, which cannot be.
func (s *sightings) by(revision, call int64) int64 {
	i := sort.Search(len(s.revisions), func(i int) bool { return s.revisions[i] >= revision })
	if i == len(s.revisions) || s.returns[i] <= call {
		return never
	}
	return s.returns[i]
}

// checkLinearizable asks porcupine, key by key. Requests that are not linearizable ones of a single key are left out.
func checkLinearizable(f *errList, ops []*Op, l *Log, patience time.Duration) {
	keys := map[string][]*Op{}
	for _, o := range ops {
		if !o.Serializable && o.Kind != List && o.Lease == 0 {
			keys[o.Key] = append(keys[o.Key], o)
		}
	}
	for key, ops := range keys {
		for _, s := range stretches(key, ops, l) {
			model := keyModel
			model.Init = func() any { return s.begin }
			switch porcupine.CheckOperationsTimeout(model, s.operations, patience) {
			case porcupine.Illegal:
				f.add("linearizable", "%d requests for %s, from %d on, cannot be put in one order", len(s.operations), key, s.operations[0].Call/2)
			case porcupine.Unknown:
				f.add("linearizable", "porcupine did not finish %d requests for %s within %v", len(s.operations), key, patience)
			}
		}
	}
}

// stretch is a part of the requests for a key, before and after which none is under way. What the key holds there is not
// in doubt, so each stretch can be looked at alone, which takes porcupine much less time than all of them together: it
// begins with what the key held, and ends with a read that must show what it holds.
type stretch struct {
	begin      keyState
	operations []porcupine.Operation
}

func stretches(key string, ops []*Op, l *Log) []stretch {
	sort.Slice(ops, func(i, j int) bool { return ops[i].Call < ops[j].Call })
	var all []stretch
	var now stretch
	state := keyState{}
	last := int64(0) // return of those so far
	end := func() {
		state.pair = l.At(key, state.changed)
		read := &Op{Kind: Get, Key: key, Known: true, Revision: state.changed, Pair: state.pair}
		now.operations = append(now.operations, porcupine.Operation{Input: read, Call: 2*last + 1, Return: 2*last + 1})
		all = append(all, now)
		now = stretch{begin: state}
	}
	for _, o := range ops {
		if len(now.operations) > 0 && o.Call > last {
			end()
		}
		last = max(last, o.Return)
		twice := int64(never) // positions are doubled, so that there is room for the reads between them
		if o.Return != never {
			twice = 2 * o.Return
		}
		now.operations = append(now.operations, porcupine.Operation{ClientId: o.Client, Input: o, Call: 2 * o.Call, Return: twice})
		if o.writes() {
			state.changed = max(state.changed, o.Revision)
		}
	}
	switch {
	case len(now.operations) == 0:
	case last == never:
		all = append(all, now)
	default:
		end()
	}
	return all
}

// keyState is a key with the revision of its last change, a delete or a put.
type keyState struct {
	pair    Pair
	changed int64
}

// keyModel is one key of a store, one request after the other.
var keyModel = porcupine.Model{
	Step: func(state, input, _ any) (bool, any) { return input.(*Op).step(state.(keyState)) },
	DescribeOperation: func(input, _ any) string {
		return input.(*Op).String()
	},
}

func (o *Op) step(s keyState) (bool, keyState) {
	exists := s.pair.Version > 0
	switch o.Kind {
	case Get:
		return o.Pair == s.pair && o.Revision >= s.changed, s
	case Swap:
		if !o.Succeeded {
			return s.pair.Mod != o.Expect && o.Pair == s.pair, s
		}
		if s.pair.Mod != o.Expect {
			return false, s
		}
	case Delete:
		if o.Deleted == 0 {
			return !exists, s
		}
		return exists && o.Revision > s.changed, keyState{changed: o.Revision}
	}
	if o.Revision <= s.changed {
		return false, s
	}
	next := Pair{Value: o.Value, Create: s.pair.Create, Mod: o.Revision, Version: s.pair.Version + 1}
	if !exists {
		next.Create = o.Revision
	}
	return true, keyState{pair: next, changed: o.Revision}
}
