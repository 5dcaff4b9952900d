package auth

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

func openEngine(t testing.TB) *engine.Engine {
	t.Helper()
	e, err := engine.Open(engine.Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func open(t testing.TB, e *engine.Engine) *Auth {
	t.Helper()
	a, err := Open(e)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// change makes one change in a batch of its own.
func change(t testing.TB, e *engine.Engine, a *Auth, f func(b *engine.Batch) error) error {
	t.Helper()
	b := e.NewBatch()
	defer b.Close()
	err := f(b)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	a.Publish()
	return err
}

// dumb is the model: what users and roles there are, said as plainly as can be.
type dumb struct {
	Settings
	users map[string]User
	roles map[string]map[string]kv.Access // "key\xffend" → access
}

func (d *dumb) clone() *dumb {
	c := &dumb{Settings: d.Settings, users: map[string]User{}, roles: map[string]map[string]kv.Access{}}
	for n, u := range d.users {
		u.Roles = slices.Clone(u.Roles)
		c.users[n] = u
	}
	for n, r := range d.roles {
		c.roles[n] = map[string]kv.Access{}
		for k, v := range r {
			c.roles[n][k] = v
		}
	}
	return c
}

// may says whether all probes that lie in r may be accessed so.
func (d *dumb) may(user string, access kv.Access, key []byte) bool {
	for _, role := range d.users[user].Roles {
		if role == Root {
			return true
		}
		for name, has := range d.roles[role] {
			k, end, _ := strings.Cut(name, "\xff")
			if (has == access || has == kv.ReadWrite) && (kv.Range{Key: []byte(k), End: []byte(end)}).Contains(key) {
				return true
			}
		}
	}
	return false
}

func (d *dumb) step(r *rand.Rand) (what string, real func(a *Auth, b *engine.Batch) error, want error) {
	user, role := []string{"root", "u1", "u2", "u3", ""}[r.IntN(5)], []string{"root", "r1", "r2", "r3", ""}[r.IntN(5)]
	u, isUser := d.users[user]
	perms, isRole := d.roles[role]
	bump := func() { d.Revision++ }
	switch r.IntN(12) {
	case 0:
		switch rootUser, ok := d.users[Root]; {
		case d.Enabled:
		case !ok:
			want = kv.ErrRootUserNotExist
		case !slices.Contains(rootUser.Roles, Root):
			want = kv.ErrRootRoleNotExist
		default:
			d.Enabled = true
		}
		return "enable", (*Auth).Enable, want
	case 1:
		if d.Enabled && r.IntN(3) > 0 {
			return d.step(r) // stay enabled for a while
		}
		if d.Enabled {
			bump()
			d.Enabled, d.Disabled = false, d.Revision
		}
		return "disable", (*Auth).Disable, nil
	case 2, 3:
		none := r.IntN(3) == 0
		switch {
		case user == "":
			want = kv.ErrUserEmpty
		case isUser:
			want = kv.ErrUserExists
		default:
			bump()
			d.users[user] = User{Name: user, NoPassword: none, Since: d.Revision, Hash: []byte("h")}
			if none {
				d.users[user] = User{Name: user, NoPassword: none, Since: d.Revision}
			}
		}
		return "add user " + user, func(a *Auth, b *engine.Batch) error { return a.AddUser(b, user, []byte("h"), none) }, want
	case 4:
		switch {
		case d.Enabled && user == Root:
			want = kv.ErrInvalidAuthMgmt
		case !isUser:
			want = kv.ErrUserNotFound
		default:
			bump()
			delete(d.users, user)
		}
		return "delete user " + user, func(a *Auth, b *engine.Batch) error { return a.DeleteUser(b, user) }, want
	case 5:
		hash := fmt.Append(nil, r.IntN(100))
		if !isUser {
			want = kv.ErrUserNotFound
		} else {
			bump()
			if u.Since = d.Revision; !u.NoPassword {
				u.Hash = hash
			}
			d.users[user] = u
		}
		return "password of " + user, func(a *Auth, b *engine.Batch) error { return a.ChangePassword(b, user, hash, false) }, want
	case 6, 7:
		switch {
		case !isUser:
			want = kv.ErrUserNotFound
		case role != Root && !isRole:
			want = kv.ErrRoleNotFound
		case !slices.Contains(u.Roles, role):
			bump()
			u.Roles = append(u.Roles, role)
			slices.Sort(u.Roles)
			d.users[user] = u
		}
		return fmt.Sprintf("grant %s to %s", role, user), func(a *Auth, b *engine.Batch) error { return a.GrantRole(b, user, role) }, want
	case 8:
		switch i := slices.Index(u.Roles, role); {
		case d.Enabled && user == Root && role == Root:
			want = kv.ErrInvalidAuthMgmt
		case !isUser:
			want = kv.ErrUserNotFound
		case i < 0:
			want = kv.ErrRoleNotGranted
		default:
			bump()
			u.Roles = slices.Delete(slices.Clone(u.Roles), i, i+1)
			d.users[user] = u
		}
		return fmt.Sprintf("revoke %s of %s", role, user), func(a *Auth, b *engine.Batch) error { return a.RevokeRole(b, user, role) }, want
	case 9:
		switch {
		case role == "":
			want = kv.ErrRoleEmpty
		case isRole:
			want = kv.ErrRoleExists
		default:
			bump()
			d.roles[role] = map[string]kv.Access{}
		}
		return "add role " + role, func(a *Auth, b *engine.Batch) error { return a.AddRole(b, role) }, want
	case 10:
		if r.IntN(3) > 0 {
			return d.step(r)
		}
		switch {
		case d.Enabled && role == Root:
			want = kv.ErrInvalidAuthMgmt
		case !isRole:
			want = kv.ErrRoleNotFound
		default:
			bump()
			delete(d.roles, role)
			for name, u := range d.users {
				u.Roles = slices.DeleteFunc(slices.Clone(u.Roles), func(n string) bool { return n == role })
				d.users[name] = u
			}
		}
		return "delete role " + role, func(a *Auth, b *engine.Batch) error { return a.DeleteRole(b, role) }, want
	}
	keys := []string{"a", "b", "c", "d", "e", ""}
	key, end := keys[r.IntN(6)], []string{"a", "b", "c", "d", "e", "", "", "\x00"}[r.IntN(8)]
	name, rng := key+"\xff"+end, kv.Range{Key: []byte(key), End: []byte(end)}
	if r.IntN(3) == 0 {
		if _, has := perms[name]; !isRole {
			want = kv.ErrRoleNotFound
		} else if !has {
			want = kv.ErrPermissionNotGranted
		} else {
			bump()
			delete(perms, name)
		}
		return fmt.Sprintf("revoke %q of role %s", name, role), func(a *Auth, b *engine.Batch) error { return a.Revoke(b, role, rng) }, want
	}
	access := kv.Access(r.IntN(4))
	switch {
	case key == "" || end != "" && end != "\x00" && key >= end:
		want = kv.ErrInvalidAuthMgmt
	case !isRole:
		want = kv.ErrRoleNotFound
	default:
		bump()
		perms[name] = access
	}
	return fmt.Sprintf("grant %d on %q to role %s", access, name, role), func(a *Auth, b *engine.Batch) error {
		return a.Grant(b, role, kv.Permission{Range: rng, Access: access})
	}, want
}

// Random changes, in batches of which some are given up, with the state opened again now and then: it is what a dumb
// model of users and roles says, the batch in work as well as what is published.
func TestModel(t *testing.T) {
	seeds := uint64(30)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 7))
		e := openEngine(t)
		a := open(t, e)
		model := &dumb{Settings: Settings{Revision: 1}, users: map[string]User{}, roles: map[string]map[string]kv.Access{}}
		for range 300 {
			before := model.clone()
			b := e.NewBatch()
			for range 1 + r.IntN(4) {
				what, real, want := model.step(r)
				if err := real(a, b); !errors.Is(err, want) {
					t.Fatalf("seed %d: %s: %v, want %v", seed, what, err, want)
				}
				check(t, r, a.Working(), model, what)
			}
			if r.IntN(8) == 0 {
				a.Discard()
				model = before
			} else {
				if err := b.Commit(); err != nil {
					t.Fatal(err)
				}
				a.Publish()
			}
			b.Close()
			check(t, r, a.Published(), model, "publish")
			if r.IntN(40) == 0 {
				a = open(t, e) // E#14355: permissions after a restart
				check(t, r, a.Published(), model, "open")
			}
		}
	}
}

