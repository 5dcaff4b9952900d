package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// unit is what a figure counts.
type unit string

const (
	perSecond unit = "1/s"
	seconds   unit = "s"
	size      unit = "bytes"
	times     unit = "times" // a ratio within one system
	number    unit = "number"
)

// figure is one thing that a workload measured.
type figure struct {
	Name  string  `json:"name"`
	Unit  unit    `json:"unit"`
	Value float64 `json:"value"`
}

func took(name string, d time.Duration) figure { return figure{name, seconds, d.Seconds()} }

// text writes a value as one reads it.
func (u unit) text(v float64) string {
	switch u {
	case seconds:
		d := time.Duration(v * float64(time.Second))
		switch {
		case d >= 10*time.Second:
			return fmt.Sprintf("%.0f s", v)
		case d >= time.Second:
			return fmt.Sprintf("%.2f s", v)
		case d >= 10*time.Millisecond:
			return fmt.Sprintf("%.0f ms", v*1e3)
		case d >= time.Millisecond:
			return fmt.Sprintf("%.2f ms", v*1e3)
		case d >= 10*time.Microsecond:
			return fmt.Sprintf("%.0f µs", v*1e6)
		}
		return fmt.Sprintf("%.2f µs", v*1e6)
	case size:
		return fmt.Sprintf("%.0f MiB", v/(1<<20))
	case times:
		return fmt.Sprintf("%.2fx", v)
	}
	whole := fmt.Sprintf("%.0f", v)
	if v < 10 {
		whole = fmt.Sprintf("%.3g", v)
	}
	for i := len(whole) - 3; i > 0 && !strings.Contains(whole, "."); i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	return whole
}

// row is a line of the table: a figure of one workload, the median over the rounds of each system.
type row struct {
	Workload string               `json:"workload"`
	Figure   string               `json:"figure"`
	Unit     unit                 `json:"unit"`
	Median   map[string]float64   `json:"median"`
	Ratio    float64              `json:"ratio,omitempty"` // trivet to the other
	Target   string               `json:"target,omitempty"`
	Met      *bool                `json:"met,omitempty"`
	Rounds   map[string][]float64 `json:"rounds"`
}

// report collects the rows and prints them as a table that is Markdown too.
type report struct {
	Date    string   `json:"date"`
	Go      string   `json:"go"`
	CPUs    int      `json:"cpus"`
	Rounds  int      `json:"rounds"`
	Seconds float64  `json:"seconds"`
	Systems []string `json:"systems"`
	Rows    []row    `json:"rows"`
}

func newReport(o options, systems []system) *report {
	r := &report{Date: time.Now().UTC().Format(time.RFC3339), Go: runtime.Version(), CPUs: runtime.NumCPU(), Rounds: o.rounds, Seconds: o.duration.Seconds()}
	for _, s := range systems {
		r.Systems = append(r.Systems, s.name)
	}
	return r
}

func (r *report) head(out io.Writer) {
	fmt.Fprintf(out, "Medians over %d rounds of %v s; %d CPUs for members and clients together; %s\n\n", r.Rounds, r.Seconds, r.CPUs, r.Date)
	if len(r.Systems) == 1 {
		r.line(out, "workload", "figure", r.Systems[0], "", "")
		r.line(out, strings.Repeat("-", 37), "---", "--:", "", "")
		return
	}
	r.line(out, "workload", "figure", r.Systems[0], r.Systems[1], "ratio", "target", "")
	r.line(out, strings.Repeat("-", 37), strings.Repeat("-", 29), "--:", "--:", "--:", "---", "---")
}

func (r *report) line(out io.Writer, cells ...string) {
	widths := []int{-37, -29, 10, 10, 7, -14, -6}
	if len(r.Systems) == 1 {
		cells, widths = cells[:3], widths[:3]
	}
	for i, c := range cells {
		fmt.Fprintf(out, "| %*s ", widths[i], c)
	}
	fmt.Fprintln(out, "|")
}

// add takes the figures of a workload and prints their rows.
func (r *report) add(out io.Writer, m measured) {
	label := m.workload.name
	for i, f := range m.rounds[r.Systems[0]][0] {
		one := row{Workload: m.workload.name, Figure: f.Name, Unit: f.Unit, Median: map[string]float64{}, Rounds: map[string][]float64{}}
		for _, s := range r.Systems {
			for _, round := range m.rounds[s] {
				one.Rounds[s] = append(one.Rounds[s], round[i].Value)
			}
			one.Median[s] = median(one.Rounds[s])
		}
		one.judge(r.Systems)
		r.Rows = append(r.Rows, one)
		own := f.Unit.text(one.Median[r.Systems[0]])
		if len(r.Systems) == 1 {
			r.line(out, label, f.Name, own)
		} else {
			ratio, met := "", ""
			if one.Median[r.Systems[1]] != 0 {
				ratio = fmt.Sprintf("%.2f", one.Ratio)
			}
			if one.Met != nil {
				met = map[bool]string{true: "met", false: "missed"}[*one.Met]
			}
			r.line(out, label, f.Name, own, f.Unit.text(one.Median[r.Systems[1]]), ratio, one.Target, met)
		}
		label = ""
	}
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// save writes all rows so far.
func (r *report) save(path string) error {
	if path == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
