package cli

import (
	"encoding/json"
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
			r, err := outputWithSlack(cmd, c.given)
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
func outputWithSlack(cmd *exec.Cmd, slack time.Duration) (r relaxed, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return r, err
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0); err != nil {
		return r, err
	}
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(before), 0, 0, 0)
	return r, err
}