func check(t *testing.T, r *rand.Rand, v View, d *dumb, what string) {
	t.Helper()
	if v.Settings() != d.Settings || v.Enabled() != d.Enabled {
		t.Fatalf("after %s: %+v, want %+v", what, v.Settings(), d.Settings)
	}
	if got := v.Users(); len(got) != len(d.users) {
		t.Fatalf("after %s: users %q, want %d", what, got, len(d.users))
	}
	for name, want := range d.users {
		if got, ok := v.User(name); !ok || got.Name != want.Name || got.Since != want.Since || got.NoPassword != want.NoPassword ||
			!bytes.Equal(got.Hash, want.Hash) || !slices.Equal(got.Roles, want.Roles) {
			t.Fatalf("after %s: user %+v, want %+v", what, got, want)
		}
	}
	if got := v.Roles(); len(got) != len(d.roles) {
		t.Fatalf("after %s: roles %q, want %d", what, got, len(d.roles))
	}
	for name, want := range d.roles {
		got, ok := v.Role(name)
		if !ok || len(got.Permissions) != len(want) || !slices.IsSortedFunc(got.Permissions, comparePermissions) {
			t.Fatalf("after %s: role %+v, want %v", what, got, want)
		}
		for _, p := range got.Permissions {
			if access, ok := want[string(p.Key)+"\xff"+string(p.End)]; !ok || access != p.Access {
				t.Fatalf("after %s: role %+v, want %v", what, got, want)
			}
		}
	}
	for range 4 {
		d.checkPermissions(t, r, v, what)
	}
}

