package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/trivet-kv/trivet/bench/cluster"
)

// system is one of those that are compared: a name, and the command that starts a member.
type system struct {
	name    string
	command []string
}

// build makes the binaries in dir, from the source that this program was built from.
func build(ctx context.Context, o options, dir string) ([]system, error) {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	if err != nil || root == "." {
		return nil, fmt.Errorf("run it in Trivet's source (go env GOMOD: %q, %v)", mod, err)
	}
	make := func(given, in, pkg string, args ...string) ([]string, error) {
		if given != "" {
			return strings.Fields(given), nil
		}
		binary := filepath.Join(dir, filepath.Base(pkg))
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, pkg)
		cmd.Dir, cmd.Env = filepath.Join(root, in), append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
		return append([]string{binary}, args...), nil
	}
	trivet, err := make(o.trivet, ".", "./cmd/trivet", "server")
	if err != nil || o.trivetOnly {
		return []system{{"trivet", trivet}}, err
	}
	etcd, err := make(o.etcd, "bench/etcd", "../etcd")
	return []system{{"trivet", trivet}, {o.name, etcd}}, err
}

// flags are given to every member of both: room for all that the workloads write, and profiles on request.
var flags = []string{"--quota-backend-bytes=68719476736", "--enable-pprof"}

// bench is one system under one workload.
type bench struct {
	*cluster.Cluster
	system   string
	duration time.Duration   // of one measurement
	keys     int             // of the large store
	profiler *profiler       // nil: no profiles of this round
	leader   *cluster.Member // at the beginning of the round
}

// measured is a workload's figures: of each system, of each round.
type measured struct {
	workload workload
	rounds   map[string][][]figure
}

// measure starts a cluster of each system, prepares both, and measures them in turn. Only one of them runs at a time: the
// other's processes are stopped, so that its heartbeats and its work in the background cost the one that is measured
// nothing, and are counted where they belong: in its own rounds.
func measure(ctx context.Context, o options, w workload, systems []system, dir string) (measured, error) {
	m := measured{w, map[string][][]figure{}}
	benches := make([]*bench, len(systems))
	defer func() {
		for i, b := range benches {
			if b != nil {
				_ = b.Close()
				_ = os.RemoveAll(filepath.Join(dir, systems[i].name+"-data"))
			}
		}
	}()
	for i, s := range systems {
		c, err := cluster.Start(ctx, filepath.Join(dir, s.name+"-data"), 3, s.command, flags...)
		if err != nil {
			return m, err
		}
		b := &bench{Cluster: c, system: s.name, duration: o.duration, keys: o.keys}
		benches[i] = b
		if w.prepare != nil {
			if err := w.prepare(ctx, b); err != nil {
				return m, fmt.Errorf("%s: prepare: %w", s.name, err)
			}
		}
		if err := c.Pause(); err != nil {
			return m, err
		}
	}
	rounds := o.rounds
	if w.once {
		rounds = 1
	}
	profile := func(b *bench) { b.profiler = &profiler{dir: o.profile, name: slug(w.name) + "." + b.system, bench: b} }
	for round := range rounds {
		order := slices.Clone(benches)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, b := range order {
			if o.profile != "" && w.once {
				profile(b)
			}
			figures, err := b.round(ctx, w)
			if err != nil {
				return m, fmt.Errorf("%s: %w", b.system, err)
			}
			m.rounds[b.system] = append(m.rounds[b.system], figures)
		}
	}
	if o.profile == "" || w.once {
		return m, nil
	}
	for _, b := range benches {
		profile(b)
		if _, err := b.round(ctx, w); err != nil {
			return m, fmt.Errorf("%s: %w", b.system, err)
		}
	}
	return m, nil
}

// round measures one system once.
func (b *bench) round(ctx context.Context, w workload) ([]figure, error) {
	if err := b.Resume(ctx); err != nil {
		return nil, err
	}
	leader, err := b.Leader(ctx)
	if err != nil {
		return nil, err
	}
	b.leader = leader
	figures, err := w.measure(ctx, b)
	if err != nil {
		return nil, err
	}
	if b.profiler != nil {
		if err := b.profiler.wait(); err != nil {
			return nil, fmt.Errorf("profile: %w", err)
		}
	}
	return figures, b.Pause()
}

// measuring is called by a workload when its warm-up is over: from here on profiles are taken, if they are wanted.
func (b *bench) measuring(ctx context.Context) {
	if b.profiler != nil {
		b.profiler.start(ctx)
	}
}
