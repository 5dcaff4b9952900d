package member_test

import (
	"testing"

	"github.com/trivet-kv/trivet/internal/member"
)

// The ids were asked of etcd 3.7.3.
func TestIDsAreEtcds(t *testing.T) {
	const added = 1700000000
	type one struct {
		urls      []string
		id, added uint64
	}
	for _, c := range []struct {
		token   string
		cluster uint64
		members []one
	}{
		{"etcd-cluster", 0xcdf818194e3a8c32, []one{
			{[]string{"http://localhost:2380"}, 0x8e9e05c52164694d, 0x910dcd4dbd8153a6},
		}},
		{"etcd-cluster", 0x66d3a070bf89b39, []one{
			{[]string{"http://127.0.0.1:2380"}, 0xb71f75320dc06a6c, 0x37acf5e5f688ea4},
			{[]string{"http://127.0.0.1:22380"}, 0x9e737febb6b99eee, 0xbcec30a57d1410eb},
			{[]string{"http://127.0.0.1:32380"}, 0x628170c800dbcee, 0x38a67ee052872f4f},
		}},
		{"tkn", 0xde3569e073a47c2b, []one{
			{[]string{"http://10.0.1.12:2380"}, 0x223b67228d5efe72, 0xbd79a6f0fe1fb868},
			{[]string{"http://10.0.1.10:2380"}, 0xdd01b4e8cc74e371, 0x35b73ed7790e8c6},
			{[]string{"http://10.0.1.11:2380"}, 0xddfbb16784c1e41a, 0x6ebdb9370ecaa8},
		}},
		{"", 0x5da87548cf539da3, []one{
			{[]string{"http://b.example:2380", "http://a.example:2380"}, 0x6b8a1b6ff65d84e2, 0x5363be212a8ad8e3},
		}},
	} {
		var ids []uint64
		for _, m := range c.members {
			got := member.ID(m.urls, c.token)
			if got != m.id {
				t.Errorf("ID(%q, %q) = %x, etcd says %x", m.urls, c.token, got, m.id)
			}
			if got := member.AddedID(m.urls, c.token, added); got != m.added {
				t.Errorf("AddedID(%q, %q) = %x, etcd says %x", m.urls, c.token, got, m.added)
			}
			ids = append(ids, got)
		}
		if got := member.ClusterID(ids); got != c.cluster {
			t.Errorf("ClusterID(%x) = %x, etcd says %x", ids, got, c.cluster)
		}
	}
}
