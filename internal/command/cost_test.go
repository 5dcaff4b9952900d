package command

import "testing"

// Nested transactions count as much as what they hold (E#22139), and a command costs the dearer of its branches.
func TestCost(t *testing.T) {
	put := func(n int) Op { return Op{Put: &Put{Key: make([]byte, 10), Value: make([]byte, n)}} }
	txn := func(success, failure []Op) Op { return Op{Txn: &Txn{Success: success, Failure: failure}} }
	nested := txn([]Op{put(1000), txn(nil, []Op{put(5000), {DeleteRange: &DeleteRange{}}})}, []Op{put(2000)})
	for _, c := range []struct {
		name string
		c    Command
		want int64
	}{
		{"put", Command{Put: put(90).Put}, 356},
		{"put of nothing new", Command{Put: &Put{Key: []byte("a"), IgnoreValue: true}}, 257},
		{"delete", Command{DeleteRange: &DeleteRange{PrevKV: true}}, 0},
		{"grant", Command{LeaseGrant: &LeaseGrant{}}, 64},
		{"revoke", Command{LeaseRevoke: &LeaseRevoke{}}, 0},
		{"compact", Command{Compact: &Compact{}}, 0},
		{"alarm", Command{Alarm: &Alarm{Raise: true}}, 0},
		{"txn of deletes", Command{Txn: &Txn{Success: []Op{{DeleteRange: &DeleteRange{}}, txn(nil, nil)}}}, 0},
		{"dearer branch", Command{Txn: &Txn{Success: []Op{put(1)}, Failure: []Op{put(1), put(2)}}}, 2*266 + 3},
		{"nested", Command{Txn: nested.Txn}, 2*266 + 6000},
		{"nested deeper", Command{Txn: &Txn{Failure: []Op{nested, put(0)}}}, 3*266 + 6000},
	} {
		if got := c.c.Cost(); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