// Every range is allowed exactly if every key in it is. The probes are as dense as the ends of permissions and ranges.
func (d *dumb) checkPermissions(t *testing.T, r *rand.Rand, v View, what string) {
	user := []string{"root", "u1", "u2", "u3", "nobody"}[r.IntN(5)]
	who := Who{User: user, Revision: 1 + r.Uint64N(d.Revision)}
	u, exists := d.users[user]
	var wantErr error
	switch {
	case !d.Enabled:
	case !exists && who.Revision < d.Revision:
		wantErr = kv.ErrAuthOldRevision
	case !exists:
		wantErr = kv.ErrPermissionDenied
	case who.Revision < u.Since || who.Revision < d.Disabled:
		wantErr = kv.ErrAuthOldRevision
	}
	if valid := d.Enabled && wantErr == nil; v.Valid(who) != valid {
		t.Fatalf("after %s: valid %v of %+v", what, !valid, who)
	}
	p := v.Permissions(who)
	keys := []string{"a", "b", "c", "d", "e"}
	rng := kv.Range{Key: []byte(keys[r.IntN(5)]), End: []byte([]string{"", "\x00", "b", "c", "d", "e", "f"}[r.IntN(7)])}
	if !rng.Single() && !rng.FromKey() && bytes.Compare(rng.Key, rng.End) >= 0 {
		return // without keys: see TestEmptyRange
	}
	for access, got := range map[kv.Access]error{kv.Read: p.Read(rng), kv.Write: p.Write(rng)} {
		want := wantErr
		if d.Enabled && want == nil {
			for _, probe := range []string{"a", "a\x00", "am", "b", "b\x00", "bm", "c", "c\x00", "cm", "d", "d\x00", "dm", "e", "e\x00", "em", "f", "zz"} {
				if rng.Contains([]byte(probe)) && !d.may(user, access, []byte(probe)) {
					want = kv.ErrPermissionDenied
				}
			}
		}
		if !errors.Is(got, want) {
			t.Fatalf("after %s: access %d of %s to %q..%q: %v, want %v\n%+v\n%v", what, access, user, rng.Key, rng.End, got, want, u, d.roles)
		}
		if key := rng.Key; d.Enabled && want == nil {
			end, err := p.Reach(access, key)
			if err != nil || end != nil && bytes.Compare(end, key) <= 0 {
				t.Fatalf("after %s: from %q one reaches %q, %v", what, key, end, err)
			}
		}
	}
}

// Nobody, and somebody with a name but no revision, is refused everything.
func TestNobody(t *testing.T) {
	e := openEngine(t)
	a := open(t, e)
	enable(t, e, a)
	for _, who := range []Who{{}, {User: "root"}} {
		p := a.Published().Permissions(who)
		if err := p.Read(kv.Range{Key: []byte("a")}); !errors.Is(err, kv.ErrUserEmpty) {
			t.Errorf("%+v reads: %v", who, err)
		}
		if _, err := p.Reach(kv.Write, []byte("a")); !errors.Is(err, kv.ErrUserEmpty) {
			t.Errorf("%+v reaches: %v", who, err)
		}
	}
	if err := a.Published().Admin(Who{}); !errors.Is(err, kv.ErrUserEmpty) {
		t.Error(err)
	}
	if err := a.Published().Admin(Who{User: "x", Revision: 9}); !errors.Is(err, kv.ErrUserNotFound) {
		t.Error(err)
	}
}

func enable(t testing.TB, e *engine.Engine, a *Auth) {
	t.Helper()
	if err := change(t, e, a, func(b *engine.Batch) error {
		return errors.Join(a.AddUser(b, Root, nil, false), a.AddRole(b, Root), a.GrantRole(b, Root, Root), a.Enable(b))
	}); err != nil {
		t.Fatal(err)
	}
}

