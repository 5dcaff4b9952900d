package lint

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Nothing in the tree may depend on the machine it was written on, or on where that machine gets its modules from.
func TestNothingOfThisMachine(t *testing.T) {
	// Written in two parts, so that this file does not hold them.
	refused := []string{
		"/wo" + "rk/", "/ro" + "ot/", "/Us" + "ers/", "/tmp/or" + "acle",
		"proxy.gol" + "ang.org", "sum.gol" + "ang.org", "gopr" + "oxy.io", "gopr" + "oxy.cn",
	}
	for _, v := range []string{"GOPROXY", "GOSUMDB"} {
		for _, one := range strings.FieldsFunc(os.Getenv(v), func(r rune) bool { return r == ',' || r == '|' }) {
			if u, err := url.Parse(one); err == nil && u.Hostname() != "" && u.Hostname() != "localhost" && u.Hostname() != "127.0.0.1" {
				refused = append(refused, u.Hostname())
			}
		}
	}
	top := root(t)
	walk(t, func(path string) {
		b, err := os.ReadFile(filepath.Join(top, filepath.FromSlash(path)))
		if err != nil {
			t.Error(err)
			return
		}
		if len(b) > 4<<20 || bytes.IndexByte(b[:min(len(b), 8000)], 0) >= 0 {
			return // not text
		}
		for _, r := range refused {
			if i := bytes.Index(b, []byte(r)); i >= 0 {
				t.Errorf("%s:%d: %q belongs to a machine, not to the project", path, 1+bytes.Count(b[:i], []byte("\n")), r)
			}
		}
	})
}
