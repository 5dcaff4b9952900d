// Package auth owns users, roles and permissions as the state machine knows them, and decides what a user may do. It
// never sees a password (the rows hold bcrypt's hashes, which others make and compare), knows no tokens and no clock.
//
// Users and roles are rows, changed in the batch of the apply loop, and a table in memory that mirrors them. What a batch
// changes is seen by the apply loop at once (Working) and by everybody else after Publish (Published). The permissions of
// a user's roles are merged once per change of users and roles, when they are first asked for, into ascending disjoint
// spans; a check is then a lookup of the user and a binary search, however many users and roles there are.
//
// The auth revision counts changes, from 1. Whoever acts names the revision under which he became known (Who): for a
// signed token that of its making, otherwise the current one. He is refused if his user was made, or its password
// changed, or authentication switched off, after it. All other changes take effect on the next check: permissions are
// always looked up in the newest state, and once more when the entry is applied.
//
// Invariants, attacked by the model test beside this file and by fsm:
//
//   - the table in memory and the rows of the committed state are the same;
//   - spans cover exactly what the roles of the user allow (TestPermissionsAgainstModel);
//   - the auth revision only grows, and grows with every change but Enable (as in etcd).
package auth

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// Root is the name of the user and of the role that may do everything.
const Root = "root"

// Settings is what holds for all users.
type Settings struct {
	Enabled  bool
	Revision uint64 // from 1
	// Disabled is the auth revision that the last Disable made: whoever became known before it must do so again. 0: never.
	Disabled uint64
}

// User is one user. Nobody may change what Hash and Roles hold.
type User struct {
	Name       string
	Hash       []byte   // bcrypt's, of the password; empty: nothing matches
	NoPassword bool     // known by certificate or foreign token only
	Roles      []string // ascending
	// Since is the auth revision that made the user or changed its password last.
	Since uint64
}

// Role is one role. Nobody may change what Permissions hold.
type Role struct {
	Name        string
	Permissions []kv.Permission // ascending by key; those of one key in the order in which they were given
}

// Auth is the users and roles of one member. One goroutine, the apply loop, may call the methods that take a batch,
// Authenticate, Working, Publish and Discard; Published may be called from any.
type Auth struct {
	mu    sync.RWMutex
	shown settings
	users map[string]*account
	roles map[string]*Role

	// fast is what most calls ask first, without a lock.
	fast struct {
		enabled atomic.Bool
		stamp   atomic.Uint64
	}

	// The batch in work: nil in the maps means deleted.
	next      settings
	stamps    uint64 // given out
	nextUsers map[string]*account
	nextRoles map[string]*Role
	row, val  []byte
}

// settings are Settings with a number that changes with every change and never comes again in this process.
type settings struct {
	Settings
	stamp uint64
}

// account is a user with the permissions of its roles as they were at one stamp.
type account struct {
	User
	merged atomic.Pointer[merged]
}

