package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Every target is of a workload that is measured, and workloads have names of their own.
func TestTargetsNameWorkloads(t *testing.T) {
	var names, slugs []string
	for _, w := range workloads() {
		names, slugs = append(names, w.name), append(slugs, slug(w.name))
	}
	for _, target := range targets {
		if !slices.Contains(names, target.workload) {
			t.Errorf("a target for %q, which is not measured", target.workload)
		}
	}
	slices.Sort(slugs)
	if len(slices.Compact(slices.Clone(slugs))) != len(slugs) {
		t.Errorf("two workloads would write to the same files: %v", slugs)
	}
}

func TestTable(t *testing.T) {
	both := []system{{name: "trivet"}, {name: "etcd"}}
	rounds := func(values ...float64) (r [][]figure) {
		for _, v := range values {
			r = append(r, []figure{{ops, perSecond, v}, {cpuPerOp, seconds, v / 1e8}, {longestCompaction, seconds, v / 1e6}})
		}
		return r
	}
	m := measured{workload{name: "put 256 B, 64 clients"}, map[string][][]figure{
		"trivet": rounds(90, 1000, 2000), "etcd": rounds(500, 400, 10000),
	}}
	r := newReport(options{}, both)
	var out strings.Builder
	r.add(&out, m)
	want := []string{
		"put 256 B, 64 clients|per second|1,000|500|2.00|at least 1.6|met",
		"|CPU per op|10 µs|5.00 µs|2.00|at most 0.45|missed",
		"|compaction: longest put|1.00 ms|500 µs|2.00||",
	}
	for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		cells := strings.Split(strings.Trim(line, "| "), "|")
		if i > 0 {
			cells = append([]string{""}, cells...)
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		got := strings.TrimRight(strings.Join(cells, "|"), "|")
		if got != strings.TrimRight(want[i], "|") {
			t.Errorf("row %d\n got %s\nwant %s", i, got, want[i])
		}
	}
	file := filepath.Join(t.TempDir(), "figures.json")
	if err := r.save(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var again report
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	if v := again.Rows[0].Rounds["trivet"]; !slices.Equal(v, []float64{90, 1000, 2000}) {
		t.Errorf("the file holds the rounds %v", v)
	}
}

// A limit holds for Trivet alone; what is relative cannot be judged then.
func TestJudgeAlone(t *testing.T) {
	for _, c := range []struct {
		workload, figure string
		value            float64
		want             string
	}{
		{"leader killed", gap, 0.1, "met"},
		{"leader killed", gap, 0.2, "missed"},
		{"put 256 B, 64 clients", ops, 1e6, ""},
	} {
		r := row{Workload: c.workload, Figure: c.figure, Unit: seconds, Median: map[string]float64{"trivet": c.value}}
		r.judge([]string{"trivet"})
		got := ""
		if r.Met != nil {
			got = map[bool]string{true: "met", false: "missed"}[*r.Met]
		}
		if got != c.want {
			t.Errorf("%s, %s of %v: %q, want %q", c.workload, c.figure, c.value, got, c.want)
		}
	}
}

func TestUnits(t *testing.T) {
	for _, c := range []struct {
		unit  unit
		value float64
		want  string
	}{
		{seconds, 0.0000012, "1.20 µs"}, {seconds, 0.000848, "848 µs"}, {seconds, 0.00326, "3.26 ms"}, {seconds, 0.068, "68 ms"},
		{seconds, 1.37, "1.37 s"}, {seconds, 94.2, "94 s"}, {size, 136 << 20, "136 MiB"}, {times, 1.5, "1.50x"},
		{perSecond, 7.25, "7.25"}, {perSecond, 999, "999"}, {perSecond, 1234567, "1,234,567"}, {number, 0, "0"},
	} {
		if got := c.unit.text(c.value); got != c.want {
			t.Errorf("%v %s is written %q, want %q", c.value, c.unit, got, c.want)
		}
	}
}

func TestGap(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	p := probes{signal: at(100), acks: []time.Time{at(250), at(10), at(260), at(130), at(2), at(90)}}
	if g := p.gap(); g != 120*time.Millisecond {
		t.Errorf("the gap is %v", g)
	}
	p.acks = []time.Time{at(10), at(180)}
	if g := p.gap(); g != 80*time.Millisecond {
		t.Errorf("the gap from the signal on is %v", g)
	}
}

// The instrument works: three processes of Trivet, a load of each kind, and a failover.
func TestTrivetAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("starts clusters of three processes")
	}
	dir := t.TempDir()
	o, err := parse([]string{
		"--trivet-only", "--rounds=2", "--duration=200ms", "--only=^(put 256 B, 1 client|page|10,000 watchers|lease keepalive|get and)",
		"--json=" + filepath.Join(dir, "figures.json"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := run(t.Context(), o, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if rows := strings.Count(out.String(), "\n"); rows != 4+5*4 {
		t.Errorf("%d lines:\n%s", rows, out.String())
	}
}
