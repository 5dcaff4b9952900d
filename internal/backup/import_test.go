package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/bbolt"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// busy is a state with a bit of everything.
func busy(t *testing.T, r *rand.Rand, changes int) *fsm.State {
	t.Helper()
	s := newState(t)
	for i := range changes {
		key := fmt.Appendf(nil, "k%03d", r.IntN(changes/3+1))
		switch n := r.IntN(24); {
		case n == 0 && s.Store.Revision() > 20:
			apply(t, s, &command.Command{Compact: &command.Compact{Revision: s.Store.Revision() - r.Int64N(10)}})
		case n == 1:
			if _, _, err := s.Store.CompactStep(context.Background(), 1+r.IntN(30)); err != nil {
				t.Fatal(err)
			}
		case n == 2:
			apply(t, s, &command.Command{LeaseGrant: &command.LeaseGrant{ID: kv.LeaseID(i + 1), TTL: int64(i + 10)}})
		case n == 3 && s.Leases.Len() > 0:
			apply(t, s, &command.Command{LeaseRevoke: &command.LeaseRevoke{ID: s.Leases.IDs()[0]}})
		case n < 8:
			apply(t, s, &command.Command{DeleteRange: &command.DeleteRange{Range: kv.Range{Key: key, End: append(bytes.Clone(key), 'z')}}})
		default:
			p := &command.Put{Key: key, Value: bytes.Repeat([]byte{byte(n)}, r.IntN(40))}
			if ids := s.Leases.IDs(); len(ids) > 0 && n < 12 {
				p.Lease = ids[r.IntN(len(ids))]
			}
			apply(t, s, &command.Command{Put: p})
		}
	}
	for _, a := range []command.Auth{
		{Op: command.AuthUserAdd, Name: "root", Hash: []byte("hash")}, {Op: command.AuthUserAdd, Name: "u", NoPassword: true},
		{Op: command.AuthRoleAdd, Role: "root"}, {Op: command.AuthRoleAdd, Role: "r"}, {Op: command.AuthUserGrant, Name: "root", Role: "root"},
		{Op: command.AuthUserGrant, Name: "u", Role: "r"},
		{Op: command.AuthRoleGrant, Role: "r", Permission: kv.Permission{Access: kv.ReadWrite, Range: kv.Range{Key: []byte("a"), End: []byte("b")}}},
		{Op: command.AuthEnable},
	} {
		apply(t, s, &command.Command{Auth: &a})
	}
	return s
}

