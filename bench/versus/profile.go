package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/trivet-kv/trivet/bench/cluster"
)

// profiler takes a CPU profile of every member while a round is measured.
type profiler struct {
	dir, name string
	bench     *bench
	wg        sync.WaitGroup
	mu        sync.Mutex
	err       error
}

// start begins with the profiles.
func (p *profiler) start(ctx context.Context) {
	for _, m := range p.bench.Members {
		role := "follower"
		if m == p.bench.leader {
			role = "leader"
		}
		path := filepath.Join(p.dir, fmt.Sprintf("%s.%s.%s.pprof", p.name, role, m.Name))
		p.wg.Go(func() {
			if err := p.fetch(ctx, m, path); err != nil {
				p.mu.Lock()
				p.err = err
				p.mu.Unlock()
			}
		})
	}
}

func (p *profiler) fetch(ctx context.Context, m *cluster.Member, path string) error {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", m.Client, max(1, int(math.Floor(p.bench.duration.Seconds()))))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, answer.Status, b)
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// wait waits until all profiles are there. Members must not be paused before.
func (p *profiler) wait() error {
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
