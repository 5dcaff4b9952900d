package cli

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	maxDevLoad     = 20000 // writes a second
	devLoadWriters = 256   // writes under way at once; when all are, the load falls behind and says so
	devLoadKeys    = 1000  // keys written in turn
	maxDevSamples  = 1 << 16
)

// devLoad writes keys at a steady pace until it is stopped, and keeps count.
type devLoad struct {
	rate   int
	client *clientv3.Client
	cancel context.CancelFunc
	wait   sync.WaitGroup
	slots  chan struct{}

	mu      sync.Mutex
	since   time.Time       // of the counts below
	took    []time.Duration // of the last maxDevSamples writes
	done    int
	longest time.Duration
	failed  int
	skipped int // there was no free writer
}

func startDevLoad(endpoints []string, rate int) (*devLoad, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &devLoad{rate: rate, client: client, cancel: cancel, slots: make(chan struct{}, devLoadWriters), since: time.Now()}
	l.wait.Go(func() { l.run(ctx) })
	return l, nil
}

// run begins as many writes as are due every few milliseconds.
func (l *devLoad) run(ctx context.Context) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	began, written := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for due := int(time.Since(began).Seconds() * float64(l.rate)); written < due; written++ {
			select {
			case l.slots <- struct{}{}:
				n := written
				l.wait.Go(func() { l.put(ctx, n) })
			default:
				l.mu.Lock()
				l.skipped++
				l.mu.Unlock()
			}
		}
	}
}

func (l *devLoad) put(ctx context.Context, n int) {
	defer func() { <-l.slots }()
	began := time.Now()
	try, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := l.client.Put(try, fmt.Sprintf("load/%04d", n%devLoadKeys), fmt.Sprintf("write %d", n))
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed++
		return
	}
	took := time.Since(began)
	l.longest = max(l.longest, took)
	if len(l.took) < maxDevSamples {
		l.took = append(l.took, took)
	} else {
		l.took[l.done%maxDevSamples] = took
	}
	l.done++
}

// summary says what happened since the last summary.
func (l *devLoad) summary() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	span := time.Since(l.since)
	text := fmt.Sprintf("load: %d writes a second asked for, %.0f done", l.rate, float64(l.done)/span.Seconds())
	if n := len(l.took); n > 0 {
		slices.Sort(l.took)
		text += fmt.Sprintf(", median %s, 99 %% within %s, longest %s",
			l.took[n/2].Round(10*time.Microsecond), l.took[n*99/100].Round(10*time.Microsecond), l.longest.Round(10*time.Microsecond))
	}
	text += fmt.Sprintf(", %d failed, %d left out (over the last %.0f s)", l.failed, l.skipped, span.Seconds())
	l.since, l.took, l.done, l.longest, l.failed, l.skipped = time.Now(), l.took[:0], 0, 0, 0, 0
	return text
}

func (l *devLoad) stop() {
	l.cancel()
	l.wait.Wait()
	l.client.Close()
}
