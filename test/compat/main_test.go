package compat

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var (
	callsFlag   = flag.Int("calls", 3000, "random calls to make")
	seedFlag    = flag.Uint64("seed", 0, "seed of the random calls; 0 takes one by chance")
	firstFlag   = flag.Int("episode", 0, "number of the first episode of the random calls")
	killsFlag   = flag.Int("kills", 3, "members to kill under random calls (TestKills)")
	jsonFlag    = flag.Int("json", 8, "one in how many random calls and watch streams goes over the JSON gateway")
	tlsFlag     = flag.Bool("tls", false, "TLS for clients and between members, with certificates both ways, on both systems")
	scriptFlag  = flag.String("script", "", "a script to run")
	trivetFlag  = flag.String("trivet", "", "the binary to test instead of the checkout's")
	etcdutlFlag = flag.String("etcdutl", "", "the binary for snapshots instead of one built from etcdutl's module")
	etcdFlag    = flag.String("etcd", "", "the binary to compare with instead of one built from etcd's module")
)

var systems pair

func TestMain(m *testing.M) {
	flag.Parse()
	status, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// runAll builds both systems and runs the tests; members start when the first script does.
func runAll(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "trivet-compat-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if *tlsFlag {
		if pairs, err = makePairs(filepath.Join(dir, "certificates")); err != nil {
			return 1, err
		}
	}
	trivet := *trivetFlag
	if trivet == "" {
		trivet = filepath.Join(dir, "trivet")
		if err := build(filepath.Join("..", ".."), trivet, "./cmd/trivet"); err != nil {
			return 1, err
		}
	}
	etcd := *etcdFlag
	if etcd == "" {
		etcd = filepath.Join(dir, "etcd")
		if err := build(filepath.Join("..", "..", "bench", "etcd"), etcd, "."); err != nil {
			return 1, err
		}
	}
	// What etcd keeps is thrown away after the run, so that nothing is lost by its not waiting for the disk.
	systems.etcd = &target{name: "etcd", command: []string{etcd}, dir: dir, extra: []string{"--unsafe-no-fsync"}}
	systems.trivet = &target{name: "Trivet", command: []string{trivet, "server"}, dir: dir}
	defer systems.etcd.stop()
	defer systems.trivet.stop()
	return m.Run(), nil
}

func build(dir, binary, pkg string) error {
	cmd := exec.Command("go", "build", "-o", binary, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
