package backup

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/trivet-kv/trivet/internal/kv"
)

// TestRestoreOfEtcd reads snapshots of real servers of every version (testdata/README.md): keys with their history, revisions,
// leases with their keys, users, roles and authentication. The hashes are etcd's own, at several revisions.
func TestRestoreOfEtcd(t *testing.T) {
	hashes := map[int64]uint32{31: 2828686104, 60: 3488667234, 97: 3859478325, 130: 3257838777, 142: 4236775805}
	for _, version := range []string{"3.4.15", "3.5.35", "3.6.16", "3.7.3"} {
		t.Run(version, func(t *testing.T) {
			in, err := os.Open(filepath.Join("testdata", "snapshot-"+version+".db.gz"))
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			z, err := gzip.NewReader(in)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "snapshot.db")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			s, im := imported(t, path, 0)
			if im.Revision != 142 || im.Compact != 30 || im.Keys != 53 || im.Leases != 2 || im.Users != 3 || im.Roles != 1 || !im.Auth {
				t.Errorf("told %+v", im)
			}
			for rev, want := range hashes {
				if hash, compact, _, err := s.Store.HashKV(t.Context(), rev); err != nil || hash != want || compact != 30 {
					t.Errorf("hash at %d: %d compacted at %d, %v; etcd says %d", rev, hash, compact, err, want)
				}
			}
			keys, err := s.Leases.Keys(s.Engine, 7001)
			if l, ok := s.Leases.Lookup(7001); !ok || l.TTL != 90000 || err != nil || fmt.Sprintf("%s", keys) != "[l1 l2]" {
				t.Errorf("lease 7001: %+v with %s, %v", l, keys, err)
			}
			v := s.Auth.Published()
			u, _ := v.User("u")
			r, _ := v.Role("r")
			nopw, _ := v.User("nopw")
			if fmt.Sprint(u.Roles) != "[r]" || len(u.Hash) == 0 || !nopw.NoPassword || len(r.Permissions) != 2 || r.Permissions[0].Access != kv.ReadWrite {
				t.Errorf("user %+v, role %+v, without a password %+v", u, r, nopw)
			}
		})
	}
}
