package e2e

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// badInput is one way in which a member cannot start.
type badInput struct {
	name string
	// spoil changes what would start a new member. It returns words that the sentence must hold.
	spoil func(t *testing.T, m *member) []string
}

// spoiltDirs are data directories of a member that lack something.
func spoiltDirs(used *member) []badInput {
	return []badInput{
		{"log that is gone", func(t *testing.T, m *member) []string {
			m.again(t, used)
			if err := os.RemoveAll(filepath.Join(m.dir, "log")); err != nil {
				t.Fatal(err)
			}
			return []string{filepath.Join(m.dir, "log"), "gone"}
		}},
		{"log without its segments", func(t *testing.T, m *member) []string {
			m.again(t, used)
			segments, _ := filepath.Glob(filepath.Join(m.dir, "log", "*.log"))
			for _, s := range segments {
				if err := os.Remove(s); err != nil {
					t.Fatal(err)
				}
			}
			return []string{filepath.Join(m.dir, "log"), "gone"}
		}},
		{"no name of the state", func(t *testing.T, m *member) []string {
			m.again(t, used)
			write(t, filepath.Join(m.dir, "STATE"), "")
			return []string{filepath.Join(m.dir, "STATE"), "damaged"}
		}},
		{"state that is gone", func(t *testing.T, m *member) []string {
			m.again(t, used)
			if err := os.RemoveAll(filepath.Join(m.dir, "state-1")); err != nil {
				t.Fatal(err)
			}
			return []string{filepath.Join(m.dir, "state-1"), "gone"}
		}},
		{"identity that cannot be read", func(t *testing.T, m *member) []string {
			m.again(t, used)
			write(t, filepath.Join(m.dir, "member.json"), "{")
			return []string{"member.json"}
		}},
	}
}

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

	for _, c := range append(spoiltDirs(used.members[0]), []badInput{
		{"unknown flag", func(_ *testing.T, m *member) []string {
			m.args = append(m.args, "--no-such-flag=1")
			return []string{"no-such-flag"}
		}},
		{"value that is no number", func(_ *testing.T, m *member) []string {
			m.args = append(m.args, "--heartbeat-interval=soon")
			return []string{"heartbeat-interval", "soon"}
		}},
		{"value that lacks a part", func(_ *testing.T, m *member) []string {
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
			return []string{"--initial-cluster", "--name", "m1"}
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
		{"data directory of etcd", func(t *testing.T, m *member) []string {
			write(t, filepath.Join(m.dir, "member", "snap", "db"), "a bbolt file")
			write(t, filepath.Join(m.dir, "member", "wal", "0000000000000000-0000000000000000.wal"), "a log")
			return []string{m.dir, "etcd"}
		}},
		{"folder inside etcd's data directory", func(t *testing.T, m *member) []string {
			write(t, filepath.Join(m.dir, "snap", "db"), "a bbolt file")
			write(t, filepath.Join(m.dir, "wal", "0000000000000000-0000000000000000.wal"), "a log")
			return []string{m.dir, "etcd"}
		}},
		{"lock that cannot be taken", func(t *testing.T, m *member) []string {
			if err := os.MkdirAll(filepath.Join(m.dir, "LOCK"), 0o700); err != nil {
				t.Fatal(err)
			}
			return []string{m.dir, "can be written"}
		}},
		{"data directory that is a file", func(t *testing.T, m *member) []string {
			write(t, m.dir, "a file")
			return []string{"--data-dir", m.dir, "can be made"}
		}},
		{"data directory that is in use", func(t *testing.T, m *member) []string {
			running := newCluster(t, 1)
			running.start(running.members...)
			m.set("--data-dir", running.members[0].dir)
			return []string{"--data-dir", running.members[0].dir, "in use"}
		}},
		{"certificates that are not there", func(t *testing.T, m *member) []string {
			m.set("--listen-client-urls", strings.Replace(m.clientURL, "http:", "https:", 1))
			m.args = append(m.args, "--cert-file", "/none.pem", "--key-file", "/none-key.pem")
			return []string{"--cert-file=/none.pem", "--key-file=/none-key.pem", "no such file"}
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
	}...) {
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

// TestDamagedState changes bytes in the middle of the state's files: the member says so in one sentence and ends with
// status 1.
func TestDamagedState(t *testing.T) {
	c := newCluster(t, 1)
	m := c.members[0]
	c.start(m)
	if _, err := c.client().Put(t.Context(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	if status := m.p.stop(10 * time.Second); status != 0 {
		t.Fatalf("status %d", status)
	}
	tables, _ := filepath.Glob(filepath.Join(m.dir, "state-1", "*.sst"))
	if len(tables) == 0 {
		t.Fatal("the state has no files")
	}
	for _, name := range tables {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range min(200, len(data)) {
			data[i] ^= 0xff
		}
		write(t, name, string(data))
	}
	for _, args := range [][]string{m.args, {"inspect", "state", m.dir}} {
		p := spawn(t, args[0], nil, trivet(t), args...)
		if status := p.wait(20 * time.Second); status != 1 {
			t.Errorf("%s ended with status %d, want 1", args[0], status)
		}
		if said := sentences(p.output()); len(said) != 1 || !strings.Contains(said[0], "checksum mismatch") {
			t.Errorf("%s said:\n%s", args[0], strings.Join(said, "\n"))
		}
	}
}

// TestLogReaderGone closes the pipe that a member's log goes to: the member serves on and stops in good order.
func TestLogReaderGone(t *testing.T) {
	m := newCluster(t, 1).members[0]
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	cmd := exec.Command(trivet(t), m.args...)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = attributes()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	for answers := false; !answers; time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			t.Fatalf("the member ended when nobody read its log: %v", err)
		default:
			_, err := m.status()
			answers = err == nil
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("told to stop, the member ended with %v", err)
	}
}

// again makes the member another start of the one given, on a copy of its data.
func (m *member) again(t *testing.T, of *member) {
	t.Helper()
	copyDir(t, of.dir, m.dir)
	m.args = append([]string(nil), of.args...)
	m.set("--data-dir", m.dir)
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
	// The folders of a data directory are its owner's alone, which CopyFS does not keep.
	if err := filepath.WalkDir(to, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		return os.Chmod(name, 0o700)
	}); err != nil {
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
