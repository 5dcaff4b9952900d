package auth

import (
	"bytes"
	"slices"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// Enable switches authentication on. It needs a user root that has the role root. As in etcd it makes no new revision.
func (a *Auth) Enable(b *engine.Batch) error {
	if a.next.Enabled {
		return nil
	}
	u := a.Working().user(Root)
	switch {
	case u == nil:
		return kv.ErrRootUserNotExist
	case !u.root():
		return kv.ErrRootRoleNotExist
	}
	a.next.Enabled = true
	return a.writeSettings(b)
}

// Disable switches authentication off.
func (a *Auth) Disable(b *engine.Batch) error {
	if !a.next.Enabled {
		return nil
	}
	a.next.Enabled = false
	a.next.Revision++
	a.next.Disabled = a.next.Revision
	return a.writeSettings(b)
}

// Authenticate confirms that a user's password, which was compared under the revision checked, still is the password, and
// returns the revision under which the user is known from now on. kv.ErrAuthOldRevision if it must be compared again.
func (a *Auth) Authenticate(name string, checked uint64) (revision uint64, err error) {
	if !a.next.Enabled {
		return 0, kv.ErrAuthNotEnabled
	}
	u := a.Working().user(name)
	switch {
	case u == nil || u.NoPassword:
		return 0, kv.ErrAuthFailed
	case checked < u.Since || checked < a.next.Disabled:
		return 0, kv.ErrAuthOldRevision
	}
	return a.next.Revision, nil
}

// AddUser makes a user.
func (a *Auth) AddUser(b *engine.Batch, name string, hash []byte, noPassword bool) error {
	switch {
	case name == "":
		return kv.ErrUserEmpty
	case a.Working().user(name) != nil:
		return kv.ErrUserExists
	}
	if noPassword {
		hash = nil
	}
	return a.writeUser(b, User{Name: name, Hash: bytes.Clone(hash), NoPassword: noPassword, Since: a.next.Revision + 1})
}

// DeleteUser forgets a user. The user root stays while authentication is on.
func (a *Auth) DeleteUser(b *engine.Batch, name string) error {
	if a.next.Enabled && name == Root {
		return kv.ErrInvalidAuthMgmt
	}
	if a.Working().user(name) == nil {
		return kv.ErrUserNotFound
	}
	a.row = appendUserKey(a.row[:0], name)
	if err := b.Delete(a.row); err != nil {
		return err
	}
	a.nextUsers[name] = nil
	return a.count(b)
}

// ChangePassword gives a user another password, which has no effect on one without. unreadable says that what was to be
// its hash could not be read.
func (a *Auth) ChangePassword(b *engine.Batch, name string, hash []byte, unreadable bool) error {
	old := a.Working().user(name)
	if old == nil {
		return kv.ErrUserNotFound
	}
	u := old.User
	u.Since = a.next.Revision + 1
	if !u.NoPassword {
		if unreadable {
			return kv.ErrNoPasswordUser
		}
		u.Hash = bytes.Clone(hash)
	}
	return a.writeUser(b, u)
}

// GrantRole gives a user a role. The role root need not exist. To have it already is no error and no change.
func (a *Auth) GrantRole(b *engine.Batch, name, role string) error {
	v := a.Working()
	old := v.user(name)
	switch {
	case old == nil:
		return kv.ErrUserNotFound
	case role != Root && v.role(role) == nil:
		return kv.ErrRoleNotFound
	case old.has(role):
		return nil
	}
	u := old.User
	i, _ := slices.BinarySearch(u.Roles, role)
	u.Roles = slices.Insert(slices.Clone(u.Roles), i, role)
	return a.writeUser(b, u)
}

// RevokeRole takes a role from a user. The user root keeps the role root while authentication is on.
func (a *Auth) RevokeRole(b *engine.Batch, name, role string) error {
	if a.next.Enabled && name == Root && role == Root {
		return kv.ErrInvalidAuthMgmt
	}
	old := a.Working().user(name)
	switch {
	case old == nil:
		return kv.ErrUserNotFound
	case !old.has(role):
		return kv.ErrRoleNotGranted
	}
	return a.writeUser(b, old.without(role))
}

func (u *User) without(role string) User {
	out := *u
	out.Roles = slices.DeleteFunc(slices.Clone(u.Roles), func(r string) bool { return r == role })
	return out
}

// AddRole makes a role without permissions.
func (a *Auth) AddRole(b *engine.Batch, name string) error {
	switch {
	case name == "":
		return kv.ErrRoleEmpty
	case a.Working().role(name) != nil:
		return kv.ErrRoleExists
	}
	return a.writeRole(b, Role{Name: name})
}

// DeleteRole forgets a role and takes it from all users. The role root stays while authentication is on.
func (a *Auth) DeleteRole(b *engine.Batch, name string) error {
	if a.next.Enabled && name == Root {
		return kv.ErrInvalidAuthMgmt
	}
	v := a.Working()
	if v.role(name) == nil {
		return kv.ErrRoleNotFound
	}
	a.row = appendRoleKey(a.row[:0], name)
	if err := b.Delete(a.row); err != nil {
		return err
	}
	a.nextRoles[name] = nil
	for _, user := range v.Users() {
		if u := v.user(user); u.has(name) {
			if err := a.setUser(b, u.without(name)); err != nil {
				return err
			}
		}
	}
	return a.count(b)
}

// Grant gives a role a permission; one for the very same range is replaced.
func (a *Auth) Grant(b *engine.Batch, name string, p kv.Permission) error {
	if len(p.Key) == 0 || !p.Single() && !p.FromKey() && bytes.Compare(p.Key, p.End) >= 0 {
		return kv.ErrInvalidAuthMgmt
	}
	old := a.Working().role(name)
	if old == nil {
		return kv.ErrRoleNotFound
	}
	p.Key, p.End = bytes.Clone(p.Key), bytes.Clone(p.End)
	r := Role{Name: name, Permissions: slices.Clone(old.Permissions)}
	same := func(o kv.Permission) bool { return sameRange(o.Range, p.Range) }
	if i := slices.IndexFunc(r.Permissions, same); i >= 0 {
		r.Permissions[i].Access = p.Access
	} else {
		r.Permissions = append(r.Permissions, p)
		slices.SortStableFunc(r.Permissions, comparePermissions)
	}
	return a.writeRole(b, r)
}

// Revoke takes from a role the permission for a range.
func (a *Auth) Revoke(b *engine.Batch, name string, of kv.Range) error {
	old := a.Working().role(name)
	if old == nil {
		return kv.ErrRoleNotFound
	}
	left := slices.DeleteFunc(slices.Clone(old.Permissions), func(p kv.Permission) bool { return sameRange(p.Range, of) })
	if len(left) == len(old.Permissions) {
		return kv.ErrPermissionNotGranted
	}
	return a.writeRole(b, Role{Name: name, Permissions: left})
}

func sameRange(a, b kv.Range) bool { return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.End, b.End) }

