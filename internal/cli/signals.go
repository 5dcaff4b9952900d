package cli

import (
	"os"
	"os/signal"
	"syscall"
	"time"
)

// sameSignal is how long after a signal another one is taken for the same. A supervisor that signals a process and its
// group (timeout does), or a terminal that is closed while its input ends, sends two at once and means one.
const sameSignal = time.Second

// isImpatience reports whether a signal that came while stopping, which began at the time given, asks to end at once.
func isImpatience(s os.Signal, began time.Time) bool {
	return s != syscall.SIGHUP && time.Since(began) >= sameSignal
}

// surviveClosedPipe makes a write to standard output or standard error fail, instead of end the process, when the reader
// at the other end of the pipe is gone: neither a member nor a cluster should die because nobody reads its messages.
func surviveClosedPipe() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }
