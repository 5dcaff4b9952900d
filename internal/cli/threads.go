package cli

import (
	"os"
	"runtime"
)

// backgroundThreads is how many goroutines of a member compute for long at a time: the state engine's two compactions.
const backgroundThreads = 2

// moreThreads lets Go run more goroutines at once than there are processors, by as many as work in the background. Otherwise
// these hold all the places on a small machine, and what a write waits for gets one when Go's scheduler takes it from them, after 10 ms
// and more each time; the operating system lets a thread that slept go first (decision 14).
//
// Where GOMAXPROCS is set it stands. Where a control group allows fewer processors than there are, more threads would use
// that up sooner and then all stand still, so nothing is changed.
func moreThreads() {
	if n := runtime.GOMAXPROCS(0); os.Getenv("GOMAXPROCS") == "" && n == runtime.NumCPU() {
		runtime.GOMAXPROCS(n + backgroundThreads)
	}
}