// A range without keys is allowed if its first key would be, as in etcd.
func TestEmptyRange(t *testing.T) {
	s := spans{{[]byte("b"), []byte("d")}, {[]byte("f"), nil}}
	for _, c := range []struct {
		key, end string
		want     bool
	}{
		{"c", "bb", true}, {"c", "c", true}, {"c", "b", true}, {"c", "a", true}, {"d", "c", false}, {"g", "f", true}, {"z", "g", true}, {"e", "c", false},
	} {
		if got := s.cover(kv.Range{Key: []byte(c.key), End: []byte(c.end)}); got != c.want {
			t.Errorf("%s..%s: %v", c.key, c.end, got)
		}
	}
}

// What Write brings in from elsewhere is what Open finds.
func TestWrite(t *testing.T) {
	e := openEngine(t)
	b := e.NewBatch()
	s := Settings{Enabled: true, Revision: 12, Disabled: 3}
	users := []User{{Name: "u", Hash: []byte("h"), Roles: []string{"z", "a", "z"}, Since: 4}, {Name: "root", Roles: []string{"root"}, NoPassword: true}}
	roles := []Role{{Name: "a", Permissions: []kv.Permission{
		{Range: kv.Range{Key: []byte("k"), End: []byte{0}}, Access: kv.Write}, {Range: kv.Range{Key: []byte("b")}, Access: 9},
	}}}
	if err := Write(b, s, users, roles); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Commit(), b.Close()); err != nil {
		t.Fatal(err)
	}
	v := open(t, e).Published()
	u, _ := v.User("u")
	role, _ := v.Role("a")
	want := Role{Name: "a", Permissions: []kv.Permission{roles[0].Permissions[1], roles[0].Permissions[0]}}
	if v.Settings() != s || !slices.Equal(u.Roles, []string{"a", "z"}) || u.Since != 4 || !reflect.DeepEqual(role, want) {
		t.Errorf("%+v %+v %+v", v.Settings(), u, role)
	}
}

// Whatever is in a row, decoding neither panics nor loses anything, and its error does not show what may be a secret.
func FuzzRow(f *testing.F) {
	f.Add([]byte("us"), encodeSettings(nil, Settings{Enabled: true, Revision: 5, Disabled: 2}))
	f.Add([]byte("uuname"), encodeUser(nil, &User{Name: "name", Hash: []byte("secret"), Roles: []string{"a", "b"}, Since: 3}))
	f.Add([]byte("urname"), encodeRole(nil, &Role{Permissions: []kv.Permission{{Range: kv.Range{Key: []byte("k"), End: []byte{0}}, Access: 2}}}))
	f.Add([]byte("4{{{{{{"), []byte(`"4{{{{{{"`)) // a value that quoting the key gives
	f.Fuzz(func(t *testing.T, key, value []byte) {
		row, err := DecodeRow(key, value)
		if err != nil {
			// The value may be a secret: what is said is what would be said of no value at all.
			if _, empty := DecodeRow(key, nil); !errors.Is(err, engine.ErrMalformed) || err.Error() != empty.Error() {
				t.Fatal(err)
			}
			return
		}
		var again []byte
		switch {
		case row.Settings != nil:
			again = encodeSettings(nil, *row.Settings)
		case row.User != nil:
			again = encodeUser(nil, row.User)
		default:
			again = encodeRole(nil, row.Role)
		}
		second, err := DecodeRow(key, again)
		if err != nil || !reflect.DeepEqual(second, row) {
			t.Fatalf("%+v, then %+v, %v", row, second, err)
		}
	})
}

// The cost of a check is that of the user's own permissions. The figures are for people: see ns/op over both.
func BenchmarkCheck(b *testing.B) {
	for _, users := range []int{10, 10_000} {
		b.Run(fmt.Sprint(users), func(b *testing.B) {
			e := openEngine(b)
			a := open(b, e)
			enable(b, e, a)
			if err := change(b, e, a, func(batch *engine.Batch) error {
				for i := range users {
					name := fmt.Sprint(i)
					p := kv.Permission{Range: kv.Range{Key: []byte(name), End: []byte(name + "z")}}
					if err := errors.Join(a.AddRole(batch, name), a.Grant(batch, name, p), a.AddUser(batch, name, nil, true), a.GrantRole(batch, name, name)); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				b.Fatal(err)
			}
			v := a.Published()
			who := Who{"7", v.Settings().Revision}
			for b.Loop() {
				p := v.Permissions(who)
				if p.Read(kv.Range{Key: []byte("7k")}) != nil {
					b.Fatal("refused")
				}
			}
		})
	}
}