func comparePermissions(a, b kv.Permission) int { return bytes.Compare(a.Key, b.Key) }

func (a *Auth) writeUser(b *engine.Batch, u User) error {
	if err := a.setUser(b, u); err != nil {
		return err
	}
	return a.count(b)
}

func (a *Auth) setUser(b *engine.Batch, u User) error {
	a.row, a.val = appendUserKey(a.row[:0], u.Name), encodeUser(a.val[:0], &u)
	if err := b.Set(a.row, a.val); err != nil {
		return err
	}
	a.nextUsers[u.Name] = &account{User: u}
	return nil
}

func (a *Auth) writeRole(b *engine.Batch, r Role) error {
	a.row, a.val = appendRoleKey(a.row[:0], r.Name), encodeRole(a.val[:0], &r)
	if err := b.Set(a.row, a.val); err != nil {
		return err
	}
	a.nextRoles[r.Name] = &r
	return a.count(b)
}

// count makes a new revision of what was just changed.
func (a *Auth) count(b *engine.Batch) error {
	a.next.Revision++
	return a.writeSettings(b)
}

func (a *Auth) writeSettings(b *engine.Batch) error {
	a.stamps++
	a.next.stamp = a.stamps
	a.row, a.val = appendSettingsKey(a.row[:0]), encodeSettings(a.val[:0], a.next.Settings)
	return b.Set(a.row, a.val)
}
