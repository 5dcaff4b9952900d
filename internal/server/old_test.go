package server

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// unpack makes a disk with a directory data out of a file.
func unpack(t *testing.T, name string) *vfs.MemFS {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	disk := vfs.NewMem()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return disk
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("data", h.Name)
		if h.Typeflag == tar.TypeDir {
			if err := disk.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		out, err := disk.Create(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, r); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOldDirectories starts members on directories that older binaries left (testdata/README.md): they hold what they held, the
// writes that stood in the log alone too, go on, and hold all of it after another start.
func TestOldDirectories(t *testing.T) {
	for name, c := range map[string]struct {
		hash  uint32
		users int
	}{
		"format-1-first.tar.gz": {hash: 11855713},
		"format-1-users.tar.gz": {hash: 11855713, users: 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				cl := newCluster(t, 1)
				defer cl.network.Close()
				cl.disks[0] = unpack(t, name)
				start := func() *Member {
					o := cl.options(0)
					o.Name, o.Token = "m1", "etcd-cluster"
					o.Founders = []Founder{{Name: "m1", PeerURLs: []string{"http://127.0.0.1:24801"}}}
					cl.members[0] = cl.run(o)
					return cl.members[0]
				}
				m := start()
				oldHolds(t, m, c.hash, c.users)
				write := &command.Command{Put: &command.Put{Key: []byte("new"), Value: []byte("x")}}
				if c.users > 0 {
					write.User, write.AuthRevision = "root", m.Auth().Published().Settings().Revision
				}
				if r, err := m.Propose(t.Context(), write); err != nil || r.Err != nil || m.Store().Revision() != 75 {
					t.Fatalf("%v, %v at revision %d", err, r.Err, m.Store().Revision())
				}
				cl.stop(0)
				m = start()
				oldHolds(t, m, c.hash, c.users)
				if r, _, err := m.Store().Range(kv.RangeOptions{Range: kv.Range{Key: []byte("new")}}); err != nil || len(r.KVs) != 1 {
					t.Errorf("the new key is lost: %v, %v", r.KVs, err)
				}
				cl.stop(0)
			})
		})
	}
}

// oldHolds is what every directory held at revision 74.
func oldHolds(t *testing.T, m *Member, want uint32, users int) {
	t.Helper()
	if err := m.ReadBarrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	if hash, compact, _, err := m.Store().HashKV(t.Context(), 74); err != nil || hash != want || compact != 20 {
		t.Errorf("hash %d compacted at %d, %v; want %d", hash, compact, err, want)
	}
	n, _, err := m.Store().Range(kv.RangeOptions{Range: kv.Range{Key: []byte{0}, End: []byte{0}}, Revision: 74, CountOnly: true})
	if err != nil || n.Count != 24 {
		t.Errorf("%d keys, %v", n.Count, err)
	}
	for id, key := range map[kv.LeaseID]string{7001: "l1", 7002: "l2"} {
		if keys, err := m.LeaseKeys(id); err != nil || len(keys) != 1 || string(keys[0]) != key {
			t.Errorf("lease %d has the keys %q, %v", id, keys, err)
		}
	}
	a := m.Auth().Published()
	if len(a.Users()) != users || a.Enabled() != (users > 0) {
		t.Errorf("users %v, authentication on: %t", a.Users(), a.Enabled())
	}
}
