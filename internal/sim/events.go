package sim

import (
	"fmt"
	"sort"
)

// Event is one change as a watcher was shown it.
type Event struct {
	Revision int64
	Delete   bool
	Key      string
	Pair     Pair // of a put
}

func (e Event) String() string {
	if e.Delete {
		return fmt.Sprintf("%d: delete %s", e.Revision, e.Key)
	}
	return fmt.Sprintf("%d: put %s %+v", e.Revision, e.Key, e.Pair)
}

// Log is what happened to the store, in order: all events from revision First on, up to Last.
type Log struct {
	First, Last int64
	Events      []Event

	byKey map[string][]int // indexes into Events
	value map[string]int   // which event put a value; values are unique
}

// NewLog checks that the events could have happened to a store that begins empty at revision 1: revisions are without
// gaps, and each pair follows from the one before it.
func NewLog(events []Event, last int64) (*Log, error) {
	l := &Log{First: 2, Last: last, Events: events, byKey: map[string][]int{}, value: map[string]int{}}
	state := map[string]Pair{}
	revision := int64(1)
	for i, e := range events {
		if e.Revision != revision && e.Revision != revision+1 {
			return nil, fmt.Errorf("history jumps from revision %d to %v", revision, e)
		}
		revision = e.Revision
		was := state[e.Key]
		l.byKey[e.Key] = append(l.byKey[e.Key], i)
		if e.Delete {
			if was.Version == 0 {
				return nil, fmt.Errorf("history deletes a key that is not there: %v", e)
			}
			delete(state, e.Key)
			continue
		}
		want := Pair{Value: e.Pair.Value, Create: was.Create, Mod: e.Revision, Version: was.Version + 1}
		if was.Version == 0 {
			want.Create = e.Revision
		}
		if e.Pair != want {
			return nil, fmt.Errorf("history holds %v, want %+v after %+v", e, want, was)
		}
		if j, twice := l.value[e.Pair.Value]; twice {
			return nil, fmt.Errorf("one request took effect twice: %v and %v", events[j], e)
		}
		l.value[e.Pair.Value] = i
		state[e.Key] = e.Pair
	}
	if revision != last {
		return nil, fmt.Errorf("history ends at revision %d, but the store is at %d", revision, last)
	}
	return l, nil
}

// At returns what a key held at a revision.
func (l *Log) At(key string, revision int64) Pair {
	indexes := l.byKey[key]
	n := sort.Search(len(indexes), func(i int) bool { return l.Events[indexes[i]].Revision > revision })
	if n == 0 {
		return Pair{}
	}
	return l.Events[indexes[n-1]].Pair // of a delete it is the zero Pair
}

// ListAt returns what all keys held at a revision.
func (l *Log) ListAt(revision int64) map[string]Pair {
	pairs := map[string]Pair{}
	for key := range l.byKey {
		if p := l.At(key, revision); p.Version > 0 {
			pairs[key] = p
		}
	}
	return pairs
}

// Put returns the event that put the value.
func (l *Log) Put(value string) (Event, bool) {
	i, ok := l.value[value]
	if !ok {
		return Event{}, false
	}
	return l.Events[i], true
}

// Watched is what one watcher saw. A watcher that loses its member begins again behind what it saw last.
type Watched struct {
	Name string
	From int64
	Key  string // one key, or every key if empty
	Seen []Event

	// Skipped are the stretches of history that the watcher was told to be compacted, from the first to the last
	// revision that it did not see.
	Skipped [][2]int64
	// Told is the revision up to which the watcher was told, by a progress notification, that it has seen everything.
	Told int64
}

// Next is the revision that the watcher has to ask for when it begins again.
func (w *Watched) Next() int64 {
	next := w.From
	if n := len(w.Seen); n > 0 {
		next = max(next, w.Seen[n-1].Revision+1)
	}
	if n := len(w.Skipped); n > 0 {
		next = max(next, w.Skipped[n-1][1]+1)
	}
	return max(next, w.Told+1)
}

// Check compares what the watcher saw with what happened up to the revision upTo, which the watcher must have reached.
func (w *Watched) Check(l *Log, upTo int64) error {
	var want []Event
	for _, e := range l.Events {
		if e.Revision >= w.From && e.Revision <= upTo && (w.Key == "" || w.Key == e.Key) && !w.skipped(e.Revision) {
			want = append(want, e)
		}
	}
	for i, e := range w.Seen {
		switch {
		case i >= len(want):
			return fmt.Errorf("watcher %s saw more than happened: %v", w.Name, e)
		case e == want[i]:
		case e.Revision > want[i].Revision:
			return fmt.Errorf("watcher %s missed %v: it saw %v instead, behind %d events", w.Name, want[i], e, i)
		default:
			return fmt.Errorf("watcher %s saw %v where %v was due, behind %d events: repeated, reordered or wrong", w.Name, e, want[i], i)
		}
	}
	if len(w.Seen) < len(want) {
		return fmt.Errorf("watcher %s stopped before %v, %d events short of revision %d", w.Name, want[len(w.Seen)], len(want)-len(w.Seen), upTo)
	}
	return nil
}

func (w *Watched) skipped(revision int64) bool {
	for _, s := range w.Skipped {
		if s[0] <= revision && revision <= s[1] {
			return true
		}
	}
	return false
}
