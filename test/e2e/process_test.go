package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is one child process whose output lines a test can wait for.
type process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd

	mu    sync.Mutex
	lines []string      // of stdout and stderr together
	more  chan struct{} // closed and replaced when a line comes or the process ends

	done chan struct{} // closed when the process has ended and all its output is read
	err  error         // of Wait; read after done
}

// spawn starts a program with the test's environment and extra settings. It is killed when the test ends.
func spawn(t testing.TB, name string, env []string, program string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, cmd: exec.Command(program, args...), more: make(chan struct{}), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = attributes()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	w.Close()
	go p.read(r)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("output of %s:\n%s", name, tail(p.output(), 40))
		}
	})
	return p
}

func (p *process) read(r io.ReadCloser) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		p.mu.Lock()
		p.lines = append(p.lines, lines.Text())
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
	r.Close()
	p.err = p.cmd.Wait()
	close(p.done)
}

func (p *process) output() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

// expect waits until a line after the first skip lines holds every one of the words, and returns the line and the
// number of lines up to it.
func (p *process) expect(within time.Duration, skip int, words ...string) (line string, next int) {
	p.t.Helper()
	deadline := time.After(within)
	for i := skip; ; {
		p.mu.Lock()
		lines, more := p.lines, p.more
		p.mu.Unlock()
		for ; i < len(lines); i++ {
			if containsAll(lines[i], words) {
				return lines[i], i + 1
			}
		}
		select {
		case <-more:
		case <-p.done:
			if lines := p.output(); i < len(lines) {
				continue
			}
			p.t.Fatalf("%s ended (%v) without printing %q:\n%s", p.name, p.err, words, tail(p.output(), 40))
		case <-deadline:
			p.t.Fatalf("%s did not print %q within %v:\n%s", p.name, words, within, tail(p.output(), 40))
		}
	}
}

func containsAll(line string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(line, word) {
			return false
		}
	}
	return true
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("%s: %v: %v", p.name, s, err)
	}
}

func (p *process) pause() { p.signal(syscall.SIGSTOP) }

func (p *process) resume() { p.signal(syscall.SIGCONT) }

// kill ends the process and what it started with SIGKILL and waits for its end; one that has ended already is fine.
func (p *process) kill() {
	p.sendKill()
	<-p.done
}

func (p *process) sendKill() {
	select {
	case <-p.done: // its id may be somebody else's by now
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// wait returns the exit status; a process that does not end in time fails the test.
func (p *process) wait(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines say what it waits for
		select {
		case <-p.done:
		case <-time.After(2 * time.Second):
		}
		p.t.Fatalf("%s has not ended within %v:\n%s", p.name, within, tail(p.output(), 200))
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop sends SIGTERM and returns the exit status.
func (p *process) stop(within time.Duration) int {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	return p.wait(within)
}

func tail(lines []string, n int) string {
	if len(lines) > n {
		lines = append([]string{fmt.Sprintf("(%d lines before)", len(lines)-n)}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "\n")
}

var (
	buildOnce sync.Once
	buildDir  string
	buildErr  error
)

// root is the folder of the module.
func root() string {
	here, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return filepath.Join(here, "..", "..")
}

func build(packages ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-o", buildDir + string(filepath.Separator)}, packages...)...)
	cmd.Dir = root()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	return nil
}

// built returns the folder that holds the binaries trivet, spoil, discovery, config, lock, election and queue.
func built(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		if buildDir, buildErr = os.MkdirTemp("", "trivet-e2e-"); buildErr != nil {
			return
		}
		if buildErr = build("./examples/...", "./test/spoil"); buildErr != nil {
			return
		}
		trivet := filepath.Join(buildDir, "trivet")
		if given := os.Getenv("TRIVET_E2E_BINARY"); given != "" {
			buildErr = os.Symlink(given, trivet)
		} else {
			buildErr = build("./cmd/trivet")
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return buildDir
}

// trivet returns the path of the binary under test.
func trivet(t testing.TB) string {
	t.Helper()
	return filepath.Join(built(t), "trivet")
}

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "curl" {
		os.Exit(curl(os.Args[1:])) // see readme_test.go
	}
	if faults := os.Getenv(faultsVariable); faults != "" {
		os.Exit(runFaulty(faults)) // see faultydisk_test.go
	}
	status := m.Run()
	if buildDir != "" {
		_ = os.RemoveAll(buildDir)
	}
	os.Exit(status)
}
