package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// relaxed is what TestRelaxTimers is told by a process that has called relaxTimers.
type relaxed struct {
	PID   int
	Args  []string
	Name  string          // what the kernel calls the process
	Slack []time.Duration // of some threads
	Death int32           // the signal that it gets when its parent dies
	Mark  string
}

func init() { programs["relaxed"] = tellRelaxed }

func tellRelaxed() {
	runtime.LockOSThread() // stay on the first thread
	relaxTimers()
	name, _ := os.ReadFile("/proc/self/comm")
	r := relaxed{PID: os.Getpid(), Args: os.Args, Name: string(name), Mark: os.Getenv(relaxedMark)}
	_ = unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&r.Death)), 0, 0, 0)
	for range 3 {
		slack := make(chan int)
		go func() {
			runtime.LockOSThread() // and leave with it
			n, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
			slack <- n
		}()
		r.Slack = append(r.Slack, time.Duration(<-slack))
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
}

// A process begins anew with the slack: the same one to whoever started it, under the same name; once; and not against a choice.
func TestRelaxTimers(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	link := filepath.Join(folder, "relaxed")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	const usual = 50 * time.Microsecond
	for name, c := range map[string]struct {
		path        string
		given, want time.Duration
		env         []string
		named       string
	}{
		"usual":           {link, usual, timerSlack, []string{"PATH=" + folder}, "relaxed"},
		"chosen":          {link, 70 * time.Microsecond, 70 * time.Microsecond, []string{"PATH=" + folder}, "relaxed"},
		"begun anew":      {link, usual, usual, []string{"PATH=" + folder, relaxedMark + "=x"}, "relaxed"},
		"not to be found": {link, usual, timerSlack, []string{"PATH="}, filepath.Base(self)},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(c.path)
			cmd.Args = []string{"relaxed", "a b", "", "--c=$d"}
			cmd.Env = append(os.Environ(), c.env...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGUSR1}
			var r relaxed
			out, err := outputWithSlack(cmd, c.given)
			if err == nil {
				err = json.Unmarshal(out, &r)
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.PID != cmd.Process.Pid || !slices.Equal(r.Args, cmd.Args) || strings.TrimSpace(r.Name) != c.named || slices.ContainsFunc(r.Slack, func(s time.Duration) bool { return s != c.want }) {
				t.Errorf("process %d %q became %+v, want a slack of %v", cmd.Process.Pid, cmd.Args, r, c.want)
			}
			if r.Death != int32(syscall.SIGUSR1) {
				t.Errorf("the death of its parent is signal %d to it", r.Death)
			}
			if c.want == timerSlack && r.Mark != timerSlack.String() {
				t.Errorf("it is marked %q", r.Mark)
			}
		})
	}
}

// outputWithSlack starts cmd from a thread with a slack, which it inherits.
func outputWithSlack(cmd *exec.Cmd, slack time.Duration) ([]byte, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0); err != nil {
		return nil, err
	}
	out, err := cmd.Output()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(before), 0, 0, 0)
	return out, err
}

// What a member is given can be read once: it begins anew before it reads its configuration.
func TestConfigurationFromPipe(t *testing.T) {
	path, err := exec.LookPath("trivet") // this very program; see TestMain
	if err != nil {
		t.Fatal(err)
	}
	port, l := freePort(t)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "server", "--config-file=/dev/stdin")
	cmd.Dir = t.TempDir()
	taken := fmt.Sprintf("http://127.0.0.1:%d", port)
	cmd.Stdin = strings.NewReader(fmt.Sprintf("listen-client-urls: %s\nadvertise-client-urls: %[1]s\nlisten-peer-urls: http://127.0.0.1:0\n", taken))
	var said strings.Builder
	cmd.Stderr = &said
	_, err = outputWithSlack(cmd, 50*time.Microsecond)
	if ctx.Err() != nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(said.String(), taken) {
		t.Errorf("%v; it said:\n%s\nwant that %s is taken", err, said.String(), taken)
	}
}
