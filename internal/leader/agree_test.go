package leader

import (
	"slices"
	"testing"

	"github.com/trivet-kv/trivet/internal/command"
)

func TestAgree(t *testing.T) {
	const index, since = 100, 7
	noted := func(hashes ...uint64) (notes []Noted) {
		for i, h := range hashes {
			if h > 0 { // 0: no answer
				notes = append(notes, Noted{Member: uint64(i + 1), Voter: true, Note: command.Note{Index: index, Since: since, Hash: h}})
			}
		}
		return notes
	}
	learner := func(notes []Noted, hash uint64) []Noted {
		return append(notes, Noted{Member: 9, Note: command.Note{Index: index, Since: since, Hash: hash}})
	}
	old := func(notes []Noted, n command.Note) []Noted {
		return append(notes, Noted{Member: 3, Voter: true, Note: n})
	}
	for name, c := range map[string]struct {
		notes  []Noted
		voters int
		agreed uint64
		differ []uint64
		torn   bool
		again  bool
	}{
		"all":                     {notes: noted(5, 5, 5), voters: 3, agreed: 5},
		"one differs":             {notes: noted(5, 6, 5), voters: 3, agreed: 5, differ: []uint64{2}},
		"the leader differs":      {notes: noted(6, 5, 5), voters: 3, agreed: 5, differ: []uint64{1}},
		"one is silent":           {notes: noted(5, 0, 5), voters: 3, agreed: 5},
		"two, one is silent":      {notes: noted(5, 0, 6), voters: 3},
		"no majority":             {notes: noted(5, 6, 7), voters: 3, torn: true},
		"two that differ":         {notes: noted(5, 6), voters: 2, torn: true},
		"a learner differs":       {notes: learner(noted(5), 6), voters: 1, agreed: 5, differ: []uint64{9}},
		"learners do not vote":    {notes: learner(noted(6, 0, 0), 6), voters: 3},
		"one has no hash":         {notes: old(noted(5, 5), command.Note{Index: index}), voters: 3, agreed: 5, again: true},
		"one began later":         {notes: old(noted(5, 5), command.Note{Index: index, Since: 50, Hash: 5}), voters: 3, agreed: 5, again: true},
		"one did not note it":     {notes: old(noted(5, 5), command.Note{}), voters: 3, agreed: 5, again: true},
		"two of five differ":      {notes: noted(5, 6, 5, 6, 5), voters: 5, agreed: 5, differ: []uint64{2, 4}},
		"three of five are there": {notes: noted(5, 0, 5, 0, 5), voters: 5, agreed: 5},
	} {
		a := Agree(index, c.notes, c.voters)
		if a.Agreed.Hash != c.agreed || !slices.Equal(a.Differ, c.differ) || a.Torn != c.torn || a.Restart != c.again {
			t.Errorf("%s: %+v", name, a)
		}
	}
}
