package fsm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// auth reads a change of users and roles:
//
//	enable | disable | user NAME [nopassword] | deluser NAME | password NAME HASH | role NAME | delrole NAME
//	give USER ROLE | take USER ROLE | allow ROLE KEYS read|write|both | forbid ROLE KEYS | login USER NONCE
func (p *parser) auth(f []string) *command.Auth {
	access := map[string]kv.Access{"read": kv.Read, "write": kv.Write, "both": kv.ReadWrite}
	arg := func(n int) string {
		if len(f) > n {
			return f[n]
		}
		return ""
	}
	switch f[0] {
	case "enable":
		return &command.Auth{Op: command.AuthEnable}
	case "disable":
		return &command.Auth{Op: command.AuthDisable}
	case "user":
		return &command.Auth{Op: command.AuthUserAdd, Name: arg(1), Hash: []byte("hash of " + arg(1)), NoPassword: arg(2) != ""}
	case "deluser":
		return &command.Auth{Op: command.AuthUserDelete, Name: arg(1)}
	case "password":
		return &command.Auth{Op: command.AuthUserPassword, Name: arg(1), Hash: []byte(arg(2)), BadHash: arg(2) == "bad"}
	case "role":
		return &command.Auth{Op: command.AuthRoleAdd, Role: arg(1)}
	case "delrole":
		return &command.Auth{Op: command.AuthRoleDelete, Role: arg(1)}
	case "give":
		return &command.Auth{Op: command.AuthUserGrant, Name: arg(1), Role: arg(2)}
	case "take":
		return &command.Auth{Op: command.AuthUserRevoke, Name: arg(1), Role: arg(2)}
	case "allow":
		return &command.Auth{Op: command.AuthRoleGrant, Role: arg(1), Permission: kv.Permission{Range: p.keys(arg(2)), Access: access[arg(3)]}}
	case "forbid":
		return &command.Auth{Op: command.AuthRoleRevoke, Role: arg(1), Permission: kv.Permission{Range: p.keys(arg(2))}}
	case "login":
		return &command.Auth{Op: command.AuthAuthenticate, Name: arg(1), Nonce: arg(2)}
	}
	p.t.Fatalf("unknown change of users and roles %q", f)
	return nil
}

// dumpAuth is nothing while nothing is set.
func dumpAuth(s *State) string {
	var b strings.Builder
	v := s.Auth.Published()
	if v.Settings().Revision > 1 {
		fmt.Fprintf(&b, "auth %+v\n", v.Settings())
	}
	for _, name := range v.Users() {
		u, _ := v.User(name)
		fmt.Fprintf(&b, "user %s hash %q no password %v roles %q since %d\n", u.Name, u.Hash, u.NoPassword, u.Roles, u.Since)
	}
	for _, name := range v.Roles() {
		r, _ := v.Role(name)
		fmt.Fprintf(&b, "role %s", r.Name)
		for _, p := range r.Permissions {
			fmt.Fprintf(&b, " %q..%q:%d", p.Key, p.End, p.Access)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// randomAuth changes users and roles so that requests are refused now and then.
func randomAuth(r *rand.Rand) *command.Auth {
	user, role := []string{"root", "u1", "u2"}[r.IntN(3)], []string{"root", "r1", "r2"}[r.IntN(3)]
	p := kv.Permission{Range: randomRange(r), Access: kv.Access(r.IntN(3))}
	return &command.Auth{
		Op: command.AuthOp(int(command.AuthEnable) + r.IntN(12)), Name: user, Role: role, Permission: p,
		Hash: []byte("h"), NoPassword: r.IntN(3) == 0, Nonce: "n",
	}
}

// While an attached key may be unknown to whoever wants the lease, it is found without reading the others.
func TestLeaseOfManyKeys(t *testing.T) {
	s := openState(t, vfs.NewMem())
	defer s.Engine.Close()
	must := func(who string, c *command.Command, want error) {
		t.Helper()
		if who != "" {
			c.User, c.AuthRevision = who, s.Auth.Published().Settings().Revision
		}
		out, err := s.Apply([]command.Entry{entry(s, c)}, everybody{})
		if err != nil || !errors.Is(out.Results[0].Result.Err, want) {
			t.Fatalf("%s %s: %v %v, want %v", who, c.Name(), err, out.Results[0].Result.Err, want)
		}
	}
	must("", &command.Command{LeaseGrant: &command.LeaseGrant{ID: 1, TTL: 100}}, nil)
	for i := range 300 {
		must("", &command.Command{Put: &command.Put{Key: fmt.Appendf(nil, "a%03d", i), Lease: 1}}, nil)
	}
	p := &parser{t: t}
	for _, line := range []string{"user root", "give root root", "user u", "role r", "give u r", "allow r a..b write", "enable"} {
		must("", &command.Command{Auth: p.auth(strings.Fields(line))}, nil)
	}
	put := func(key string) *command.Command {
		return &command.Command{Put: &command.Put{Key: []byte(key), Lease: 1}}
	}
	must("u", put("ax"), nil)
	must("root", put("b"), nil)
	must("u", put("ay"), kv.ErrPermissionDenied)
	must("u", &command.Command{LeaseRevoke: &command.LeaseRevoke{ID: 1}}, kv.ErrPermissionDenied)
	must("root", &command.Command{Auth: p.auth(strings.Fields("allow r b write"))}, nil)
	must("u", put("ay"), nil)
	must("u", &command.Command{LeaseRevoke: &command.LeaseRevoke{ID: 1}}, nil)
}
