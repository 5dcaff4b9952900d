package backup

import (
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// BenchmarkExport writes a snapshot of keys that were put in random order.
func BenchmarkExport(b *testing.B) {
	const keys = 300_000
	e, err := engine.Open(engine.Options{Dir: filepath.Join(b.TempDir(), "state")})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	if err := fsm.Bootstrap(e, []member.Member{{ID: 0xab, Name: "a"}}, []byte("conf")); err != nil {
		b.Fatal(err)
	}
	s, err := fsm.Open(e, mvcc.Options{})
	if err != nil {
		b.Fatal(err)
	}
	value := make([]byte, 256)
	r := rand.NewChaCha8([32]byte{1})
	order := rand.New(r).Perm(keys)
	for i := 0; i < keys; i += 100 {
		var batch [][]byte
		for _, n := range order[i : i+100] {
			_, _ = r.Read(value)
			batch = append(batch, (&command.Command{Put: &command.Put{Key: fmt.Appendf(nil, "key-%08d", n), Value: value}}).Append(nil))
		}
		if _, err := s.Apply([]command.Entry{{Index: s.Applied.Index + 1, Term: 1, Data: command.AppendBatch(nil, 1, batch)}}, nobody{}); err != nil {
			b.Fatal(err)
		}
	}
	if err := e.Flush(); err != nil {
		b.Fatal(err)
	}
	var planning time.Duration
	b.ResetTimer()
	for range b.N {
		rows, err := e.NewSnapshot()
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		x, err := NewExport(b.Context(), rows, exportOptions)
		if err != nil {
			b.Fatal(err)
		}
		planning += time.Since(begin)
		if _, err := x.Write(b.Context(), io.Discard); err != nil {
			b.Fatal(err)
		}
		_ = rows.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/keys, "ns/key")
	b.ReportMetric(float64(planning.Nanoseconds())/float64(b.N)/keys, "ns/key-planning")
}
