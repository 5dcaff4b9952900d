package cli

import (
	"context"
	"net"
	"slices"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/trivet-kv/trivet/internal/config"
)

// nameServer answers SRV questions for the services given, on loopback, and addresses of 127.0.0.1 for everything else.
func nameServer(t *testing.T, services map[string][]dnsmessage.SRVResource) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	was := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = was
		_ = conn.Close()
	})
	go func() { // ends with the socket
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
			targets := services[q.Name.String()]
			switch {
			case q.Type == dnsmessage.TypeSRV && targets == nil:
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeSRV:
				for i := range targets {
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &targets[i]})
				}
			case q.Type == dnsmessage.TypeA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}})
			}
			if out, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(out, from)
			}
		}
	}()
}

func at(host string, port uint16) dnsmessage.SRVResource {
	return dnsmessage.SRVResource{Target: dnsmessage.MustNewName(host + "."), Port: port, Priority: port}
}

// The founding members come from DNS: the one at this member's address has its name, the others are numbered.
func TestFoundersByDNS(t *testing.T) {
	nameServer(t, map[string][]dnsmessage.SRVResource{
		"_etcd-server._tcp.trivet.example.":      {at("a.trivet.example", 1001), at("b.trivet.example", 1002)},
		"_etcd-server-blue._tcp.trivet.example.": {at("c.trivet.example", 1001)},
	})
	load := func(args ...string) *config.Config {
		t.Helper()
		c, err := config.Load(append([]string{"--name=m1", "--listen-peer-urls=http://127.0.0.1:1001", "--initial-advertise-peer-urls=http://127.0.0.1:1001"}, args...), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := load("--discovery-srv=trivet.example")
	text, err := membersByDNS(c)
	if want := "m1=http://a.trivet.example:1001,0=http://b.trivet.example:1002"; err != nil || text != want {
		t.Errorf("%s, %v; want %s", text, err, want)
	}
	c = load("--discovery-srv=trivet.example", "--discovery-srv-name=blue")
	if text, err = membersByDNS(c); err != nil || text != "m1=http://c.trivet.example:1001" {
		t.Errorf("%s, %v", text, err)
	}
	if text, err = membersByDNS(load("--discovery-srv=nowhere.example")); err == nil {
		t.Errorf("%s of a domain without records", text)
	}
}

// gateway start finds the members that clients talk to by DNS too; without --insecure-discovery, only those with TLS count.
func TestClientsByDNS(t *testing.T) {
	nameServer(t, map[string][]dnsmessage.SRVResource{
		"_etcd-client._tcp.trivet.example.": {at("a.trivet.example", 1001), at("b.trivet.example", 1002)},
	})
	o := gatewayOptions{domain: "trivet.example", insecure: true, endpoints: []string{"127.0.0.1:7"}}
	ports := func() (p []uint16) {
		t.Helper()
		targets, err := o.targets(zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range targets {
			p = append(p, s.Port)
		}
		slices.Sort(p)
		return p
	}
	if p := ports(); !slices.Equal(p, []uint16{1001, 1002}) {
		t.Errorf("ports %v", p)
	}
	o.insecure = false
	if p := ports(); !slices.Equal(p, []uint16{7}) {
		t.Errorf("ports %v", p)
	}
}
