package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// devReadyTimeout is how long command dev waits for its members before it gives up.
const devReadyTimeout = 30 * time.Second

func (t terminal) devCommand() *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use:   "dev [-- FLAG...]",
		Short: "Run a cluster on this machine, for trying things out",
		Long: `Run a cluster on this machine, for trying things out: real members, each a process of its own, listening on
127.0.0.1 only. The data stays in the data directory between runs, and so do the ports. At a terminal it
takes commands: members can be killed, stopped and started. What stands after -- goes to every member
as flags of trivet server.`,
		RunE: func(_ *cobra.Command, args []string) error {
			o.memberFlags = args
			return t.dev(o)
		},
	}
	cmd.Flags().StringVar(&o.dataDir, "data-dir", "trivet-data", "directory for the members' data and logs")
	cmd.Flags().BoolVar(&o.fresh, "fresh", false, "begin with an empty cluster; what the directory held is deleted")
	cmd.Flags().Var((*clusterSize)(&o.nodes), "nodes", "members: 1, 3, 5 or 7 (default: as many as the directory has, or 3)")
	cmd.Flags().BoolVar(&o.json, "json", false, "print the table of members as one JSON object")
	return cmd
}

type devOptions struct {
	dataDir     string
	fresh       bool
	nodes       int
	json        bool
	memberFlags []string
}

// dev runs the cluster until it is told to stop.
func (t terminal) dev(o devOptions) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // the last when the terminal is closed
	defer signal.Stop(signals)
	surviveClosedPipe()

	began := time.Now()
	if err := checkMemberFlags(o.memberFlags); err != nil {
		return err
	}
	dir, err := openDevDir(o.dataDir, o.fresh, o.nodes)
	if err != nil {
		return err
	}
	defer dir.close()
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's own file, to start members from: %w", err)
	}
	say := t.out
	if o.json {
		say = t.err // standard output holds the object and nothing else
	}
	d := &devCluster{
		say: say, self: t.selfCommand(), dir: dir, interactive: !o.json && isatty.IsTerminal(t.in.Fd()),
		exits: make(chan devExit, len(dir.plan.Members)), ready: make(chan devReady, len(dir.plan.Members)),
		starter: newStarter(),
	}
	defer d.starter.close()
	for i := range dir.plan.Members {
		d.members = append(d.members, newDevMember(dir, i, executable, o.memberFlags))
	}
	defer d.closeClients()
	if err := d.startAll(signals); err != nil {
		return err
	}
	if o.json {
		err = d.printJSON(t.out)
	} else {
		d.printIntro(time.Since(began))
	}
	if err != nil {
		d.stopAll(signals)
		return err
	}
	return d.loop(t.in, signals)
}

// selfCommand is how this program is called from the same place as it was now, so that what is printed can be pasted.
func (t terminal) selfCommand() string {
	if strings.Contains(t.name, "go-build") {
		if _, err := os.Stat("cmd/trivet/main.go"); err == nil {
			return "go run ./cmd/trivet"
		}
	}
	if strings.ContainsAny(t.name, " '\"$\\") {
		return "'" + strings.ReplaceAll(t.name, "'", `'\''`) + "'"
	}
	return t.name
}

// startAll starts every member and waits until each of them answers reads. On an error nothing is left running.
func (d *devCluster) startAll(signals <-chan os.Signal) error {
	for _, m := range d.members {
		if err := d.start(m); err != nil {
			d.stopAll(signals)
			return err
		}
	}
	timeout := time.NewTimer(devReadyTimeout)
	defer timeout.Stop()
	for waiting := len(d.members); waiting > 0; {
		var err error
		select {
		case r := <-d.ready:
			if r.err == nil {
				waiting--
				r.member.isReady = true
			}
		case e := <-d.exits:
			d.exited(e)
			err = fmt.Errorf("%s ended while it started: %s", e.member.name, e.why())
		case <-signals:
			err = fmt.Errorf("stopped before the members were ready")
		case <-timeout.C:
			err = fmt.Errorf("the members were not ready within %s; their logs are in %s", devReadyTimeout, d.dir.path)
		}
		if err != nil {
			d.stopAll(signals)
			return err
		}
	}
	return nil
}

