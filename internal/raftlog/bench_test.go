package raftlog

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// BenchmarkAppend appends entries of 256 bytes on the real disk, each write waiting for the one before, as many entries in
// a write as raft had ready.
func BenchmarkAppend(b *testing.B) {
	for _, batch := range []int{1, 64} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			var inSync time.Duration
			dir := vfs.Default.PathJoin(b.TempDir(), "log")
			l := mustOpen(b, Options{FS: vfs.Default, Dir: dir, OnSync: func(d time.Duration) { inSync += d }})
			data := make([]byte, 256)
			done := make(chan struct{}, 1)
			next := uint64(1)
			entries := make([]*raftpb.Entry, 0, batch)
			b.SetBytes(int64(batch * len(data)))
			b.ReportAllocs()
			for b.Loop() {
				entries = entries[:0:0]
				for range batch {
					entries = append(entries, newEntry(next, 1, data))
					next++
				}
				l.Append(Write{Entries: entries, Sync: true, Done: func() { done <- struct{}{} }})
				<-done
				if next%10000 == 0 {
					l.Cut(next - 5000)
				}
			}
			b.ReportMetric(float64(inSync.Microseconds())/float64(b.N), "µs-in-fdatasync/op")
			b.ReportMetric(float64(next)/b.Elapsed().Seconds(), "entries/s")
			if err := l.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkEncode is the CPU share of a write, without a disk.
func BenchmarkEncode(b *testing.B) {
	e := encoder{seal: seal{1, 2}, base: segmentHeaderBytes, durable: segmentHeaderBytes}
	ent := newEntry(1_000_000, 7, make([]byte, 256))
	b.SetBytes(256)
	for b.Loop() {
		e.buf = e.buf[:0]
		e.entry(ent, flagEnd)
	}
}

// BenchmarkOpen recovers a log of the given size from the page cache.
func BenchmarkOpen(b *testing.B) {
	dir := vfs.Default.PathJoin(b.TempDir(), "log")
	o := Options{FS: vfs.Default, Dir: dir}
	l := mustOpen(b, o)
	data := make([]byte, 256)
	next := uint64(1)
	for range 4000 {
		var es []*raftpb.Entry
		for range 64 {
			es = append(es, newEntry(next, 1, data))
			next++
		}
		l.Append(Write{Entries: es})
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(next) * 290)
	for b.Loop() {
		l := mustOpen(b, o)
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
