package rpc

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/internal/command"
)

// Puts, transactions and compactions have a line, without what they write; other commands have none.
func TestTraceOfWrites(t *testing.T) {
	var log bytes.Buffer
	s := &Services{log: slog.New(slog.NewTextHandler(&log, nil))}
	res := &command.Result{Revision: 5, Txn: &command.TxnResult{Ops: make([]command.OpResult, 2)}}
	for _, c := range []command.Command{
		{Put: &command.Put{Key: []byte("k"), Value: []byte("hunter2")}},
		{Txn: &command.Txn{}}, {Compact: &command.Compact{Revision: 3}}, {DeleteRange: &command.DeleteRange{}}, {LeaseGrant: &command.LeaseGrant{}},
	} {
		s.traceWrite(&c, res, time.Now(), time.Second)
	}
	for _, want := range []string{
		`operation=put detail="{key:k; req_size:12; response_revision:5; }" duration=1s`,
		`operation=transaction detail="{read_only:false; number_of_response:2; response_revision:5; }"`,
		`operation=compact detail="{revision:3; response_revision:5; }"`, `'process raft request'  (duration: 1s)`,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in\n%s", want, log.String())
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 3 || strings.Contains(log.String(), "hunter2") {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}

// A disk that hangs for a while makes thousands of requests slow; the log gets a bounded number of lines and a count.
func TestTracesAreBounded(t *testing.T) {
	var l traceLimit
	now := time.Unix(1000, 0)
	lines := 0
	for range 3 * maxTraces {
		if _, ok := l.take(now); ok {
			lines++
		}
	}
	if lines != maxTraces {
		t.Errorf("%d lines in a second", lines)
	}
	if unsaid, ok := l.take(now.Add(time.Second)); !ok || unsaid != 2*maxTraces {
		t.Errorf("the next second begins with %v and says that %d were left out", ok, unsaid)
	}
	if unsaid, ok := l.take(now.Add(time.Second)); !ok || unsaid != 0 {
		t.Errorf("said twice: %v, %d", ok, unsaid)
	}
}

// Without a tracer a span costs no memory.
func TestNoSpanNoCost(t *testing.T) {
	s := &Services{}
	ctx, r := t.Context(), &pb.PutRequest{Key: []byte("k")}
	if n := testing.AllocsPerRun(100, func() {
		ctx, span := s.span(ctx, r)
		s.spanOf(ctx).AddEvent("x")
		span.End()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
