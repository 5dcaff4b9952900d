package cli

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is by how much more than they asked for the kernel may let the threads of a member sleep, so that it wakes for several at
// once. While goroutines run, Go has a thread that looks after them every 20 µs, and Linux' usual slack of 50 µs makes that
// 14,000 times a second: a tenth of what a member did with its processor, and more (docs/decisions/0024). For timers Go waits in
// whole milliseconds in any case.
const timerSlack = time.Millisecond

// relaxedMark is in the environment of a process that has begun anew, lest it does so again and again where a sandbox forgets
// the slack.
const relaxedMark = "TRIVET_TIMER_SLACK"

// The main goroutine keeps to the first thread until relaxTimers returns. What a process was given for its first thread, like the
// signal for the death of its parent, is lost when another one begins anew.
func init() { runtime.LockOSThread() }

// relaxTimers gives all threads of this process timerSlack. Threads have the slack of the one that made them, and Go's begin before
// any line of ours: so the process begins anew, with the same id, arguments and environment. A slack that somebody chose
// stands. Where a sandbox refuses, everything goes on as it is, and costs more. It is for the main goroutine, once.
func relaxTimers() {
	const usual = 50 * time.Microsecond
	defer runtime.UnlockOSThread()
	if _, again := os.LookupEnv(relaxedMark); again || unix.Gettid() != os.Getpid() {
		return
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || time.Duration(n) != usual {
		return
	}
	program, err := calledAs(os.Args[0])
	if err == nil && unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) == nil {
		_ = syscall.Exec(program, os.Args, append(os.Environ(), relaxedMark+"="+timerSlack.String()))
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(usual), 0, 0, 0)
	}
}

// calledAs is the path of this program under the name it was called by, which tools show as the name of the process.
func calledAs(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if path, err := exec.LookPath(name); err == nil && sameFile(path, self) {
		return path, nil
	}
	return self, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
