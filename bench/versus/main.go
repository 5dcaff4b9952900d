// Command versus measures Trivet beside etcd. It builds both, starts each as three members on this machine with the same
// flags, drives the same load from one generator, in rounds that alternate between them, and prints for each workload
// the medians over the rounds and their ratio. docs/performance.md says what is measured, how, and what came out.
//
//	go run ./bench/versus                                 everything
//	go run ./bench/versus --only 'put 256' --rounds 5     some workloads
//	go run ./bench/versus --trivet-only                   Trivet alone
//	go run ./bench/versus --against '/tmp/old server'     another binary in the place of etcd, an older Trivet say
//
// It measures from outside: it knows nothing of what is inside of either, and no workload treats them differently.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	only         *regexp.Regexp
	rounds       int
	duration     time.Duration
	keys         int
	json         string
	profile      string
	trivetOnly   bool
	trivet, etcd string
	name         string // what the other one is called in the table
	list         bool
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "versus:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "versus:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("versus", flag.ContinueOnError)
	only := f.String("only", "", "measure the workloads whose name matches this regular expression")
	f.IntVar(&o.rounds, "rounds", 3, "how many times each workload is measured on each system")
	f.DurationVar(&o.duration, "duration", 3*time.Second, "how long one measurement takes")
	f.IntVar(&o.keys, "keys", 1_000_000, "keys of the large store")
	f.StringVar(&o.json, "json", "", "write every round's figures to this file")
	f.StringVar(&o.profile, "profile", "", "write CPU profiles of all members to this folder, from one more round that does not count")
	f.BoolVar(&o.trivetOnly, "trivet-only", false, "leave etcd out")
	f.StringVar(&o.trivet, "trivet", "", "binary and leading arguments of a member of Trivet; built from here if empty")
	f.StringVar(&o.etcd, "against", "", "binary and leading arguments of a member of the other system; etcd, built from its module, if empty")
	f.BoolVar(&o.list, "list", false, "print the names of the workloads")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%q: not a flag", f.Arg(0))
	}
	if o.rounds < 1 || o.duration <= 0 || o.keys < 1000 {
		return o, fmt.Errorf("--rounds and --duration must be positive, --keys at least 1000")
	}
	o.name = "etcd"
	if command := strings.Fields(o.etcd); len(command) > 0 {
		if o.name = filepath.Base(command[0]); o.name == "trivet" {
			o.name = "other"
		}
	}
	var err error
	o.only, err = regexp.Compile(*only)
	return o, err
}

func run(ctx context.Context, o options, out io.Writer) error {
	var chosen []workload
	for _, w := range workloads() {
		if o.only.MatchString(w.name) {
			chosen = append(chosen, w)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no workload matches %q; --list names them", o.only)
	}
	if o.list {
		for _, w := range chosen {
			fmt.Fprintln(out, w.name)
		}
		return nil
	}
	dir, err := os.MkdirTemp("", "versus-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	systems, err := build(ctx, o, dir)
	if err != nil {
		return err
	}
	r := newReport(o, systems)
	r.head(out)
	var failed []error // one workload that fails does not cost the figures of the others
	for _, w := range chosen {
		one, err := measure(ctx, o, w, systems, dir)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", w.name, err)
			fmt.Fprintln(out, err)
			failed = append(failed, err)
			continue
		}
		r.add(out, one)
		if err := r.save(o.json); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// slug makes a file name of a workload's name.
func slug(name string) string {
	return strings.Trim(notWord.ReplaceAllString(strings.ToLower(name), "-"), "-")
}

var notWord = regexp.MustCompile(`[^a-z0-9]+`)
