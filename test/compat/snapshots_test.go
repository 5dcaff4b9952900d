package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/cluster"
)

// TestSnapshotsCross saves a snapshot of each system with etcd's own etcdctl (which is in Trivet's binary), has both etcd's
// own etcdutl and Trivet's restore it, starts the system that the data directory is for, and wants everything that was there:
// keys with their history by HashKV, leases, users and roles, and the next revision.
func TestSnapshotsCross(t *testing.T) {
	if pairs != nil {
		t.Skip("files are the same with TLS")
	}
	etcdutl := *etcdutlFlag
	if etcdutl == "" {
		etcdutl = filepath.Join(t.TempDir(), "etcdutl")
		if err := build(".", etcdutl, "go.etcd.io/etcd/etcdutl/v3"); err != nil {
			t.Fatal(err)
		}
	}
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(rand.Uint32())
	}
	t.Logf("seed %d", seed)
	if err := fill(&systems, seed); err != nil {
		t.Fatal(err)
	}
	trivet := systems.trivet.command[0]
	utls := map[string][]string{"etcd": {etcdutl}, "Trivet": {trivet, "utl"}}
	for _, s := range []*target{systems.etcd, systems.trivet} {
		was, err := holdings(s.conns[0], 0)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "snapshot.db")
		run(t, trivet, "ctl", "--endpoints="+s.cluster.Members[0].Client, "snapshot", "save", file)
		told := make(map[string]string)
		for name, utl := range utls {
			told[name] = statusOf(t, run(t, append(slices.Clone(utl), "snapshot", "status", file, "-w", "json")...))
		}
		if told["etcd"] != told["Trivet"] {
			t.Errorf("status of a snapshot of %s: %v", s.name, told)
		}
		for _, restorer := range []*target{systems.etcd, systems.trivet} {
			t.Run("of "+s.name+" to "+restorer.name, func(t *testing.T) {
				restored(t, utls[restorer.name], restorer, file, was)
			})
		}
	}
}

// fill makes random calls, and users with roles.
func fill(p *pair, seed uint64) error {
	if err := p.begin(false); err != nil {
		return err
	}
	d := newDriver(p, seed, 1<<34)
	for p.calls < 400 {
		if err := p.all(d.next()); err != nil {
			return err
		}
	}
	ops, err := parseScript(`
? m1 Auth.UserAdd name:"root" password:"pw"
? m1 Auth.UserAdd name:"nopass" options:{no_password:true}
? m1 Auth.RoleAdd name:"r"
? m1 Auth.RoleGrantPermission name:"r" perm:{permType:READWRITE key:"a" range_end:"c"}
? m1 Auth.UserGrantRole user:"nopass" role:"r"
m1 Lease.LeaseGrant ID:1000 TTL:7000
m1 KV.Put key:"leased" value:"1" lease:1000
settle
`)
	if err == nil {
		err = p.all(ops)
	}
	return err
}

// holdings is what a member holds, as text. The hash is that of a revision, 0 for the newest.
func holdings(conn *grpc.ClientConn, revision int64) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var text strings.Builder
	tell := func(m proto.Message, err error) error {
		if h, ok := m.(interface{ GetHeader() *pb.ResponseHeader }); ok && h.GetHeader() != nil {
			h.GetHeader().ClusterId, h.GetHeader().MemberId, h.GetHeader().RaftTerm = 0, 0, 0
		}
		if err == nil {
			fmt.Fprintln(&text, oneLine(m))
		}
		return err
	}
	all, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err := tell(all, err); err != nil {
		return "", err
	}
	hash, err := pb.NewMaintenanceClient(conn).HashKV(ctx, &pb.HashKVRequest{Revision: revision})
	if err := tell(hash, err); err != nil {
		return "", err
	}
	leases, err := pb.NewLeaseClient(conn).LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return "", err
	}
	slices.SortFunc(leases.Leases, func(a, b *pb.LeaseStatus) int { return int(a.ID - b.ID) })
	for _, l := range leases.Leases {
		r, err := pb.NewLeaseClient(conn).LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: l.ID, Keys: true})
		if err == nil {
			r.TTL = 0
			slices.SortFunc(r.Keys, bytes.Compare)
		}
		if err := tell(r, err); err != nil {
			return "", err
		}
	}
	auth := pb.NewAuthClient(conn)
	users, err := auth.UserList(ctx, &pb.AuthUserListRequest{})
	if err := tell(users, err); err != nil {
		return "", err
	}
	for _, u := range users.Users {
		r, err := auth.UserGet(ctx, &pb.AuthUserGetRequest{Name: u})
		if err := tell(r, err); err != nil {
			return "", err
		}
	}
	role, err := auth.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: "r"})
	if err := tell(role, err); err != nil {
		return "", err
	}
	on, err := auth.AuthStatus(ctx, &pb.AuthStatusRequest{})
	return text.String(), tell(on, err)
}

// restored restores a file with a tool into the data directory of a member, starts it, and compares.
func restored(t *testing.T, utl []string, as *target, file, was string) {
	t.Helper()
	dir := t.TempDir()
	args := []string{"snapshot", "restore", file, "--data-dir=" + filepath.Join(dir, "m1"), "--name=m1",
		"--initial-cluster=m1=http://127.0.0.1:1", "--initial-advertise-peer-urls=http://127.0.0.1:1", "--bump-revision=0"}
	run(t, append(slices.Clone(utl), args...)...)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, dir, 1, as.command, slices.Concat(flags, as.extra)...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn, err := c.Members[0].Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	now, err := holdings(conn, 0)
	if err != nil {
		t.Fatal(err)
	}
	if now != was {
		t.Errorf("was:\n%s\nis:\n%s", was, now)
	}
	r, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	put, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("new")})
	if err != nil || put.Header.Revision != r.Header.Revision+1 {
		t.Errorf("a put after revision %d: %v, %v", r.Header.Revision, put, err)
	}
}

// statusOf is the answer of snapshot status.
func statusOf(t *testing.T, out string) string {
	t.Helper()
	var s map[string]any
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return fmt.Sprint(s)
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, &out, &errs)
	}
	return out.String()
}
