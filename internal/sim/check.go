package sim

import (
	"errors"
	"fmt"
	"maps"
	"sort"
	"strings"
	"time"
)

// maxFaults bounds how many broken promises of one kind are told: the first ones say most.
const maxFaults = 5

// errList collects broken promises.
type errList struct {
	list  []error
	kinds map[string]int
}

func (f *errList) add(kind, format string, args ...any) {
	if f.kinds == nil {
		f.kinds = map[string]int{}
	}
	if f.kinds[kind]++; f.kinds[kind] <= maxFaults {
		f.list = append(f.list, fmt.Errorf(kind+": "+format, args...))
	}
}

func (f *errList) err() error { return errors.Join(f.list...) }

// Check holds what clients were answered against what happened. The log is the history that all members agree on at the
// end of the run. Porcupine is given at most its patience of wall-clock time for each key.
func Check(ops []*Op, l *Log, patience time.Duration) error {
	var f errList
	checkBoth(&f, ops, l)
	ops = apart(ops)
	checkWrites(&f, ops, l)
	checkReads(&f, ops, l)
	checkOrder(&f, ops)
	checkLinearizable(&f, resolve(ops, l), l, patience)
	return f.err()
}

// checkBoth: a transaction takes effect as a whole, at one revision, or not at all.
func checkBoth(f *errList, ops []*Op, l *Log) {
	for _, o := range ops {
		if o.Kind != Both {
			continue
		}
		first, did := l.Put(o.Value)
		second, did2 := l.Put(o.Value2)
		if did != did2 || first.Revision != second.Revision {
			f.add("transaction", "took effect in part or in two steps, %v, %v: %v", first, second, o)
		}
	}
}

// apart makes two puts of each transaction that puts two keys, for the checks that look at one key.
func apart(ops []*Op) []*Op {
	var all []*Op
	for _, o := range ops {
		if o.Kind != Both {
			all = append(all, o)
			continue
		}
		first, second := *o, *o
		first.Kind, second.Kind = Put, Put
		second.Key, second.Value = o.Key2, o.Value2
		all = append(all, &first, &second)
	}
	return all
}

// checkWrites: what was acknowledged happened, as it was acknowledged; what happened was asked for, on that key.
func checkWrites(f *errList, ops []*Op, l *Log) {
	asked := map[string]*Op{}
	deletes := map[string]int{} // of a key: deletions that clients may have caused
	for _, o := range ops {
		switch {
		case o.Kind == Put || o.Kind == Swap:
			asked[o.Value] = o
		case o.Kind == Delete && (!o.Known || o.Deleted > 0):
			deletes[o.Key]++
		}
		if !o.Known {
			continue
		}
		if o.Kind == Swap && !o.Succeeded {
			if e, found := l.Put(o.Value); found {
				f.add("write", "a swap that did not succeed took effect: %v, %v", o, e)
			}
			continue
		}
		if !o.writes() {
			continue
		}
		now := l.At(o.Key, o.Revision)
		if o.Kind == Delete && now.Version == 0 && l.At(o.Key, o.Revision-1).Version > 0 {
			continue
		}
		if o.Kind != Delete && now.Mod == o.Revision && now.Value == o.Value {
			continue
		}
		f.add("write", "acknowledged, but at its revision the key holds %+v: %v", now, o)
	}
	for _, e := range l.Events {
		if e.Delete && strings.HasPrefix(e.Key, leasePrefix) {
			continue // see checkLeases
		}
		if e.Delete {
			if deletes[e.Key]--; deletes[e.Key] < 0 {
				f.add("write", "nobody asked for %v", e)
			}
		} else if o := asked[e.Pair.Value]; o == nil || o.Key != e.Key {
			f.add("write", "nobody asked for %v", e)
		}
	}
}

// checkReads: every answer shows the store as it was at the revision in its header.
func checkReads(f *errList, ops []*Op, l *Log) {
	for _, o := range ops {
		if !o.Known {
			continue
		}
		if o.Revision > l.Last {
			f.add("read", "revision %d was never reached, history ends at %d: %v", o.Revision, l.Last, o)
			continue
		}
		switch {
		case o.Kind == Get || o.Kind == Swap && !o.Succeeded:
			if want := l.At(o.Key, o.Revision); o.Pair != want {
				f.add("read", "at its revision the key held %+v: %v", want, o)
			}
		case o.Kind == List:
			if want := l.ListAt(o.Revision); !maps.Equal(o.Pairs, want) {
				f.add("read", "at its revision the store held %v, not %v: %v", want, o.Pairs, o)
			}
		}
	}
}

// checkOrder: revisions never go back. What is asked after an answer was given is answered at the revision of that
// answer or a later one, whatever the keys; a change is given a later one.
func checkOrder(f *errList, ops []*Op) {
	returned := make([]*Op, 0, len(ops))
	for _, o := range ops {
		if o.Known {
			returned = append(returned, o)
		}
	}
	sort.Slice(returned, func(i, j int) bool { return returned[i].Return < returned[j].Return })
	var newest *Op // of those that returned before the call
	i := 0
	for _, o := range ops { // in the order of the calls
		for ; i < len(returned) && returned[i].Return < o.Call; i++ {
			if newest == nil || returned[i].Revision > newest.Revision {
				newest = returned[i]
			}
		}
		if !o.Known || o.Serializable || newest == nil {
			continue
		}
		if o.Revision < newest.Revision || o.writes() && o.Revision == newest.Revision {
			f.add("order", "%v\n  was asked after this was answered: %v", o, newest)
		}
	}
}
