package cli

import (
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"testing"

	"github.com/trivet-kv/trivet/internal/config"
)

// Other members see the address that the feature gate SetMemberLocalAddr has found. All of 127.0.0.0/8 is this machine on
// Linux alone.
func TestLocalAddr(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := &config.Config{
		LocalAddr:         netip.MustParseAddr("127.0.0.9"),
		ListenPeerURLs:    []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}},
		AdvertisePeerURLs: []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}},
	}
	d, err := openDoors(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	out, err := d.dialPeer(t.Context(), "http://"+l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if host, _, _ := net.SplitHostPort(in.RemoteAddr().String()); host != "127.0.0.9" {
		t.Errorf("dialled from %s", host)
	}
}
