package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"

	"github.com/trivet-kv/trivet/internal/config"
	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/server"
)

func (t terminal) serverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:                "server [flags]",
		Short:              "Run one member of a cluster, with etcd's flags",
		DisableFlagParsing: true, // etcd's flags follow Go's rules, not cobra's
		RunE:               func(_ *cobra.Command, args []string) error { return t.server(args) },
	}
	cmd.SetHelpFunc(func(*cobra.Command, []string) { t.serverHelp() })
	return cmd
}

func (t terminal) serverHelp() {
	fmt.Fprintln(t.out, "Run one member of a cluster. The flags, their variables and the configuration file are those of etcd 3.7.\n\nUsage:\n  trivet server [flags]")
	config.WriteHelp(t.out)
}

// server runs a member until a signal ends it or it fails.
func (t terminal) server(args []string) error {
	relaxTimers() // before anything is read: a pipe can be read once
	c, err := config.Load(args, os.Environ(), os.ReadFile)
	switch {
	case errors.Is(err, config.ErrHelp):
		t.serverHelp()
		return nil
	case errors.Is(err, config.ErrVersion):
		writeEtcdVersion(t.out)
		return nil
	case err != nil:
		return err
	}
	log, closeLog, err := openLog(c, t.out, t.err)
	if err != nil {
		return err
	}
	defer closeLog()
	note := func(err error) {
		log.Log(context.Background(), config.LevelFatal, "the member cannot go on", "error", err)
	}
	fatal := func(err error) {
		note(err)
		fmt.Fprintf(t.err, "trivet: %s\n", sentence(err))
		os.Exit(1)
	}
	err = serve(c, log, fatal)
	if errors.Is(err, server.ErrRemoved) {
		// As etcd's, it ends with status 0: nothing is gained by starting it again.
		note(err)
		fmt.Fprintf(t.err, "trivet: %s\n", sentence(err))
		return nil
	}
	if err != nil {
		note(err)
		return err
	}
	return nil
}

// serve runs the member. It returns nil once a signal has ended it in good order. fatal ends the process when a part of
// the member can neither go on nor return.
func serve(c *config.Config, log *slog.Logger, fatal func(error)) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	boundGarbage()
	surviveClosedPipe()

	// The libraries of gRPC write lines of their own form to stderr about what clients do wrong; the answer says it too.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))

	logStarting(log, c)
	logNotes(log, c)
	if err := checkFounding(c, log); err != nil {
		return err
	}
	n, err := startUntilSignal(signals, c, log, fatal)
	if n == nil {
		return err
	}
	var rebuilt time.Time
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go n.waitReady(ctx, ready)
	for {
		select {
		case <-ready:
			ready = nil
			logReady(log, c, n.doors, n.member.Header().MemberID)
			notifySystemd(log, daemon.SdNotifyReady)
		case s := <-signals:
			log.Info(msgSignal, "signal", s.String())
			notifySystemd(log, daemon.SdNotifyStopping)
			cancel()
			stopOnSecond(signals, log)
			return n.stop()
		case err := <-n.failed:
			if errors.Is(err, server.ErrRebuild) && time.Since(rebuilt) > steady {
				log.Error("the member is started again, to rebuild itself", "error", err)
				if err := n.abort(); err != nil {
					cancel()
					return fmt.Errorf("stop the member before it is rebuilt: %w", err)
				}
				if n, err = startUntilSignal(signals, c, log, fatal); n == nil {
					cancel()
					return err
				}
				rebuilt, ready = time.Now(), make(chan struct{})
				go n.waitReady(ctx, ready)
				continue
			}
			// No clean stop: it would wait for the disk that failed. The others notice at once, and the next start recovers
			// as from a crash.
			cancel()
			return err
		}
	}
}

// startUntilSignal is startNode. A start that waits for other members is given up soon after a signal, as if the process had
// been killed; then both results are nil.
func startUntilSignal(signals chan os.Signal, c *config.Config, log *slog.Logger, fatal func(error)) (*node, error) {
	type started struct {
		n   *node
		err error
	}
	done := make(chan started, 1)
	go func() { // ends with the start, or the process
		n, err := startNode(c, log, fatal)
		done <- started{n, err}
	}()
	select {
	case r := <-done:
		return r.n, r.err
	case s := <-signals:
		select {
		case r := <-done:
			signals <- s // there is room for two
			return r.n, r.err
		case <-time.After(startGrace):
			log.Info(msgSignal, "signal", s.String(), "while", "starting")
			return nil, nil
		}
	}
}

// startGrace is how long a start may go on after a signal, to be ended in good order.
const startGrace = 2 * time.Second

// steady is how long a member that was started again in place, to rebuild itself, must have run to be started so once more.
// If that is needed again and again, the disk is bad, and whoever watches the process should see it end.
const steady = time.Minute

// stopOnSecond ends the process at once at another signal: whoever sends it does not want to wait.
func stopOnSecond(signals <-chan os.Signal, log *slog.Logger) {
	began := time.Now()
	go func() { // ends with the process
		s := <-signals
		for !isImpatience(s, began) {
			s = <-signals
		}
		log.Warn("received another signal; ending at once", "signal", s.String())
		os.Exit(1)
	}()
}

// checkFounding checks the settings that matter to a member that has no data yet; later they are not looked at.
// The founding members are found now, if they are to be discovered.
func checkFounding(c *config.Config, log *slog.Logger) error {
	if _, err := datadir.Look(vfs.Default, c.DataDir); err == nil || errors.Is(err, datadir.ErrEtcd) {
		return err
	}
	if err := discover(c, log); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return c.CheckBootstrap(ctx, net.DefaultResolver.LookupHost)
}

// notifySystemd tells systemd, if the member runs under it.
func notifySystemd(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("telling systemd failed", "state", state, "error", err)
	}
}
