package compat

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/test/pki"
)

// Scripts with users have systems of their own: what they leave behind would be in the way of others, and nobody may watch
// what they do without a name.
func (p *pair) guarded(t *testing.T, run func(step func(o op) error) error) {
	t.Helper()
	p.lastly(t, true, run)
}

// lastly runs something after which the systems are of no use to others. Nobody watches.
func (p *pair) lastly(t *testing.T, fresh bool, run func(step func(o op) error) error) {
	t.Helper()
	for attempt := 0; ; attempt++ {
		err := p.begin(fresh || attempt > 0)
		if err == nil {
			err = p.both(func(t *target) error { t.closeStreams(); return nil })
		}
		if err == nil {
			err = run(func(o op) error {
				if p.etcd.witness != nil {
					if err := blameless(p.both((*target).caughtUp)); err != nil {
						return err
					}
					return p.do([]op{o})
				}
				p.done = append(p.done, o)
				p.skipHash(o)
				if err := blameless(p.both((*target).caughtUp)); err != nil {
					return err
				}
				return p.compareCalls([]op{o})
			})
		}
		void := err != nil && p.void(err) && attempt < 2
		p.etcd.stop()
		p.trivet.stop()
		if void {
			t.Logf("the machine stood still, once more: %v", err)
			continue
		}
		if err != nil {
			t.Fatalf("after %d calls: %v", len(p.done), err)
		}
		return
	}
}

// TestAuthCalls makes every call about users and roles, and every other one as different users.
func TestAuthCalls(t *testing.T) { guardedFile(t, "testdata/auth/calls.txt") }

// guardedFile runs a script with users. Under TLS nobody is without a name, so what the lines say of errors does not hold
// for files that are not made for it.
func guardedFile(t *testing.T, file string) {
	ops := script(t, file)
	systems.guarded(t, func(step func(op) error) error {
		return stepwise(t, ops, pairs == nil || strings.HasPrefix(file, "testdata/tls/"), step)
	})
}

func script(t *testing.T, file string) []op {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ops, err := parseScript(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return ops
}

// stepwise makes the calls of a script, and wants the errors that its lines tell of, if they are exact.
func stepwise(t *testing.T, ops []op, exact bool, step func(op) error) error {
	for _, o := range ops {
		if err := step(o); err != nil {
			return err
		}
		if got := systems.done[len(systems.done)-1]; exact && got.fails != o.fails && !o.either {
			t.Errorf("%s: both fail: %v, where the script says %v", o, got.fails, o.fails)
		}
	}
	return nil
}

// TestAuthRandom makes random calls as random users, who also watch, and whose permissions change now and then.
func TestAuthRandom(t *testing.T) { authRandom(t, *callsFlag/2, 0, false) }

// TestAuthKills is TestAuthRandom while members are killed and started again. A member that comes back knows no simple token any
// more, so everybody gets a new one then.
func TestAuthKills(t *testing.T) {
	defer systems.with("--heartbeat-interval=100", "--election-timeout=1000")()
	authRandom(t, 150**killsFlag, *killsFlag, false)
}

// TestSignedTokens is TestAuthKills with signed tokens instead of simple ones, which members know that have not made them or have
// been away. With etcd they are of no use after the next change of users and roles (docs/compat.md), so everybody gets new ones
// then.
func TestSignedTokens(t *testing.T) {
	methods := slices.Sorted(maps.Keys(tokenKeys))
	method := methods[rand.IntN(len(methods))]
	if *seedFlag != 0 {
		method = methods[*seedFlag%uint64(len(methods))]
	}
	t.Log(method)
	private, public := tokenKeys[method]()
	options := fmt.Sprintf("--auth-token=jwt,ttl=1h,sign-method=%s,priv-key=%s", method, pki.Write(t.TempDir(), "private.pem", private))
	if public != nil {
		options += ",pub-key=" + pki.Write(t.TempDir(), "public.pem", public)
	}
	defer systems.with(options, "--heartbeat-interval=100", "--election-timeout=1000")()
	authRandom(t, *callsFlag/6, *killsFlag, true)
}

// tokenKeys make a pair of keys for a method of signing, or one alone.
var tokenKeys = map[string]func() (private, public []byte){
	"HS256": func() ([]byte, []byte) { return []byte("a secret of a few words"), nil },
	"ES256": func() ([]byte, []byte) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
		return encodeKeys(k, k.Public(), err)
	},
	"EdDSA": func() ([]byte, []byte) {
		public, k, err := ed25519.GenerateKey(crand.Reader)
		return encodeKeys(k, public, err)
	},
	"RS256": func() ([]byte, []byte) {
		k, err := rsa.GenerateKey(crand.Reader, 2048)
		return encodeKeys(k, k.Public(), err)
	},
	"PS512": func() ([]byte, []byte) {
		k, err := rsa.GenerateKey(crand.Reader, 2048)
		return encodeKeys(k, k.Public(), err)
	},
}

