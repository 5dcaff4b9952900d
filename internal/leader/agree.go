package leader

import "github.com/trivet-kv/trivet/internal/command"

// Noted is what one member noted at a mark: the rolling hash of what it had applied.
type Noted struct {
	Member uint64
	Voter  bool
	Note   command.Note
}

// Agreement is what the notes of one mark say.
type Agreement struct {
	Agreed command.Note // that of a majority of the voters; zero if there is none
	// Differ are the members that noted another hash of the same entries than the majority.
	Differ []uint64
	// Torn tells that all voters have answered and no majority agrees.
	Torn bool
	// Restart tells that somebody's hash begins elsewhere, or nowhere, so that it cannot be compared.
	Restart bool
}

// Agree compares the notes of members at the mark with that index. Members that did not answer are not among them; voters
// is how many there are. Learners are held against what the voters agree on.
func Agree(index uint64, notes []Noted, voters int) (a Agreement) {
	var since uint64
	votes := map[command.Note]int{}
	answered := 0
	for _, n := range notes {
		if n.Note.Index != index || n.Note.Since == 0 || since != 0 && n.Note.Since != since {
			a.Restart = true
			continue
		}
		since = n.Note.Since
		if n.Voter {
			answered++
			votes[n.Note]++
		}
	}
	for note, n := range votes {
		if n >= voters/2+1 {
			a.Agreed = note
		}
	}
	if a.Restart {
		return a
	}
	a.Torn = a.Agreed == command.Note{} && answered == voters
	for _, n := range notes {
		if a.Agreed.Index != 0 && n.Note != a.Agreed {
			a.Differ = append(a.Differ, n.Member)
		}
	}
	return a
}
