package engine

import (
	"os"
	"runtime"
	"syscall"
)

// behind is how much less the thread of a compaction weighs to the scheduler, in steps of nice(2): with 5 it has a third of
// the weight of a thread that answers requests. It is woken later than they are, and goes on beside them.
const behind = 5

// giveWay lets the rest of the calling goroutine run behind the process's other threads (docs/decisions/0014). It keeps its
// thread to itself, and the thread ends with it: nobody but root may make a thread faster again. Where a sandbox forbids
// the call, everything runs as before.
func giveWay() {
	if syscall.Gettid() == os.Getpid() {
		return // the first thread cannot end before the process
	}
	runtime.LockOSThread()
	const callingThread = 0
	if raw, err := syscall.Getpriority(syscall.PRIO_PROCESS, callingThread); err == nil {
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, callingThread, niceness(raw)+behind)
	}
}

// niceness is a thread's from what the kernel's call returns, 20 less it.
func niceness(raw int) int { return 20 - raw }
