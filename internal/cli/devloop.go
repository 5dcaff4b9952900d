package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// devStopTimeout is how long members may take to stop before they are killed.
const devStopTimeout = 15 * time.Second

// devCluster is the cluster of command dev. One goroutine, that of loop, owns all of it; others only send on exits and
// ready, whose room is one message a member, and wait there for the loop.
type devCluster struct {
	say         io.Writer
	self        string // how to call this program
	dir         *devDir
	members     []*devMember
	interactive bool
	starter     *starter
	load        *devLoad // nil: none

	exits chan devExit
	ready chan devReady
	waits sync.WaitGroup
}

// loop serves commands and reports what happens to members, until it is told to quit or by a signal to stop.
func (d *devCluster) loop(in io.Reader, signals <-chan os.Signal) error {
	var lines chan string
	if d.interactive {
		lines = make(chan string)
		go readLines(in, lines) // ends with the input or the process
		d.prompt()
	}
	for {
		select {
		case <-signals:
			fmt.Fprintln(d.say)
			return d.quit(signals)
		case line, ok := <-lines:
			if !ok {
				return d.quit(signals)
			}
			if quit := d.command(strings.Fields(line)); quit {
				return d.quit(signals)
			}
			d.prompt()
		case r := <-d.ready:
			if r.err == nil {
				r.member.isReady = true
				d.report("%s is ready again, %.2f s after its start", r.member.name, r.took.Seconds())
			}
		case e := <-d.exits:
			if !e.member.leaving {
				d.report("%s (process %d) died: %s", e.member.name, e.cmd.Process.Pid, e.why())
				if d.interactive {
					d.report("start %s starts it again", strings.TrimPrefix(e.member.name, "m"))
				}
			} else {
				d.report("%s has ended: %s", e.member.name, e.how())
			}
			d.exited(e)
		}
	}
}

func readLines(in io.Reader, lines chan<- string) {
	defer close(lines)
	s := bufio.NewScanner(in)
	for s.Scan() {
		lines <- s.Text()
	}
}

func (d *devCluster) prompt() {
	if d.interactive {
		fmt.Fprint(d.say, "> ")
	}
}

// report says something that nobody asked for, on a line of its own.
func (d *devCluster) report(format string, args ...any) {
	if d.interactive {
		fmt.Fprint(d.say, "\r")
	}
	fmt.Fprintf(d.say, format+"\n", args...)
	d.prompt()
}

const devHelp = `kill N    kill member N at once, as a crash would
stop N    stop member N in good order
start N   start member N again
status    show the members, and the load if there is one
load N    write N keys a second until told otherwise; load 0 ends it
quit      stop all members and leave; so does Ctrl-C`

// command does what a line at the prompt says.
func (d *devCluster) command(words []string) (quit bool) {
	if len(words) == 0 {
		return false
	}
	switch words[0] {
	case "quit", "exit", "q":
		return true
	case "help", "?":
		fmt.Fprintln(d.say, devHelp)
	case "status":
		d.printTable(d.say)
		if d.load != nil {
			fmt.Fprintln(d.say, d.load.summary())
		}
	case "kill", "stop", "start":
		if err := d.memberCommand(words); err != nil {
			fmt.Fprintln(d.say, err)
		}
	case "load":
		if err := d.loadCommand(words[1:]); err != nil {
			fmt.Fprintln(d.say, err)
		}
	default:
		fmt.Fprintf(d.say, "%q is not a command; help lists them\n", words[0])
	}
	return false
}

func (d *devCluster) memberCommand(words []string) error {
	n := 0
	if len(words) == 2 {
		n, _ = strconv.Atoi(strings.TrimPrefix(words[1], "m"))
	}
	if n < 1 || n > len(d.members) {
		return fmt.Errorf("%s which member? Write %s N with a number from 1 to %d", words[0], words[0], len(d.members))
	}
	m := d.members[n-1]
	switch {
	case words[0] == "start" && m.running() && m.leaving:
		return fmt.Errorf("%s is still ending; try again when it has", m.name)
	case words[0] == "start" && m.running():
		return fmt.Errorf("%s is running", m.name)
	case words[0] == "start":
		return d.start(m)
	case !m.running():
		return fmt.Errorf("%s is not running; start %d starts it", m.name, n)
	}
	m.leaving = true
	if words[0] == "kill" {
		return m.cmd.Process.Kill()
	}
	return m.cmd.Process.Signal(syscall.SIGTERM)
}

func (d *devCluster) loadCommand(words []string) error {
	n := -1
	if len(words) == 1 {
		n, _ = strconv.Atoi(words[0])
	}
	if n < 0 || n > maxDevLoad || len(words) != 1 || n == 0 && words[0] != "0" {
		return fmt.Errorf("how many writes a second? Write load N with a number from 0 to %d", maxDevLoad)
	}
	if d.load != nil {
		d.load.stop()
		d.load = nil
	}
	if n > 0 {
		var err error
		d.load, err = startDevLoad(strings.Split(d.endpoints(), ","), n)
		return err
	}
	return nil
}

// quit stops all members and reports how it went.
func (d *devCluster) quit(signals <-chan os.Signal) error {
	fmt.Fprintln(d.say, "stopping all members")
	if left := d.stopAll(signals); left > 0 {
		return fmt.Errorf("%d members did not stop in good order and were killed; their data is safe", left)
	}
	fmt.Fprintf(d.say, "stopped; the data stays in %s for the next run\n", d.dir.path)
	return nil
}

// stopAll stops every member that runs and waits for it; those that take too long, or all at a second signal, are killed.
// It returns how many were.
func (d *devCluster) stopAll(signals <-chan os.Signal) (killed int) {
	began := time.Now()
	if d.load != nil {
		d.load.stop()
		d.load = nil
	}
	for _, m := range d.members {
		if m.running() {
			m.leaving = true
			m.stopWait()
			m.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	timeout := time.NewTimer(devStopTimeout)
	defer timeout.Stop()
	killRest := func() {
		for _, m := range d.members {
			if m.running() {
				killed++
				m.cmd.Process.Kill()
			}
		}
	}
	for d.anyRunning() {
		select {
		case e := <-d.exits:
			d.exited(e)
		case <-d.ready:
		case <-timeout.C:
			killRest()
		case s := <-signals:
			if isImpatience(s, began) {
				killRest()
			}
		}
	}
	return killed
}

func (d *devCluster) anyRunning() bool {
	for _, m := range d.members {
		if m.running() {
			return true
		}
	}
	return false
}

// closeClients ends what is left after the members are gone.
func (d *devCluster) closeClients() {
	for _, m := range d.members {
		if m.stopWait != nil {
			m.stopWait()
		}
		if m.client != nil {
			m.client.Close()
		}
	}
	go func() { // ends with the last of the goroutines that it drains
		d.waits.Wait()
		close(d.ready)
	}()
	for range d.ready {
	}
}
