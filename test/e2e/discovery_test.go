package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/trivet-kv/trivet/test/pki"
)

// TestDiscoveryService lets three members that do not know of one another meet at a cluster that serves for discovery. One
// more is refused, and the three need the service no longer once they are founded.
func TestDiscoveryService(t *testing.T) {
	service := startCluster(t, 1)
	c := newCluster(t, 4)
	const token = "4f2a"
	for _, m := range c.members {
		for _, flag := range []string{"--initial-cluster", "--initial-cluster-token", "--initial-cluster-state"} {
			i := slices.Index(m.args, flag)
			m.args = slices.Delete(m.args, i, i+2)
		}
		m.args = append(m.args, "--discovery-token="+token, "--discovery-endpoints="+service.members[0].clientURL)
	}
	unknown := c.members[0]
	unknown.start()
	unknown.p.expect(30*time.Second, 0, "does not know this token")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	registry := service.client(service.members[0])
	if _, err := registry.Put(ctx, "/_etcd/registry/"+token+"/_config/size", "3"); err != nil {
		t.Fatal(err)
	}
	late := c.members[3]
	c.members = c.members[:3]
	// One that is told to stop while it waits, stops; its place is its own when it comes again.
	c.members[0].start()
	c.members[0].p.expect(30*time.Second, 0, "waiting for the other founding members")
	c.members[0].p.stop(20 * time.Second)
	c.start(c.members...)
	if _, err := c.client(c.members...).Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	list, err := c.client(c.members[0]).MemberList(ctx)
	if err != nil || len(list.Members) != 3 {
		t.Fatalf("%v %v", list, err)
	}
	late.start()
	late.p.expect(30*time.Second, 0, "has its 3 members already")
	service.kill(service.members[0])
	c.kill(c.members...)
	c.start(c.members...)
	if v, err := c.client(c.members[1]).Get(ctx, "k"); err != nil || len(v.Kvs) != 1 {
		t.Fatalf("%v %v", v, err)
	}
	if s := strings.Join(late.p.output(), "\n"); !strings.Contains(s, "use a new token") {
		t.Errorf("no way out is named:\n%s", s)
	}
}

// TestDiscoverySecure: over TLS, with a user, three members meet at a service that comes up after the first of them. One has
// its settings in a file, with a name for the service's certificate that no flag can give.
func TestDiscoverySecure(t *testing.T) {
	ca := pki.NewCA("ca")
	k := newKeys(t, ca)
	ca.Issue(pki.Spec{CN: "service", Hosts: []string{"127.0.0.1", "service.example"}}).WriteTo(k.dir, "server")
	ca.Issue(pki.Spec{CN: "founder"}).WriteTo(k.dir, "founder")
	pki.Write(k.dir, "ca.pem", ca.PEM)
	at := func(name string) string { return filepath.Join(k.dir, name) }
	k.show(ca.Issue(pki.Spec{}))
	service := newClusterOver(t, k.config(), 1, "--cert-file="+at("server.pem"), "--key-file="+at("server-key.pem"), "--trusted-ca-file="+at("ca.pem"), "--client-cert-auth",
		"--peer-cert-file="+at("server.pem"), "--peer-key-file="+at("server-key.pem"), "--peer-trusted-ca-file="+at("ca.pem"))
	const token, password = "5c1b", "a-good-password"
	url := service.members[0].clientURL
	c := newCluster(t, 3)
	for i, m := range c.members {
		j := slices.Index(m.args, "--initial-cluster")
		m.args = append(m.args[:j:j], "--discovery-token="+token, "--discovery-endpoints="+url, "--discovery-insecure-transport=false",
			"--discovery-cacert="+at("ca.pem"), "--discovery-cert="+at("founder.pem"), "--discovery-key="+at("founder-key.pem"))
		switch i {
		case 0:
			m.args = append(m.args, "--discovery-user=joe:"+password)
		case 1:
			m.args = append(m.args, "--discovery-user=joe", "--discovery-password="+password)
		case 2:
			file := filepath.Join(t.TempDir(), "member.yml")
			text := fmt.Sprintf(`
name: %s
data-dir: %s
listen-client-urls: %[3]s
advertise-client-urls: %[3]s
listen-peer-urls: %[4]s
initial-advertise-peer-urls: %[4]s
discovery-config:
  token: %q
  client:
    endpoints: [%q]
    secure: {insecure-transport: false, cacert: %q, cert: %q, key: %q, server-name: service.example}
    auth: {username: joe, password: %s}
`, m.name, m.dir, m.clientURL, m.peerURL, token, url, at("ca.pem"), at("founder.pem"), at("founder-key.pem"), password)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			m.args = []string{"server", "--config-file=" + file}
		}
	}
	service.start(service.members...)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	admin := service.client()
	prefix := "/_etcd/registry/" + token + "/"
	for _, do := range []func() error{
		func() error { _, err := admin.Put(ctx, prefix+"_config/size", "3"); return err },
		func() error { _, err := admin.UserAdd(ctx, "root", "root"); return err },
		func() error { _, err := admin.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := admin.UserAdd(ctx, "joe", password); return err },
		func() error { _, err := admin.RoleAdd(ctx, "founders"); return err },
		func() error {
			_, err := admin.RoleGrantPermission(ctx, "founders", prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := admin.UserGrantRole(ctx, "joe", "founders"); return err },
		func() error { _, err := admin.AuthEnable(ctx); return err },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	service.kill(service.members...)
	c.members[0].start()
	c.members[0].p.expect(30*time.Second, 0, "the discovery service does not answer", "connection refused")
	service.start(service.members...)
	c.members[1].start()
	c.members[2].start()
	for _, m := range c.members {
		m.ready(2 * time.Minute) // the first waits longer after each try
	}
	list, err := c.client().MemberList(ctx)
	if err != nil || len(list.Members) != 3 {
		t.Fatalf("%v %v", list, err)
	}
	for _, m := range c.members {
		if strings.Contains(strings.Join(m.p.output(), "\n"), password) {
			t.Errorf("the log of %s shows the password", m.name)
		}
	}
	wrong := newCluster(t, 1).members[0]
	j := slices.Index(wrong.args, "--initial-cluster")
	wrong.args = append(wrong.args[:j:j], append(slices.Clone(c.members[1].args[j:]), "--discovery-password=wrong")...)
	wrong.start()
	if status := wrong.p.wait(30 * time.Second); status != 1 || !strings.Contains(strings.Join(wrong.p.output(), "\n"), "correct --discovery-user and --discovery-password") {
		t.Errorf("with a wrong password: status %d", status)
	}
}
