package server

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
)

// What the look at the quota costs a put.
func BenchmarkFits(b *testing.B) {
	e, err := engine.Open(engine.Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	m := &Member{options: Options{QuotaBytes: 2 << 30}, machine: &machine{}, room: &room{}}
	m.machine.state.Store(&fsm.State{Engine: e})
	c := &command.Command{Put: &command.Put{Key: []byte("key"), Value: make([]byte, 256)}}
	b.ReportAllocs()
	for b.Loop() {
		if err := m.fits(c); err != nil {
			b.Fatal(err)
		}
	}
}