func (d *devCluster) printIntro(took time.Duration) {
	n := fmt.Sprintf("%d members", len(d.members))
	if len(d.members) == 1 {
		n = "1 member"
	}
	first := d.members[0].clientURL
	fmt.Fprintf(d.say, "Trivet: %s on this machine, ready after %.2f s; data and logs are in %s\n\n", n, took.Seconds(), d.dir.path)
	d.printTable(d.say)
	fmt.Fprintf(d.say, `
export ETCDCTL_ENDPOINTS=%[1]s

Try, in another terminal:
  %[2]s ctl --endpoints=%[1]s put mykey "myvalue"
  %[2]s ctl --endpoints=%[1]s get mykey
  %[2]s ctl --endpoints=%[1]s endpoint status -w table
  curl %[3]s/v3/kv/put -X POST -d '{"key":"Zm9v","value":"YmFy"}'
  curl %[3]s/v3/kv/range -X POST -d '{"key":"Zm9v"}'

`, d.endpoints(), d.self, first)
	if d.interactive {
		fmt.Fprintln(d.say, "Commands: kill N, stop N, start N, status, load N, help, quit. Ctrl-C stops everything.")
	} else {
		fmt.Fprintln(d.say, "Ctrl-C stops everything.")
	}
}

// row is one line of the table of members.
type row struct {
	Name      string `json:"name"`
	ID        string `json:"id,omitempty"` // hexadecimal, as etcdctl shows it
	ClientURL string `json:"client_url"`
	PeerURL   string `json:"peer_url"`
	PID       int    `json:"pid,omitempty"` // 0: not running
	Role      string `json:"role"`          // leader, follower, no leader, stopped, not answering; running: authentication is on, so it does not say more
	DataDir   string `json:"data_dir"`
	Log       string `json:"log"`
}

// table asks all members at once who they are.
func (d *devCluster) table() []row {
	rows := make([]row, len(d.members))
	done := make(chan int, len(d.members))
	for i, m := range d.members {
		rows[i] = row{Name: m.name, ClientURL: m.clientURL, PeerURL: m.peerURL, DataDir: m.dataDir, Log: m.logPath, Role: "stopped"}
		if !m.running() {
			done <- i
			continue
		}
		rows[i].PID, rows[i].Role = m.cmd.Process.Pid, "not answering"
		go func() { // ends with the timeout at the latest
			defer func() { done <- i }()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			s, err := m.client.Status(ctx, m.clientURL)
			if errors.Is(err, rpctypes.ErrUserEmpty) {
				rows[i].Role = "running"
			}
			if err != nil {
				return
			}
			rows[i].ID = fmt.Sprintf("%x", s.Header.MemberId)
			switch s.Leader {
			case 0:
				rows[i].Role = "no leader"
			case s.Header.MemberId:
				rows[i].Role = "leader"
			default:
				rows[i].Role = "follower"
			}
		}()
	}
	for range d.members {
		<-done
	}
	return rows
}

func (d *devCluster) printTable(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "#\tNAME\tCLIENT URL\tPEER URL\tPID\tROLE")
	for i, r := range d.table() {
		pid := "-"
		if r.PID != 0 {
			pid = fmt.Sprint(r.PID)
		}
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%s\t%s\n", i+1, r.Name, r.ClientURL, r.PeerURL, pid, r.Role)
	}
	tw.Flush()
}

func (d *devCluster) printJSON(w io.Writer) error {
	return json.NewEncoder(w).Encode(struct {
		DataDir   string `json:"data_dir"`
		Endpoints string `json:"endpoints"`
		Members   []row  `json:"members"`
	}{d.dir.path, d.endpoints(), d.table()})
}

// endpoints is the value of ETCDCTL_ENDPOINTS.
func (d *devCluster) endpoints() string {
	urls := make([]string, len(d.members))
	for i, m := range d.members {
		urls[i] = m.clientURL
	}
	return strings.Join(urls, ",")
}
