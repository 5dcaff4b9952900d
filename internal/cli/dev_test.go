package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// devProcess is a running trivet dev --json.
type devProcess struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr string // file
	Table  struct {
		DataDir   string `json:"data_dir"`
		Endpoints string
		Members   []row
	}
}

// startDev starts trivet dev and waits for its table.
func startDev(t *testing.T, args ...string) *devProcess {
	t.Helper()
	if testing.Short() {
		t.Skip("starts several processes")
	}
	path, err := exec.LookPath("trivet") // this very program; see TestMain
	if err != nil {
		t.Fatal(err)
	}
	d := &devProcess{t: t, cmd: exec.Command(path, append([]string{"dev", "--json"}, args...)...), stderr: filepath.Join(t.TempDir(), "stderr")}
	stderr, err := os.Create(d.stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	d.cmd.Stderr = stderr
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.cmd.Process.Kill(); d.cmd.Wait() })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &d.Table)
	}
	if err != nil {
		t.Fatalf("no table: %v; it said: %s", err, d.said())
	}
	return d
}

func (d *devProcess) said() string {
	b, _ := os.ReadFile(d.stderr)
	return string(b)
}

// until waits for something to hold.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain: " + what)
		}
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func (d *devProcess) membersGone() bool {
	for _, m := range d.Table.Members {
		if alive(m.PID) {
			return false
		}
	}
	return true
}

func ctlRun(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("etcdctl")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("etcdctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A cluster of three processes keeps its data and its URLs from one run to the next, and ends without leaving anyone.
func TestDevKeepsData(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first := startDev(t, "--data-dir", dir)
	if len(first.Table.Members) != 3 || len(strings.Split(first.Table.Endpoints, ",")) != 3 {
		t.Fatalf("%+v", first.Table)
	}
	ctlRun(t, "--endpoints="+first.Table.Endpoints, "put", "k", "v")
	first.stop(syscall.SIGINT)

	second := startDev(t, "--data-dir", dir)
	if second.Table.Endpoints != first.Table.Endpoints {
		t.Errorf("endpoints were %s and are %s", first.Table.Endpoints, second.Table.Endpoints)
	}
	for i, m := range second.Table.Members {
		if m.ID == "" || m.ID != first.Table.Members[i].ID || m.PeerURL != first.Table.Members[i].PeerURL {
			t.Errorf("member %d was %+v and is %+v", i, first.Table.Members[i], m)
		}
	}
	leaders := 0
	for _, m := range second.Table.Members {
		if m.Role == "leader" {
			leaders++
		} else if m.Role != "follower" {
			t.Errorf("%s is %s", m.Name, m.Role)
		}
	}
	if leaders != 1 {
		t.Errorf("%d leaders: %+v", leaders, second.Table.Members)
	}
	if got := ctlRun(t, "--endpoints="+second.Table.Endpoints, "get", "k", "--print-value-only"); got != "v\n" {
		t.Errorf("k is %q", got)
	}
	second.stop(syscall.SIGTERM)
}

func (d *devProcess) stop(s syscall.Signal) {
	d.t.Helper()
	d.cmd.Process.Signal(s)
	if err := d.cmd.Wait(); err != nil {
		d.t.Fatalf("stopped by %s: %v; it said: %s", s, err, d.said())
	}
	if !d.membersGone() {
		d.t.Fatal("members were left behind")
	}
}

// A member that dies is reported, and the others go on.
func TestDevReportsDeath(t *testing.T) {
	d := startDev(t, "--data-dir", filepath.Join(t.TempDir(), "data"))
	if err := syscall.Kill(d.Table.Members[1].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("m2 (process %d) died: signal: killed", d.Table.Members[1].PID)
	until(t, want, func() bool { return strings.Contains(d.said(), want) })
	ctlRun(t, "--endpoints="+d.Table.Members[0].ClientURL, "put", "k", "v")
	d.stop(syscall.SIGINT)
}

// Members do not outlive a dev that is killed.
func TestDevKilled(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a process that its parent died")
	}
	d := startDev(t, "--data-dir", filepath.Join(t.TempDir(), "data"), "--nodes", "1")
	d.cmd.Process.Kill()
	until(t, "members die with their parent", d.membersGone)
}

// Whoever tells dev twice at once to stop means it once, and a terminal that is closed counts no second time: the members
// are stopped in good order.
func TestDevToldTwice(t *testing.T) {
	d := startDev(t, "--data-dir", filepath.Join(t.TempDir(), "data"), "--nodes", "1")
	d.cmd.Process.Signal(syscall.SIGTERM)
	d.stop(syscall.SIGHUP)
	log, err := os.ReadFile(d.Table.Members[0].Log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), `"msg":"closed etcd server"`) {
		t.Errorf("the member was not stopped in good order:\n%s", log)
	}
}

func TestImpatience(t *testing.T) {
	long := time.Now().Add(-time.Minute)
	if isImpatience(syscall.SIGINT, time.Now().Add(time.Hour)) || isImpatience(syscall.SIGHUP, long) {
		t.Error("a signal that came with the first, or a closed terminal, counts as a second")
	}
	if !isImpatience(syscall.SIGINT, long) || !isImpatience(syscall.SIGTERM, long) {
		t.Error("a second signal does not count")
	}
}

// A reader of dev's messages that goes away does not take the cluster with it.
func TestDevReaderGone(t *testing.T) {
	if testing.Short() {
		t.Skip("starts several processes")
	}
	path, err := exec.LookPath("trivet")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	cmd := exec.Command(path, "dev", "--nodes", "1", "--data-dir", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "Ctrl-C stops everything." {
	}
	out.Close()
	cmd.Process.Signal(syscall.SIGINT) // it says that it stops, to nobody
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "m1.log"))
	if err != nil || !strings.Contains(string(log), `"msg":"closed etcd server"`) {
		t.Errorf("the member was not stopped in good order: %v\n%s", err, log)
	}
}

// The last words of a member are what its end was about: the message of its last line, or what a crash printed first.
func TestLastWords(t *testing.T) {
	for log, want := range map[string]string{
		`{"msg":"one"}` + "\ntrivet: no space\n":                                         "no space",
		`{"msg":"one"}` + "\n" + `{"msg":"two"}` + "\n":                                  "two",
		`{"msg":"one"}` + "\npanic: the end\n\ngoroutine 7 [running]:\nmain.main()\n":    "panic: the end; all of it is in ",
		"panic: long ago\n\ngoroutine 7\n" + `{"msg":"one"}` + "\ntrivet: other words\n": "other words",
	} {
		m := &devMember{logPath: filepath.Join(t.TempDir(), "log")}
		if err := os.WriteFile(m.logPath, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := m.lastWords(); !strings.HasPrefix(got, want) {
			t.Errorf("of %q the last words are %q, want %q", log, got, want)
		}
	}
}
