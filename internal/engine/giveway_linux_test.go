package engine

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// tablesFS notes how nice the threads are that create tables.
type tablesFS struct {
	vfs.FS
	mu   sync.Mutex
	nice map[int]int // tables created, by how nice the thread was
}

func (f *tablesFS) Unwrap() vfs.FS { return f.FS }

func (f *tablesFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if IsTable(name) {
		raw, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
		if err != nil {
			return nil, err
		}
		f.mu.Lock()
		f.nice[niceness(raw)]++
		f.mu.Unlock()
	}
	return f.FS.Create(name, c)
}

// Compactions run behind, flushes do not, and no thread that runs behind is left for others when the compactions are over.
func TestCompactionsGiveWay(t *testing.T) {
	before := niceThreads(t)
	files := &tablesFS{FS: vfs.NewMem(), nice: map[int]int{}}
	e, err := Open(Options{FS: files, Dir: "state", MemTableBytes: 1 << 20, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 1))
	for from := int64(1); from < 20_000; from += 500 {
		putRows(t, e, random, from, 500)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	own := slices.Min(slices.Collect(maps.Keys(before)))
	if files.nice[own] == 0 || files.nice[own+behind] == 0 || len(files.nice) > 2 {
		t.Errorf("tables by how nice the threads were that created them: %v; the process's own is %d", files.nice, own)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		now := niceThreads(t)
		if len(now) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("threads by how nice they are, after the compactions: %v", now)
		}
	}
}

// niceThreads counts the process's threads by how nice they are.
func niceThreads(t *testing.T) map[int]int {
	t.Helper()
	all, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil {
		t.Fatal(err)
	}
	n := map[int]int{}
	for _, path := range all {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		nice, err := niceOf(string(stat))
		if err != nil {
			t.Fatal(err)
		}
		n[nice]++
	}
	return n
}

// niceOf is field 19 of a thread's line in proc(5); the second field is a name in brackets.
func niceOf(stat string) (int, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 17 {
		return 0, fmt.Errorf("no niceness in %q", stat)
	}
	return strconv.Atoi(fields[16])
}