func encodeKeys(private, public any, err error) ([]byte, []byte) {
	if err != nil {
		panic(err)
	}
	one, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		panic(err)
	}
	other, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: one}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: other})
}

// authRandom makes random calls as random users, and kills members at even distances.
func authRandom(t *testing.T, calls, kills int, signed bool) {
	seed := *seedFlag
	if seed == 0 {
		seed = 1 + uint64(os.Getpid())
	}
	t.Logf("-seed %d", seed)
	systems.guarded(t, func(step func(op) error) error {
		d := newDriver(&systems, seed, 1<<32)
		d.guarded, d.signed = true, signed
		for _, o := range d.usersAtFirst() {
			if err := step(o); err != nil {
				return err
			}
		}
		if err := blameless(systems.both(func(s *target) error { return s.openWitness(0, "root", s.base) })); err != nil {
			return err
		}
		refused, watches, made, turns := 0, 0, 0, 0
		for made < calls {
			var ops []op
			if kills > 0 && made >= turns*calls/(2*kills) {
				turns++
				ops = d.killOrStart()
			} else {
				ops = d.guardedNext()
			}
			for _, o := range ops {
				if err := step(o); err != nil {
					return err
				}
				if systems.done[len(systems.done)-1].fails {
					refused++
				}
				if o.verb == "watch" {
					watches++
				}
				made++
				systems.done = systems.done[len(systems.done)-1:]
				d.forget()
			}
		}
		t.Logf("%d of the calls failed, %d were on watch streams, %d times a member was killed or started", refused, watches, turns)
		return step(op{verb: "settle"})
	})
}

var randomUsers = []string{"u0", "u1", "u2", "u3"}

// permissions have one end for each key: etcd keeps two of the same key side by side and may then fail to change one.
var permissions = []*authpb.Permission{
	{Key: []byte("a"), RangeEnd: []byte("b")}, {Key: []byte("b")}, {Key: []byte("b\x00"), RangeEnd: []byte("ca")},
	{Key: []byte("ca"), RangeEnd: []byte("e")}, {Key: []byte("e")}, {Key: []byte("f"), RangeEnd: []byte{0}},
	{Key: []byte{0}, RangeEnd: []byte("b")}, {Key: []byte("a/"), RangeEnd: []byte("a0")}, {Key: []byte("zz")},
}

func (d *driver) usersAtFirst() []op {
	var ops []op
	add := func(method string, req proto.Message) { ops = append(ops, d.one(method, req)...) }
	add("Auth.UserAdd", &pb.AuthUserAddRequest{Name: "root", Password: "pw"})
	add("Auth.UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"})
	for i, u := range randomUsers {
		role := fmt.Sprintf("r%d", i)
		add("Auth.UserAdd", &pb.AuthUserAddRequest{Name: u, Password: "pw"})
		add("Auth.RoleAdd", &pb.AuthRoleAddRequest{Name: role})
		add("Auth.UserGrantRole", &pb.AuthUserGrantRoleRequest{User: u, Role: role})
		for range 4 {
			add("Auth.RoleGrantPermission", d.grant(role))
		}
	}
	add("Auth.AuthEnable", &pb.AuthEnableRequest{})
	for _, u := range append([]string{"root"}, randomUsers...) {
		add("Auth.Authenticate", &pb.AuthenticateRequest{Name: u, Password: "pw"})
	}
	return ops
}

func (d *driver) grant(role string) *pb.AuthRoleGrantPermissionRequest {
	p := proto.Clone(permissions[d.IntN(len(permissions))]).(*authpb.Permission)
	p.PermType = authpb.Permission_Type(d.IntN(3))
	return &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: p}
}

// guardedNext are the next ops: a change of users and roles, mostly by root, or a call of somebody.
func (d *driver) guardedNext() []op {
	who := d.somebody()
	var ops []op
	switch n := d.IntN(100); {
	case n < 10:
		if !d.oneIn(6) {
			who = "root"
		}
		return d.guardedChange(who)
	case n < 13:
		return d.one("Auth.Authenticate", &pb.AuthenticateRequest{Name: randomUsers[d.IntN(4)], Password: []string{"pw", "pw", "pw2"}[d.IntN(3)]})
	case n < 28:
		ops = d.one("KV.Put", d.newPut())
	case n < 34:
		ops = d.one("KV.DeleteRange", d.newDelete())
	case n < 52:
		txn := d.newTxn(0)
		putNothingBack(txn)
		ops = d.one("KV.Txn", txn)
	case n < 53:
		ops = d.compact()
	case n < 60:
		ops = d.leaseWrite()
	case n < 70:
		ops = d.watch()
		for _, o := range ops {
			if o.req != nil {
				straighten(o.req.ProtoReflect())
			}
		}
		return ops // each stream has its user
	default:
		ops = []op{d.read()}
	}
	for i := range ops {
		ops[i].user = who
		straighten(ops[i].req.ProtoReflect())
	}
	return ops
}

