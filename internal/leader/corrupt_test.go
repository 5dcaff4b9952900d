package leader

import (
	"slices"
	"testing"
)

func TestCorrupt(t *testing.T) {
	const rev, compact = 100, 40
	same := func(id uint64) Data { return Data{Member: id, Hashed: true, Hash: 7, Revision: rev, Compact: compact} }
	other := func(id uint64, change func(*Data)) Data {
		d := same(id)
		change(&d)
		return d
	}
	hash := func(id uint64, h uint32) Data { return other(id, func(d *Data) { d.Hash = h }) }
	for _, c := range []struct {
		what     string
		others   []Data
		now      Data // revision and compact revision; zero: as own
		members  int
		want     []uint64
		compared int
	}{
		{what: "alone", members: 1},
		{what: "all agree", others: []Data{same(2), same(3)}, members: 3, compared: 2},
		{what: "one is silent", others: []Data{same(2)}, members: 3, compared: 1},
		{what: "one differs", others: []Data{same(2), hash(3, 8)}, members: 3, want: []uint64{3}, compared: 2},
		{what: "the leader differs", others: []Data{hash(2, 8), hash(3, 8)}, members: 3, want: []uint64{1}, compared: 2},
		{what: "all differ", others: []Data{hash(2, 8), hash(3, 9)}, members: 3, want: []uint64{Somebody}, compared: 2},
		{what: "one of two", others: []Data{hash(2, 8)}, members: 2, want: []uint64{Somebody}, compared: 1},
		{what: "one of three, while one is silent", others: []Data{hash(2, 8)}, members: 3, want: []uint64{Somebody}, compared: 1},
		{what: "two of five", others: []Data{same(2), hash(5, 8), same(4), hash(3, 9)}, members: 5, want: []uint64{3, 5}, compared: 4},
		{what: "leader and another of five", others: []Data{same(2), hash(5, 8), hash(4, 8), hash(3, 8)}, members: 5, want: []uint64{1, 2}, compared: 4},
		{what: "lost history (E#13766)", others: []Data{same(2), other(3, func(d *Data) { d.Hashed, d.Revision = false, rev-1 })}, members: 3, want: []uint64{3}, compared: 2},
		{what: "lost a compaction", others: []Data{same(2), other(3, func(d *Data) { d.Compact-- })}, members: 3, want: []uint64{3}, compared: 2},
		{what: "two that lost history do not agree with each other",
			others: []Data{other(2, func(d *Data) { d.Compact-- }), other(3, func(d *Data) { d.Compact-- })}, members: 3, want: []uint64{Somebody}, compared: 2},
		{what: "written meanwhile", others: []Data{other(2, func(d *Data) { d.Revision += 5 }), same(3)},
			now: Data{Revision: rev + 5, Compact: compact}, members: 3, compared: 2},
		{what: "made up history", others: []Data{other(2, func(d *Data) { d.Revision += 6 }), same(3)},
			now: Data{Revision: rev + 5, Compact: compact}, members: 3, want: []uint64{2}, compared: 2},
		{what: "compacted meanwhile", others: []Data{other(2, func(d *Data) { d.Compact, d.Hash = compact+5, 8 }), same(3)},
			now: Data{Revision: rev, Compact: compact + 5}, members: 3, compared: 1},
		{what: "compacted meanwhile beyond what was asked for", others: []Data{other(2, func(d *Data) { d.Compact, d.Hashed, d.Revision = rev+1, false, rev+1 }), same(3)},
			now: Data{Revision: rev + 1, Compact: rev + 1}, members: 3, compared: 1},
		{what: "compacted what nobody compacted", others: []Data{other(2, func(d *Data) { d.Compact, d.Hashed = compact+5, false }), same(3)},
			members: 3, want: []uint64{2}, compared: 2},
	} {
		if c.now == (Data{}) {
			c.now = same(1)
		}
		got, compared := Corrupt(same(1), c.others, c.now, c.members)
		if !slices.Equal(got, c.want) || compared != c.compared {
			t.Errorf("%s: %v of %d, want %v of %d", c.what, got, compared, c.want, c.compared)
		}
	}
}
