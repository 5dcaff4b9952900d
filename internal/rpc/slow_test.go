package rpc

import (
	"testing"
	"time"
)

// A disk that hangs for a while makes thousands of requests slow; the log gets a bounded number of lines and a count.
func TestTracesAreBounded(t *testing.T) {
	var l traceLimit
	now := time.Unix(1000, 0)
	lines := 0
	for range 3 * maxTraces {
		if _, ok := l.take(now); ok {
			lines++
		}
	}
	if lines != maxTraces {
		t.Errorf("%d lines in a second", lines)
	}
	if unsaid, ok := l.take(now.Add(time.Second)); !ok || unsaid != 2*maxTraces {
		t.Errorf("the next second begins with %v and says that %d were left out", ok, unsaid)
	}
	if unsaid, ok := l.take(now.Add(time.Second)); !ok || unsaid != 0 {
		t.Errorf("said twice: %v, %d", ok, unsaid)
	}
}
