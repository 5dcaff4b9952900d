package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestExamples runs the programs under examples/ as their readers would, against three members, with what each of them
// is about: instances that die, history that is compacted, a holder that sleeps, a leader that is killed, a worker that
// is killed.
func TestExamples(t *testing.T) {
	c := startCluster(t, 3)
	run := func(t *testing.T, name, label string, args ...string) *process {
		t.Helper()
		args = append([]string{"--endpoints", strings.Join(c.endpoints(), ",")}, args...)
		return spawn(t, name+" "+label, nil, filepath.Join(built(t), name), args...)
	}
	t.Run("discovery", func(t *testing.T) { exampleDiscovery(t, run) })
	t.Run("config", func(t *testing.T) { exampleConfig(t, c, run) })
	t.Run("lock", func(t *testing.T) { exampleLock(t, run) })
	t.Run("queue", func(t *testing.T) { exampleQueue(t, run) })
	t.Run("election", func(t *testing.T) { exampleElection(t, c, run) })
}

type runner func(t *testing.T, name, label string, args ...string) *process

const soon = 10 * time.Second // for what happens at once

func exits(t *testing.T, p *process, want int) {
	t.Helper()
	if got := p.wait(soon); got != want {
		t.Fatalf("%s ended with status %d, want %d:\n%s", p.name, got, want, tail(p.output(), 20))
	}
}

func interrupted(t *testing.T, p *process) {
	t.Helper()
	if got := p.stop(soon); got != 0 {
		t.Fatalf("%s ended with status %d after SIGTERM, want 0:\n%s", p.name, got, tail(p.output(), 20))
	}
}

func exampleDiscovery(t *testing.T, run runner) {
	first := run(t, "discovery", "web-1", "--id", "web-1", "--register", "10.0.0.1:80", "--ttl", "2")
	first.expect(soon, 0, "registered web-1")
	watcher := run(t, "discovery", "watcher")
	_, at := watcher.expect(soon, 0, "+ web-1 10.0.0.1:80") // from the list
	second := run(t, "discovery", "web-2", "--id", "web-2", "--register", "10.0.0.2:80", "--ttl", "2")
	_, at = watcher.expect(soon, at, "+ web-2 10.0.0.2:80") // from the watch
	first.kill()
	_, at = watcher.expect(soon, at, "- web-1 10.0.0.1:80") // its lease ran out
	interrupted(t, second)
	watcher.expect(soon, at, "- web-2 10.0.0.2:80") // it took its leave
	interrupted(t, watcher)
}

func exampleConfig(t *testing.T, c *cluster, run runner) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := c.client()
	put := func(key, value string) {
		t.Helper()
		if _, err := client.Put(ctx, key, value); err != nil {
			t.Fatal(err)
		}
	}
	cache := filepath.Join(t.TempDir(), "app.json")
	put("app/colour", "red")
	put("app/size", "1")

	p := run(t, "config", "first run", "--cache", cache)
	_, at := p.expect(soon, 0, "set colour=red")
	_, at = p.expect(soon, at, "set size=1")
	put("app/colour", "blue")
	p.expect(soon, at, "set colour=blue")
	interrupted(t, p)

	// Nothing compacted: the second run asks for what it missed.
	put("app/colour", "green")
	p = run(t, "config", "second run", "--cache", cache)
	p.expect(soon, 0, "with 2 settings")
	p.expect(soon, 0, "set colour=green")
	if out := strings.Join(p.output(), "\n"); strings.Contains(out, "loaded") {
		t.Fatalf("the second run loaded everything although its history was there:\n%s", out)
	}
	interrupted(t, p)

	// Compacted: the third run loads anew and tells the difference.
	put("app/colour", "white")
	put("app/shape", "round")
	deleted, err := client.Delete(ctx, "app/size")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(ctx, deleted.Header.Revision); err != nil {
		t.Fatal(err)
	}
	p = run(t, "config", "third run", "--cache", cache)
	_, at = p.expect(soon, 0, "is compacted")
	_, at = p.expect(soon, at, "set colour=white")
	_, at = p.expect(soon, at, "set shape=round")
	_, at = p.expect(soon, at, "unset size")
	put("app/colour", "black")
	p.expect(soon, at, "set colour=black")
	interrupted(t, p)
}