// somebody is one of the users mostly.
func (d *driver) somebody() string {
	switch d.IntN(20) {
	case 0:
		return ""
	case 1:
		return "nonsense"
	case 2, 3:
		return "root"
	}
	return randomUsers[d.IntN(len(randomUsers))]
}

// guardedChange closes the watch streams before users and roles change, because with Trivet a watch ends with the right to
// it (docs/compat.md).
func (d *driver) guardedChange(who string) []op {
	var ops []op
	if len(d.streams) > 0 {
		ops = append(ops, op{verb: "settle"})
	}
	for _, s := range d.streams {
		ops = append(ops, op{verb: "close", stream: s.name})
	}
	d.streams = nil
	changes := d.changeUsers()
	for i := range changes {
		changes[i].user = who
	}
	ops = append(ops, changes...)
	if d.signed {
		ops = append(ops, d.newTokens()...)
	}
	return ops
}

// newTokens has everybody ask for one, with either password.
func (d *driver) newTokens() []op {
	var ops []op
	for _, u := range append([]string{"root"}, randomUsers...) {
		for _, pw := range []string{"pw", "pw2"} {
			if u != "root" || pw == "pw" {
				ops = append(ops, d.one("Auth.Authenticate", &pb.AuthenticateRequest{Name: u, Password: pw})...)
			}
		}
	}
	return ops
}

// killOrStart kills a member, or starts the one that is dead.
func (d *driver) killOrStart() []op {
	if d.dead < memberCount {
		back := op{verb: "start", member: d.dead}
		d.dead = memberCount
		if d.signed {
			return []op{back}
		}
		return append([]op{back}, d.newTokens()...)
	}
	d.dead = d.IntN(memberCount)
	d.streams = slices.DeleteFunc(d.streams, func(s *randomStream) bool { return s.member == d.dead })
	return []op{{verb: "kill", member: d.dead}}
}

// straighten makes one key of a range whose end is not behind its key. Whether etcd permits such a range depends on how its
// tree of permissions has grown (docs/compat.md).
func straighten(m protoreflect.Message) {
	key, end := m.Descriptor().Fields().ByName("key"), m.Descriptor().Fields().ByName("range_end")
	if key != nil && end != nil {
		if k, e := m.Get(key).Bytes(), m.Get(end).Bytes(); len(e) > 0 && !bytes.Equal(e, []byte{0}) && bytes.Compare(k, e) >= 0 {
			m.Clear(end)
		}
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() != nil && f.IsList():
			for i := range v.List().Len() {
				straighten(v.List().Get(i).Message())
			}
		case f.Message() != nil && !f.IsMap():
			straighten(v.Message())
		}
		return true
	})
}

func (d *driver) changeUsers() []op {
	user, role := randomUsers[d.IntN(4)], fmt.Sprintf("r%d", d.IntN(5))
	switch d.IntN(12) {
	case 0, 1:
		return d.one("Auth.RoleGrantPermission", d.grant(role))
	case 2, 3:
		p := permissions[d.IntN(len(permissions))]
		return d.one("Auth.RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: role, Key: p.Key, RangeEnd: p.RangeEnd})
	case 4, 5:
		return d.one("Auth.UserGrantRole", &pb.AuthUserGrantRoleRequest{User: user, Role: role})
	case 6:
		return d.one("Auth.UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: user, Role: role})
	case 7:
		return d.one("Auth.UserGet", &pb.AuthUserGetRequest{Name: user})
	case 8:
		return d.one("Auth.RoleGet", &pb.AuthRoleGetRequest{Role: role})
	case 9:
		return d.one("Auth.UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: user, Password: []string{"pw", "pw2"}[d.IntN(2)]})
	case 10:
		if d.oneIn(3) {
			return d.one("Auth.RoleDelete", &pb.AuthRoleDeleteRequest{Role: role})
		}
		return d.one("Auth.RoleAdd", &pb.AuthRoleAddRequest{Name: role})
	}
	if d.oneIn(4) {
		return d.one("Auth.UserDelete", &pb.AuthUserDeleteRequest{Name: user})
	}
	return append(d.one("Auth.UserAdd", &pb.AuthUserAddRequest{Name: user, Password: "pw"}), d.one("Auth.AuthStatus", &pb.AuthStatusRequest{})...)
}
