package front

import "sync"

// maxIdle is how many goroutines wait for calls at most. Those that worked last are taken first: with a few calls at a time
// it is the same few, whose stacks are warm and have grown to the store and back.
const maxIdle = 512

// workers run calls.
type workers struct {
	run func(*call)

	mu    sync.Mutex
	idle  []chan *call // of the goroutines that wait, who worked last at the end
	ended bool
}

// do has a call run, by a goroutine that waits or by a new one.
func (w *workers) do(k *call) {
	w.mu.Lock()
	n := len(w.idle)
	if n == 0 {
		w.mu.Unlock()
		go w.work(k)
		return
	}
	next := w.idle[n-1]
	w.idle = w.idle[:n-1]
	w.mu.Unlock()
	next <- k // there is room: one call is given for each time it waits
}

func (w *workers) work(k *call) {
	next := make(chan *call, 1)
	for k != nil {
		w.run(k)
		w.mu.Lock()
		if w.ended || len(w.idle) == maxIdle {
			w.mu.Unlock()
			return
		}
		w.idle = append(w.idle, next)
		w.mu.Unlock()
		k = <-next
	}
}

// end ends the goroutines that wait, and those that work when they have done so.
func (w *workers) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for _, next := range w.idle {
		close(next)
	}
	w.idle = nil
}
