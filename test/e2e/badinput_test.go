package e2e

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBadInput starts a member in ways that cannot work. Each time it says what is wrong in one sentence that names the
// culprit, ends with status 1, and leaves the disk as it was.
func TestBadInput(t *testing.T) {
	// A member that ran once, in a cluster of its own.
	used := newCluster(t, 1)
	used.start(used.members...)
	if status := used.members[0].p.stop(10 * time.Second); status != 0 {
		t.Fatalf("status %d", status)
	}
	usedDir := used.members[0].dir

	for _, c := range []struct {
		name string
		// spoil changes what would start a new member. It returns words that the sentence must hold.
		spoil func(t *testing.T, m *member) []string
	}{
		{"unknown flag", func(_ *testing.T, m *member) []string {
			m.args = append(m.args, "--no-such-flag=1")
			return []string{"no-such-flag"}
		}},
		{"value that is no number", func(_ *testing.T, m *member) []string {
			m.args = append(m.args, "--heartbeat-interval=soon")
			return []string{"heartbeat-interval", "soon"}
		}},
		{"flag whose work is not done yet", func(_ *testing.T, m *member) []string {
			m.args = append(m.args, "--auth-token=jwt,pub-key=a")
			return []string{"auth-token"}
		}},
		{"impossible port", func(_ *testing.T, m *member) []string {
			m.set("--listen-client-urls", "http://127.0.0.1:99999")
			return []string{"listen-client-urls", "99999"}
		}},
		{"client URL without scheme", func(_ *testing.T, m *member) []string {
			m.set("--listen-client-urls", "127.0.0.1:2379")
			return []string{"listen-client-urls", "127.0.0.1:2379"}
		}},
		{"peer URL with a path", func(_ *testing.T, m *member) []string {
			m.set("--listen-peer-urls", m.peerURL+"/path")
			return []string{"listen-peer-urls"}
		}},
		{"name missing from the initial cluster", func(_ *testing.T, m *member) []string {
			m.set("--initial-cluster", "other="+m.peerURL)
			return []string{"initial", "m1"}
		}},
		{"peer URLs that differ from the initial cluster's", func(t *testing.T, m *member) []string {
			m.set("--initial-cluster", "m1="+loopback(freePort(t)))
			return []string{"initial"}
		}},
		{"client port taken", func(t *testing.T, m *member) []string {
			m.set("--listen-client-urls", taken(t))
			return []string{"listens on", "already"}
		}},
		{"peer port taken", func(t *testing.T, m *member) []string {
			url := taken(t)
			m.set("--listen-peer-urls", url)
			m.set("--initial-advertise-peer-urls", url)
			m.set("--initial-cluster", "m1="+url)
			return []string{"listens on", "already"}
		}},
		{"data directory of another member", func(_ *testing.T, m *member) []string {
			m.dir = usedDir
			m.set("--data-dir", usedDir)
			m.set("--name", "m2")
			m.set("--initial-cluster", "m2="+m.peerURL)
			return []string{usedDir, "m1"}
		}},
		{"data directory of another cluster", func(_ *testing.T, m *member) []string {
			m.dir = usedDir
			m.args = append([]string(nil), used.members[0].args...)
			m.set("--initial-cluster-token", "another")
			return []string{usedDir, "another"}
		}},
		{"data directory of etcd", func(t *testing.T, m *member) []string {
			write(t, filepath.Join(m.dir, "member", "snap", "db"), "a bbolt file")
			write(t, filepath.Join(m.dir, "member", "wal", "0000000000000000-0000000000000000.wal"), "a log")
			return []string{m.dir, "etcd"}
		}},
		{"data directory that is a file", func(t *testing.T, m *member) []string {
			write(t, m.dir, "a file")
			return []string{m.dir}
		}},
		{"identity that cannot be read", func(t *testing.T, m *member) []string {
			copyDir(t, usedDir, m.dir)
			write(t, filepath.Join(m.dir, "member.json"), "{")
			m.args = append([]string(nil), used.members[0].args...)
			m.set("--data-dir", m.dir)
			return []string{"member.json"}
		}},
		{"config file that is not there", func(t *testing.T, m *member) []string {
			m.args = []string{"server", "--config-file", filepath.Join(t.TempDir(), "none.yaml")}
			return []string{"none.yaml"}
		}},
		{"config file that cannot be read", func(t *testing.T, m *member) []string {
			m.args = []string{"server", "--config-file", t.TempDir()}
			return []string{"config"}
		}},
		{"config file that is not YAML", func(t *testing.T, m *member) []string {
			file := filepath.Join(t.TempDir(), "bad.yaml")
			write(t, file, "name: [")
			m.args = []string{"server", "--config-file", file}
			return []string{"bad.yaml"}
		}},
		{"unknown command", func(_ *testing.T, m *member) []string {
			m.args = []string{"begin"}
			return []string{"begin"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newCluster(t, 1).members[0]
			m.t = t
			words := c.spoil(t, m)
			before := tree(t, m.dir)
			p := spawn(t, "member", nil, trivet(t), m.args...)
			if status := p.wait(10 * time.Second); status != 1 {
				t.Errorf("ended with status %d, want 1", status)
			}
			said := sentences(p.output())
			if len(said) != 1 {
				t.Errorf("said %d things, want one sentence:\n%s", len(said), strings.Join(p.output(), "\n"))
			} else if !containsAll(said[0], words) {
				t.Errorf("said %q, without all of %q", said[0], words)
			}
			for _, change := range changes(before, tree(t, m.dir)) {
				t.Errorf("the data directory was touched: %s", change)
			}
		})
	}
}

// set gives a flag another value.
func (m *member) set(flag, value string) {
	for i, arg := range m.args {
		if arg == flag {
			m.args[i+1] = value
			return
		}
	}
	m.args = append(m.args, flag, value)
}

// sentences are the lines for people; lines of the log, which are JSON, are left out.
func sentences(lines []string) []string {
	var said []string
	for _, line := range lines {
		if line != "" && !strings.HasPrefix(line, "{") {
			said = append(said, line)
		}
	}
	return said
}

// taken is the URL of a port that somebody listens on.
func taken(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return "http://" + l.Addr().String()
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// tree describes everything under a path, by name: sizes, contents and when they were changed. Files that exist to be
// locked are described by their names alone.
func tree(t *testing.T, path string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		all[name] = info.Mode().String()
		if info.Mode().IsRegular() && entry.Name() != "LOCK" {
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			all[name] = fmt.Sprintf("%v, %d bytes, %.8x, %v", info.Mode(), info.Size(), sha256.Sum256(data), info.ModTime())
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return all
}

func changes(before, after map[string]string) []string {
	var list []string
	for name, was := range before {
		if is := after[name]; is != was {
			list = append(list, fmt.Sprintf("%s was %s and is %s", name, was, is))
		}
	}
	for name, is := range after {
		if _, known := before[name]; !known {
			list = append(list, fmt.Sprintf("%s is new: %s", name, is))
		}
	}
	return list
}
