package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// older is a commit whose binary is another one in much: it serves clients with grpc-go's server, keeps the rows of revisions in the tables of
// all others, and writes those in other pieces.
const older = "7a30c15f25f7e9979fcc83fa9c9d4c1d7b6d0cf7"

// buildOlder returns a binary of that commit, built from the history of this checkout.
func buildOlder(t *testing.T) string {
	t.Helper()
	run := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Dir = root()
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("git", "cat-file", "-e", older+"^{commit}"); err != nil {
		t.Skipf("the history of this checkout does not reach back to %s, whose binary would be upgraded (a whole clone's does): %v\n%s", older, err, out)
	}
	dir := t.TempDir()
	tree, source, binary := filepath.Join(dir, "older.tar"), filepath.Join(dir, "source"), filepath.Join(dir, "trivet")
	if err := os.Mkdir(source, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"git", "archive", "--format=tar", "--output", tree, older}, {"tar", "-x", "-f", tree, "-C", source}} {
		if out, err := run(args[0], args[1:]...); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "./cmd/trivet")
	cmd.Dir = source
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("the binary of %s cannot be built here, maybe for want of a module that it needs: %v\n%s", older, err, out)
	}
	return binary
}

// TestUpgrade replaces the binaries of three members, one after the other, by that of today, while clients that know all of them put, compare and
// put, read, watch and keep leases alive. No call fails, nothing is lost or done twice, and the watchers see every revision once;
// also after the members were killed, and started on what both binaries have written. There are no clients over HTTP/1: the older binary
// broke their connections off when it was stopped.
func TestUpgrade(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds an older binary")
	}
	t.Parallel()
	from := buildOlder(t)
	c := newCluster(t, 3)
	for _, m := range c.members {
		m.binary = from
	}
	c.start(c.members...)
	s := startSteadyOver(t, c, 2, false)
	for _, m := range c.members {
		s.meets(m)
	}
	leader := c.leader()
	for _, m := range append(c.others(leader), leader) {
		if status := m.p.stop(30 * time.Second); status != 0 {
			t.Errorf("%s ended with status %d:\n%s", m.name, status, tail(m.p.output(), 40))
		}
		s.note("%s has ended", m.name)
		m.binary = ""
		c.start(m)
		s.note("%s is upgraded", m.name)
		s.meets(m)
	}
	s.end()
	t.Log(s.summary())
	s.failures()
	s.verifyAll()
	revision := c.agree(patience)
	c.kill(c.members...)
	c.start(c.members...)
	s.verifyAll()
	if again := c.agree(patience); again < revision {
		t.Errorf("the store is at revision %d after it was at %d", again, revision)
	}
	s.reached(revision, patience)
}