// Open reads users and roles of the state in r.
func Open(r engine.Reader) (*Auth, error) {
	a := &Auth{
		users: make(map[string]*account), roles: make(map[string]*Role),
		nextUsers: make(map[string]*account), nextRoles: make(map[string]*Role),
	}
	a.shown.Settings = Settings{Revision: 1}
	it, err := r.NewIter(engine.PrefixBounds([]byte{engine.PrefixAuth}))
	if err != nil {
		return nil, fmt.Errorf("read users and roles: %w", err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		row, err := DecodeRow(it.Key(), it.Value())
		if err != nil {
			return nil, fmt.Errorf("read users and roles: %w", err)
		}
		switch {
		case row.User != nil:
			a.users[row.User.Name] = &account{User: *row.User}
		case row.Role != nil:
			a.roles[row.Role.Name] = row.Role
		default:
			a.shown.Settings = *row.Settings
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read users and roles: %w", err)
	}
	a.next = a.shown
	a.fast.enabled.Store(a.shown.Enabled)
	return a, nil
}

// Write writes the rows of users and roles that come from elsewhere, such as a snapshot of etcd, into a state that has
// none. What is not ascending is put in order.
func Write(b *engine.Batch, s Settings, users []User, roles []Role) error {
	s.Revision = max(s.Revision, 1)
	if err := b.Set(appendSettingsKey(nil), encodeSettings(nil, s)); err != nil {
		return err
	}
	for _, u := range users {
		u.Roles = slices.Compact(slices.Sorted(slices.Values(u.Roles)))
		if err := b.Set(appendUserKey(nil, u.Name), encodeUser(nil, &u)); err != nil {
			return err
		}
	}
	for _, r := range roles {
		r.Permissions = slices.Clone(r.Permissions)
		slices.SortStableFunc(r.Permissions, comparePermissions)
		if err := b.Set(appendRoleKey(nil, r.Name), encodeRole(nil, &r)); err != nil {
			return err
		}
	}
	return nil
}

// Publish shows readers what the committed batch made.
func (a *Auth) Publish() {
	if a.next == a.shown {
		return
	}
	a.mu.Lock()
	apply(a.users, a.nextUsers)
	apply(a.roles, a.nextRoles)
	a.shown = a.next
	a.mu.Unlock()
	// The stamp last: who sees the new one finds what it stands for.
	a.fast.enabled.Store(a.shown.Enabled)
	a.fast.stamp.Store(a.shown.stamp)
	clear(a.nextUsers)
	clear(a.nextRoles)
}

func apply[T any](to, changes map[string]*T) {
	for name, v := range changes {
		if v == nil {
			delete(to, name)
		} else {
			to[name] = v
		}
	}
}

// Changed reports whether the batch in work changed anything.
func (a *Auth) Changed() bool { return a.next != a.shown }

// Discard forgets what the batch in work made, because it will not be committed.
func (a *Auth) Discard() {
	a.next = a.shown
	clear(a.nextUsers)
	clear(a.nextRoles)
}

// View answers questions about users and roles as they are at the moment of each call.
type View struct {
	a       *Auth
	working bool
}

// Published is what the last published batch left, for any goroutine.
func (a *Auth) Published() View { return View{a: a} }

// Working is what the batch in work makes of it, for the apply loop alone.
func (a *Auth) Working() View { return View{a: a, working: true} }

func (v View) lock() {
	if !v.working {
		v.a.mu.RLock()
	}
}

func (v View) unlock() {
	if !v.working {
		v.a.mu.RUnlock()
	}
}

// The small letters are called between lock and unlock.

func (v View) settings() settings {
	if v.working {
		return v.a.next
	}
	return v.a.shown
}

func (v View) user(name string) *account {
	if v.working {
		if u, ok := v.a.nextUsers[name]; ok {
			return u
		}
	}
	return v.a.users[name]
}

func (v View) role(name string) *Role {
	if v.working {
		if r, ok := v.a.nextRoles[name]; ok {
			return r
		}
	}
	return v.a.roles[name]
}

// Enabled reports whether requests must name a user.
func (v View) Enabled() bool {
	if v.working {
		return v.a.next.Enabled
	}
	return v.a.fast.enabled.Load()
}

// Stamp changes with every change of users, roles and settings. It means something in this process, on this Auth, only.
func (v View) Stamp() uint64 {
	if v.working {
		return v.a.next.stamp
	}
	return v.a.fast.stamp.Load()
}

// Settings returns what holds for all users.
func (v View) Settings() Settings {
	v.lock()
	defer v.unlock()
	return v.settings().Settings
}

// User returns a user.
func (v View) User(name string) (User, bool) {
	v.lock()
	defer v.unlock()
	if u := v.user(name); u != nil {
		return u.User, true
	}
	return User{}, false
}

// Role returns a role.
func (v View) Role(name string) (Role, bool) {
	v.lock()
	defer v.unlock()
	if r := v.role(name); r != nil {
		return *r, true
	}
	return Role{}, false
}

// Users returns the names of all users, ascending.
func (v View) Users() []string {
	v.lock()
	defer v.unlock()
	return names(v.working, v.a.users, v.a.nextUsers)
}

// Roles returns the names of all roles, ascending.
func (v View) Roles() []string {
	v.lock()
	defer v.unlock()
	return names(v.working, v.a.roles, v.a.nextRoles)
}

func names[T any](working bool, all, changes map[string]*T) []string {
	if working {
		all = maps.Clone(all)
		apply(all, changes)
	}
	return slices.Sorted(maps.Keys(all))
}
