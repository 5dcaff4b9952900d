package leader

import "slices"

// Data is what a member found when it was asked for the hash of its history up to a revision.
type Data struct {
	Member uint64
	// Hashed: the revision is there, and Hash is that of everything up to it that is not compacted.
	Hashed bool
	Hash   uint32
	// Revision and Compact are how far its history reached and was compacted then; of a hash, what it was made with.
	Revision, Compact int64
}

// Somebody stands, where the id of a member is expected, for one that cannot be told: an alarm for it concerns the cluster.
const Somebody = 0

// Corrupt compares the data of members that were asked for the same revision, and tells whose is not what the log made of
// it: that of a minority, or Somebody's if no majority of the members agrees. Compared is how many of the others could be
// compared.
//
// Own is this leader's answer, as of before the others were asked. Each of them had applied before it answered what was
// committed when it was asked, so it cannot be behind own. Now is how far this leader was after it had applied what was
// committed when all had answered, so none of them can be ahead of it. Those that have compacted further than own meanwhile
// are left out.
func Corrupt(own Data, others []Data, now Data, members int) (corrupt []uint64, compared int) {
	agree := []uint64{own.Member}
	var differ []Data
	for _, d := range others {
		behind := d.Compact < own.Compact || !d.Hashed && d.Revision < own.Revision
		ahead := d.Compact > now.Compact || d.Revision > now.Revision
		switch {
		case behind || ahead:
			d.Hashed = false // it agrees with nobody
			differ = append(differ, d)
		case !d.Hashed || d.Compact > own.Compact:
			continue
		case d.Hash == own.Hash:
			agree = append(agree, d.Member)
		default:
			differ = append(differ, d)
		}
		compared++
	}
	if len(differ) == 0 {
		return nil, compared
	}
	most := agree
	for _, d := range differ {
		var same []uint64
		for _, e := range differ {
			if d.Hashed && e.Hashed && e.Hash == d.Hash {
				same = append(same, e.Member)
			}
		}
		if len(same) > len(most) {
			most = same
		}
	}
	if len(most) < members/2+1 {
		return []uint64{Somebody}, compared
	}
	for _, id := range agree {
		if !slices.Contains(most, id) {
			corrupt = append(corrupt, id)
		}
	}
	for _, d := range differ {
		if !slices.Contains(most, d.Member) {
			corrupt = append(corrupt, d.Member)
		}
	}
	slices.Sort(corrupt)
	return corrupt, compared
}
