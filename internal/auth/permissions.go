package auth

import (
	"bytes"
	"slices"
	"sort"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Who is who acts: a user, and the auth revision under which he became known. The zero Who is nobody.
type Who struct {
	User     string
	Revision uint64
}

// Permissions is what somebody may do, at one moment. It never changes.
type Permissions struct {
	err    error // why nothing is allowed
	all    bool
	merged *merged
}

// merged is what the roles of a user allow together, at one stamp.
type merged struct {
	stamp       uint64
	read, write spans
}

// Permissions returns what who may do. While authentication is off that is everything.
func (v View) Permissions(who Who) Permissions {
	if !v.Enabled() {
		return Permissions{all: true}
	}
	v.lock()
	defer v.unlock()
	s := v.settings()
	if who.Revision == 0 {
		return Permissions{err: kv.ErrUserEmpty}
	}
	u := v.user(who.User)
	switch {
	case u == nil && who.Revision < s.Revision:
		return Permissions{err: kv.ErrAuthOldRevision} // there may have been such a user
	case u == nil:
		return Permissions{err: kv.ErrPermissionDenied}
	case who.Revision < u.Since || who.Revision < s.Disabled:
		return Permissions{err: kv.ErrAuthOldRevision}
	case u.root():
		return Permissions{all: true}
	}
	m := u.merged.Load()
	if m == nil || m.stamp != s.stamp {
		m = v.merge(u, s.stamp)
		u.merged.Store(m)
	}
	return Permissions{merged: m}
}

// Admin returns nil if who may manage the cluster: if he has the role root, or authentication is off.
func (v View) Admin(who Who) error {
	if !v.Enabled() {
		return nil
	}
	v.lock()
	defer v.unlock()
	u := v.user(who.User)
	switch {
	case who.User == "":
		return kv.ErrUserEmpty
	case u == nil:
		return kv.ErrUserNotFound
	case who.Revision < u.Since || who.Revision < v.settings().Disabled:
		return kv.ErrAuthOldRevision
	case !u.root():
		return kv.ErrPermissionDenied
	}
	return nil
}

// Valid reports whether who, who became known by a token of ours, still is: since its making the user was neither made
// anew nor given another password, and authentication not switched off.
func (v View) Valid(who Who) bool {
	v.lock()
	defer v.unlock()
	s, u := v.settings(), v.user(who.User)
	return s.Enabled && u != nil && who.Revision >= u.Since && who.Revision >= s.Disabled
}

// HasRole reports whether a user has a role.
func (v View) HasRole(user, role string) bool {
	v.lock()
	defer v.unlock()
	u := v.user(user)
	return u != nil && u.has(role)
}

func (u *User) has(role string) bool {
	_, found := slices.BinarySearch(u.Roles, role)
	return found
}

func (u *User) root() bool { return u.has(Root) }

func (v View) merge(u *account, stamp uint64) *merged {
	m := &merged{stamp: stamp}
	for _, name := range u.Roles {
		r := v.role(name)
		if r == nil {
			continue
		}
		for i := range r.Permissions {
			p := &r.Permissions[i]
			s := spanOf(p.Range)
			if p.Access == kv.Read || p.Access == kv.ReadWrite {
				m.read = append(m.read, s)
			}
			if p.Access == kv.Write || p.Access == kv.ReadWrite {
				m.write = append(m.write, s)
			}
		}
	}
	m.read, m.write = m.read.join(), m.write.join()
	return m
}

// All reports whether everything is allowed.
func (p *Permissions) All() bool { return p.all }

// Read returns nil if all keys of r may be read.
func (p *Permissions) Read(r kv.Range) error {
	if p.all || p.err != nil {
		return p.err
	}
	return denied(p.merged.read.cover(r))
}

// Write returns nil if all keys of r may be put and deleted.
func (p *Permissions) Write(r kv.Range) error {
	if p.all || p.err != nil {
		return p.err
	}
	return denied(p.merged.write.cover(r))
}

// Reach returns the end of the keys from key on of which each may be accessed so; nil: there is no end. It is not for who
// may do everything.
func (p *Permissions) Reach(access kv.Access, key []byte) (end []byte, err error) {
	if p.all || p.err != nil {
		return nil, p.err
	}
	s := p.merged.read
	if access == kv.Write {
		s = p.merged.write
	}
	i := s.find(key)
	if i < 0 {
		return nil, kv.ErrPermissionDenied
	}
	return s[i].end, nil
}

func denied(allowed bool) error {
	if !allowed {
		return kv.ErrPermissionDenied
	}
	return nil
}

// span is begin ≤ key < end; no end is nil.
type span struct{ begin, end []byte }

// spans are ascending, disjoint, and do not touch.
type spans []span

func spanOf(r kv.Range) span {
	switch {
	case r.Single():
		return span{r.Key, append(bytes.Clone(r.Key), 0)}
	case r.FromKey():
		return span{r.Key, nil}
	}
	return span{r.Key, r.End}
}

// join puts s in order and makes one of those that meet.
func (s spans) join() spans {
	if len(s) < 2 {
		return s
	}
	slices.SortFunc(s, func(a, b span) int { return bytes.Compare(a.begin, b.begin) })
	out := s[:1]
	for _, n := range s[1:] {
		last := &out[len(out)-1]
		switch {
		case last.end == nil:
			return out
		case bytes.Compare(n.begin, last.end) > 0:
			out = append(out, n)
		case n.end == nil || bytes.Compare(n.end, last.end) > 0:
			last.end = n.end
		}
	}
	return out
}

// find returns the place of the span that key lies in, -1 if it lies in none.
func (s spans) find(key []byte) int {
	i := sort.Search(len(s), func(i int) bool { return bytes.Compare(s[i].begin, key) > 0 }) - 1
	if i < 0 || s[i].end != nil && bytes.Compare(key, s[i].end) >= 0 {
		return -1
	}
	return i
}

// cover reports whether every key of r lies in s. A range without keys (its end is not behind its key) counts as its first
// key alone, as in etcd.
func (s spans) cover(r kv.Range) bool {
	low, high := r.Key, r.End
	switch {
	case r.FromKey():
		i := s.find(r.Key)
		return i >= 0 && s[i].end == nil
	case r.Single(), bytes.Compare(low, high) >= 0:
		return s.find(r.Key) >= 0
	}
	i := s.find(low)
	return i >= 0 && (s[i].end == nil || bytes.Compare(high, s[i].end) <= 0)
}