func exampleLock(t *testing.T, run runner) {
	// A worker is paused while it holds the lock; its lease runs out, a second worker goes on; the first wakes up.
	first := run(t, "lock", "a", "--worker", "a", "--rounds", "1", "--hold", "500ms", "--ttl", "2")
	locked, _ := first.expect(soon, 0, "locked a")
	first.pause()
	second := run(t, "lock", "b", "--worker", "b", "--rounds", "2", "--hold", "10ms", "--ttl", "2")
	stale, fresh := number(t, locked), int64(0)
	_, at := 0, 0
	for range 2 {
		var wrote string
		wrote, at = second.expect(soon, at, "wrote b")
		if token := number(t, wrote); token <= stale || token <= fresh {
			t.Fatalf("token %d after %d and %d: tokens must grow", token, stale, fresh)
		} else {
			fresh = token
		}
	}
	exits(t, second, 0)
	first.resume()
	refused, _ := first.expect(soon, 0, "refused a")
	if !strings.Contains(refused, fmt.Sprintf("refused a %d newest %d", stale, fresh)) {
		t.Fatalf("%q, want token %d refused for %d", refused, stale, fresh)
	}
	exits(t, first, 0)
}

// number is the last word of the line, a number.
func number(t *testing.T, line string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(line[strings.LastIndexByte(line, ' ')+1:], 10, 64)
	if err != nil {
		t.Fatalf("no number at the end of %q", line)
	}
	return n
}

func exampleQueue(t *testing.T, run runner) {
	const messages = 6
	for i := range messages {
		exits(t, run(t, "queue", "send", "--send", fmt.Sprintf("message %d", i)), 0)
	}
	// The first worker dies while it handles the first message.
	first := run(t, "queue", "a", "--worker", "a", "--takes", "1h", "--ttl", "2")
	first.expect(soon, 0, "begin a message 0")
	first.kill()
	second := run(t, "queue", "b", "--worker", "b", "--drain", "--takes", "1ms", "--ttl", "2")
	third := run(t, "queue", "c", "--worker", "c", "--drain", "--takes", "1ms", "--ttl", "2")
	exits(t, second, 0)
	exits(t, third, 0)
	done := map[string]int{}
	for _, p := range []*process{second, third} {
		for _, line := range p.output() {
			if words := strings.SplitN(line, " ", 3); words[0] == "done" {
				done[words[2]]++
			}
		}
	}
	for i := range messages {
		if text := fmt.Sprintf("message %d", i); done[text] != 1 {
			t.Errorf("%q was finished %d times, want once: %v", text, done[text], done)
		}
	}
}

func exampleElection(t *testing.T, c *cluster, run runner) {
	a := run(t, "election", "a", "--candidate", "a", "--ttl", "3")
	first, _ := a.expect(soon, 0, "a leads term")
	b := run(t, "election", "b", "--candidate", "b", "--ttl", "3")
	b.expect(soon, 0, "b sees leader a")

	// The cluster's own leader dies: the elected candidate goes on leading.
	leader := c.leader()
	c.kill(leader)
	time.Sleep(4 * time.Second) // longer than the candidates' leases last without renewal
	if out := strings.Join(a.output(), "\n"); strings.Contains(out, "stops leading") {
		t.Fatalf("a lost its lease when a member of the cluster died:\n%s", out)
	}

	// The elected candidate dies: the other one takes over, under a later term.
	a.kill()
	second, _ := b.expect(soon, 0, "b leads term")
	if number(t, second) <= number(t, first) {
		t.Fatalf("terms must grow: %q then %q", first, second)
	}

	// It is told to end: it resigns, and the next one need not wait for a lease to run out.
	third := run(t, "election", "c", "--candidate", "c", "--ttl", "60")
	third.expect(soon, 0, "c sees leader b")
	interrupted(t, b)
	third.expect(soon, 0, "c leads term")
	interrupted(t, third)
	c.start(leader)
}
