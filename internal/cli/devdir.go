package cli

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// devDir is the data directory of command dev:
//
//	dev.json   the plan: how many members, their names and their ports
//	dev.lock   held while a dev runs there
//	m1/        the data directory of the first member, and so on
//	m1.log     its log; m1.log.old what was in it before it grew too long
//
// A member's peer URL is part of its identity, so the peer ports of the first run are those of all later ones. A client
// port that is taken is replaced for one run by the next free one.
type devDir struct {
	path string
	plan devPlan
	lock io.Closer
}

type devPlan struct {
	Version int             `json:"version"`
	Token   string          `json:"cluster_token"`
	Members []devPlanMember `json:"members"`
}

type devPlanMember struct {
	Name       string `json:"name"`
	ClientPort int    `json:"client_port"`
	PeerPort   int    `json:"peer_port"`
}

const (
	devPlanVersion = 1
	devPlanName    = "dev.json"
	devLockName    = "dev.lock"
)

// devPorts are the client ports that members get if they are free; each member's peer port is the next one.
var devPorts = [7]int{2379, 22379, 32379, 42379, 52379, 62379, 12379}

// openDevDir takes the directory and brings its plan, from the file or, in a new directory, a new one with ports that are
// free now. nodes is 0 for as many as there are.
func openDevDir(path string, fresh bool, nodes int) (d *devDir, err error) {
	if path == "" {
		return nil, errors.New("--data-dir: the name is empty; name a directory")
	}
	if err := checkDevDir(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("--data-dir=%s: %w; name a directory that can be written", path, err)
	}
	d = &devDir{path: path}
	d.lock, err = vfs.Default.Lock(filepath.Join(path, devLockName))
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		return nil, fmt.Errorf("--data-dir=%s: %w; name a directory that can be written", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("--data-dir=%s: another trivet dev runs in it; stop it, or name another directory", path)
	}
	lock := d.lock
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if fresh {
		if err := d.clear(); err != nil {
			return nil, fmt.Errorf("--fresh: %w; delete %s by hand", err, path)
		}
	}
	text, err := os.ReadFile(filepath.Join(path, devPlanName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, d.makePlan(nodes)
	case err != nil:
		return nil, fmt.Errorf("--data-dir=%s: %w; name a directory that can be read", path, err)
	}
	if err := json.Unmarshal(text, &d.plan); err != nil || d.plan.Version != devPlanVersion || len(d.plan.Members) == 0 {
		return nil, fmt.Errorf("--data-dir=%s: its %s cannot be understood; begin anew with --fresh", path, devPlanName)
	}
	if have := len(d.plan.Members); nodes != 0 && nodes != have {
		return nil, fmt.Errorf("--nodes=%d: the directory %s holds a cluster of %d; leave the flag out, begin anew with --fresh, or name another --data-dir", nodes, path, have)
	}
	return d, d.settlePorts()
}

// checkDevDir refuses a directory that holds something else: --fresh must never delete what dev did not make.
func checkDevDir(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--data-dir=%s: %w; name a directory that can be read", path, err)
	}
	for _, e := range entries {
		if e.Name() == devPlanName || e.Name() == devLockName {
			return nil
		}
	}
	return fmt.Errorf("--data-dir=%s: the directory holds something else; name another one", path)
}

// clear deletes what dev made.
func (d *devDir) clear() error {
	for i := range devPorts {
		name := devName(i)
		for _, n := range []string{name, name + ".log", name + ".log.old"} {
			if err := os.RemoveAll(filepath.Join(d.path, n)); err != nil {
				return err
			}
		}
	}
	err := os.Remove(filepath.Join(d.path, devPlanName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func devName(i int) string { return "m" + strconv.Itoa(i+1) }

// makePlan chooses ports and writes the plan down, whole or not at all.
func (d *devDir) makePlan(nodes int) error {
	if nodes == 0 {
		nodes = 3
	}
	random := make([]byte, 4)
	rand.Read(random)
	d.plan = devPlan{Version: devPlanVersion, Token: "dev-" + hex.EncodeToString(random)}
	var taken []int
	for i := range nodes {
		port := devPorts[i]
		for !portFree(port) || !portFree(port+1) || slices.Contains(taken, port) {
			if port += 2; port > 65000 {
				return fmt.Errorf("no two neighbouring ports are free from %d up; stop something that listens there", devPorts[i])
			}
		}
		taken = append(taken, port)
		d.plan.Members = append(d.plan.Members, devPlanMember{Name: devName(i), ClientPort: port, PeerPort: port + 1})
	}
	text, err := json.MarshalIndent(d.plan, "", "  ")
	if err != nil {
		return err
	}
	name := filepath.Join(d.path, devPlanName)
	if err := os.WriteFile(name+".new", append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("--data-dir=%s: %w; name a directory that can be written", d.path, err)
	}
	return os.Rename(name+".new", name)
}

// settlePorts makes sure that the peer ports of the plan are free, and moves client ports that are not.
func (d *devDir) settlePorts() error {
	var taken []int
	for _, m := range d.plan.Members {
		if !portFree(m.PeerPort) {
			return fmt.Errorf("port %d on 127.0.0.1 is taken, and %s of the cluster in %s has it; stop what listens there, begin anew with --fresh, or name another --data-dir",
				m.PeerPort, m.Name, d.path)
		}
		taken = append(taken, m.ClientPort, m.PeerPort)
	}
	for i := range d.plan.Members {
		m := &d.plan.Members[i]
		port := m.ClientPort
		for !portFree(port) || port != m.ClientPort && slices.Contains(taken, port) {
			if port++; port > 65000 {
				return fmt.Errorf("no port is free from %d up for the clients of %s; stop something that listens there", m.ClientPort, m.Name)
			}
		}
		m.ClientPort = port
		taken = append(taken, port)
	}
	return nil
}

func portFree(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// cluster is the --initial-cluster of all members.
func (d *devDir) cluster() string {
	s := ""
	for i, m := range d.plan.Members {
		if i > 0 {
			s += ","
		}
		s += m.Name + "=" + loopback(m.PeerPort)
	}
	return s
}

func loopback(port int) string { return "http://127.0.0.1:" + strconv.Itoa(port) }

func (d *devDir) close() { d.lock.Close() }
