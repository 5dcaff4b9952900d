package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// operationPorts are the ports that docs/operations.md uses.
var operationPorts = regexp.MustCompile(`\b[1-4]23(79|80)\b`)

// TestOperations runs the shell blocks of docs/operations.md as they stand, in order, in one bash in an empty folder. The
// ports are replaced by free ones, and etcd-data is the directory of an etcd that was killed.
func TestOperations(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	page, err := os.ReadFile(filepath.Join(root(), "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	ports := map[string]string{}
	blocks := shellBlocks(string(page))
	if len(blocks) < 10 {
		t.Fatalf("%d blocks of shell", len(blocks))
	}
	script := "set -euo pipefail\ntrap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT\n"
	for i, block := range blocks {
		script += "echo; echo '--- block " + strconv.Itoa(i+1) + "'\n" + operationPorts.ReplaceAllStringFunc(block, func(port string) string {
			if ports[port] == "" {
				ports[port] = strconv.Itoa(freePort(t))
			}
			return ports[port]
		})
	}
	dir, bin := t.TempDir(), t.TempDir()
	for _, name := range []string{"trivet", "etcdctl", "etcdutl"} {
		if err := os.Symlink(trivet(t), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "etcd-data"), os.DirFS(filepath.Join(root(), "internal", "backup", "testdata", "etcd-3.7.3"))); err != nil {
		t.Fatal(err)
	}
	p := spawn(t, "operations", []string{"PATH=" + bin + ":" + os.Getenv("PATH")}, bash, "-c", "cd '"+dir+"'\n"+script+"\nstop m1; stop m2; stop m3\necho '--- the end'\n")
	p.expect(3*time.Minute, 0, "--- the end")
	if out := strings.Join(p.output(), "\n"); !strings.Contains(out, "withlease") {
		t.Error("the key withlease of etcd was not listed")
	}
}

// shellBlocks returns the blocks that are fenced as bash.
func shellBlocks(page string) (blocks []string) {
	for i, part := range strings.Split("\n"+page, "\n```bash\n") {
		if block, _, ok := strings.Cut(part, "\n```\n"); i > 0 && ok {
			blocks = append(blocks, block+"\n")
		}
	}
	return blocks
}