// withSum is the file as clients get it: with its hash.
func withSum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	out := filepath.Join(t.TempDir(), "snapshot")
	if err := os.WriteFile(out, append(b, sum[:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

func imported(t *testing.T, path string, bump int64) (*fsm.State, Imported) {
	t.Helper()
	f, err := Open(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e, err := engine.Open(engine.Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	im, err := f.Import(t.Context(), e, bump)
	if err != nil {
		t.Fatal(err)
	}
	if err := fsm.Bootstrap(e, []member.Member{{ID: 1, Name: "x"}}, []byte("conf")); err != nil {
		t.Fatal(err)
	}
	s, err := fsm.Open(e, mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s, im
}

// look is everything of a state that clients can see, but for what a bump changes.
func look(t *testing.T, s *fsm.State) string {
	t.Helper()
	var b strings.Builder
	all, _, err := s.Store.Range(kv.RangeOptions{Range: kv.Range{Key: []byte{0}, End: []byte{0}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all.KVs {
		fmt.Fprintf(&b, "%+v\n", p)
	}
	count, _, err := s.Store.Range(kv.RangeOptions{Range: kv.Range{Key: []byte("k01"), End: []byte("k3")}, CountOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "%d between\n", count.Count)
	for _, id := range s.Leases.IDs() {
		l, _ := s.Leases.Lookup(id)
		keys, err := s.Leases.Keys(s.Engine, id)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "lease %d: %d %d %q\n", id, l.TTL, l.Remaining, keys)
	}
	v := s.Auth.Published()
	fmt.Fprintf(&b, "auth %t %d\n", v.Enabled(), v.Settings().Revision)
	for _, name := range v.Users() {
		u, _ := v.User(name)
		fmt.Fprintf(&b, "user %s %q %t %q\n", u.Name, u.Hash, u.NoPassword, u.Roles)
	}
	for _, name := range v.Roles() {
		r, _ := v.Role(name)
		fmt.Fprintf(&b, "role %s %v\n", r.Name, r.Permissions)
	}
	return b.String()
}

// TestImport puts a state through a file: everything that clients see is as it was, the hash at every revision too, and
// both states go on alike.
func TestImport(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := busy(t, r, 300+700*int(seed%2))
		path := withSum(t, exported(t, s))
		got, im := imported(t, path, 0)
		if a, b := look(t, s), look(t, got); a != b {
			t.Fatalf("seed %d: was\n%s\nis\n%s", seed, a, b)
		}
		if im.Users != 2 || im.Roles != 2 || !im.Auth || im.Leases != s.Leases.Len() {
			t.Errorf("seed %d: told %+v", seed, im)
		}
		same := func(rev int64) {
			t.Helper()
			h1, c1, r1, err1 := s.Store.HashKV(t.Context(), rev)
			h2, c2, r2, err2 := got.Store.HashKV(t.Context(), rev)
			if h1 != h2 || c1 != c2 || r1 != r2 || !errors.Is(err2, err1) {
				t.Fatalf("seed %d: hash at %d was %d (%d, %d, %v), is %d (%d, %d, %v)", seed, rev, h1, c1, r1, err1, h2, c2, r2, err2)
			}
		}
		for rev := max(s.Store.CompactRevision(), 0); rev <= s.Store.Revision()+1; rev++ {
			same(rev)
		}
		for i := range 60 {
			c := &command.Command{User: "root", AuthRevision: s.Auth.Published().Settings().Revision}
			switch key := fmt.Appendf(nil, "k%03d", r.IntN(200)); i % 3 {
			case 0:
				c.DeleteRange = &command.DeleteRange{Range: kv.Range{Key: key, End: append(bytes.Clone(key), 'z')}}
			default:
				c.Put = &command.Put{Key: key, Value: []byte("after")}
			}
			if i == 30 {
				c.Put, c.DeleteRange, c.Compact = nil, nil, &command.Compact{Revision: s.Store.Revision()}
			}
			for _, state := range []*fsm.State{s, got} {
				apply(t, state, c)
				for done := false; !done && i > 30; {
					var err error
					if _, done, err = state.Store.CompactStep(context.Background(), 1000); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		same(0)
		if a, b := look(t, s), look(t, got); a != b {
			t.Fatalf("seed %d: they went on differently", seed)
		}
	}
}

// TestBump raises the revision and forgets history, and changes no key: nobody who watched the old store is told other changes
// under revisions that it has seen (E#16028, E#18340).
func TestBump(t *testing.T) {
	s := busy(t, rand.New(rand.NewPCG(7, 7)), 400)
	got, im := imported(t, withSum(t, exported(t, s)), 1000)
	if rev := s.Store.Revision() + 1000; got.Store.Revision() != rev || got.Store.CompactRevision() != rev || im.Bumped != 1000 {
		t.Errorf("revision %d, compacted at %d, want both %d", got.Store.Revision(), got.Store.CompactRevision(), rev)
	}
	if a, b := look(t, s), look(t, got); a != b {
		t.Errorf("was\n%s\nis\n%s", a, b)
	}
	apply(t, got, &command.Command{User: "root", AuthRevision: 1 << 40, Put: &command.Put{Key: []byte("x")}})
	for done := false; !done; {
		var err error
		if _, done, err = got.Store.CompactStep(context.Background(), 100); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	err := got.Store.Changes(t.Context(), got.Store.CompactRevision(), got.Store.Revision(), func(kv.Event, func() (kv.KeyValue, error)) error { n++; return nil })
	if err != nil || n > 1 {
		t.Errorf("%d changes can be seen, %v", n, err)
	}
	path := withSum(t, exported(t, got))
	again, _ := imported(t, path, 0)
	h1, _, _, err1 := got.Store.HashKV(t.Context(), 0)
	h2, _, _, err2 := again.Store.HashKV(t.Context(), 0)
	if h1 != h2 || err1 != nil || err2 != nil {
		t.Errorf("after another round: %d, %v; %d, %v", h1, err1, h2, err2)
	}
}

// TestDamagedSnapshot cuts a snapshot and changes bytes of it: with its hash every one is refused; without, what is wrong
// is found or is a value. Never is a data directory left.
func TestDamagedSnapshot(t *testing.T) {
	path := withSum(t, exported(t, busy(t, rand.New(rand.NewPCG(3, 3)), 60)))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	try := func(b []byte, skip bool) error {
		t.Helper()
		bad := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(bad, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(bad, skip)
		if err == nil {
			_, err = Restore(t.Context(), f, Place{
				DataDir: filepath.Join(dir, "out"), Identity: datadir.Identity{Name: "x"}, ConfState: []byte("c"),
			}, 0)
			f.Close()
		}
		left, readErr := os.ReadDir(dir)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if err != nil && len(left) > 0 {
			t.Fatalf("%v, and %s is left", err, left[0].Name())
		}
		if err == nil {
			if err := os.RemoveAll(filepath.Join(dir, "out")); err != nil {
				t.Fatal(err)
			}
		}
		return err
	}
	if err := try(b, false); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(b); n += 1777 {
		if err := try(b[:n], false); err == nil {
			t.Errorf("cut to %d of %d bytes: taken", n, len(b))
		}
		if err := try(b[:n], true); err == nil {
			t.Errorf("cut to %d of %d bytes and the hash skipped: taken", n, len(b))
		}
	}
	for i := 3; i < len(b); i += 991 {
		c := bytes.Clone(b)
		c[i] ^= 0x10
		if err := try(c, false); err == nil || !strings.Contains(err.Error(), "changed or damaged") {
			t.Errorf("byte %d changed: %v", i, err)
		}
		_ = try(c, true) // it may be a value; there is no panic, and nothing is left of what is refused
	}
	if err := try(b[:len(b)-sha256.Size], false); err == nil || !strings.Contains(err.Error(), "--skip-hash-check") {
		t.Errorf("without a hash: %v", err)
	}
	if err := try(b[:len(b)-sha256.Size], true); err != nil {
		t.Errorf("without a hash, which is skipped: %v", err)
	}
	if err := try([]byte("hello"), true); err == nil {
		t.Error("a text was taken for a snapshot")
	}
	other := filepath.Join(t.TempDir(), "other")
	db, err := bbolt.Open(other, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(other, true); err == nil || !strings.Contains(err.Error(), "not etcd's") {
		t.Errorf("another database: %v", err)
	}
}

// TestRestoreRefuses leaves alone what is there.
func TestRestoreRefuses(t *testing.T) {
	path := withSum(t, exported(t, newState(t)))
	f, err := Open(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "a", "b")
	for _, p := range []Place{{DataDir: dir}, {DataDir: fresh, LogDir: dir}} {
		if _, err := Restore(t.Context(), f, p, 0); err == nil || !strings.Contains(err.Error(), "not empty") {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if _, err := os.Stat(fresh); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", fresh, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}
