package rpc

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/command"
)

// This file is etcd's lines about requests that took long: "apply request took too long" for what was read, and "trace"
// with the steps of a read or a write. They are made of times that are taken in any case, so that a request which is not
// slow pays for a comparison.

const (
	traceAfter  = 100 * time.Millisecond // as etcd, whatever the flags say
	maxTraces   = 100                    // lines "trace" a second: a disk that hangs makes every request slow
	agreement   = "agreement among raft nodes before linearized reading"
	fromStore   = "range keys from the store"
	throughRaft = "process raft request"
)

// step is a part of a request, which began where the one before ended.
type step struct {
	name string
	took time.Duration
}

// traceLimit counts the lines of the second that runs.
type traceLimit struct {
	mu     sync.Mutex
	second time.Time
	lines  int
	unsaid int // since the last line
}

// take tells whether a line may be written, and how many were not since the one before.
func (l *traceLimit) take(now time.Time) (unsaid int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.second) >= time.Second {
		l.second, l.lines = now, 0
	}
	if l.lines == maxTraces {
		l.unsaid++
		return 0, false
	}
	l.lines++
	unsaid, l.unsaid = l.unsaid, 0
	return unsaid, true
}

// trace writes the line of a request, with the steps that took their share of what is slow, as etcd does.
func (s *Services) trace(operation string, begin time.Time, took time.Duration, detail string, steps ...step) {
	end := begin.Add(took)
	unsaid, ok := s.traces.take(end)
	if !ok {
		return
	}
	var told []string
	for _, one := range steps {
		if one.took > traceAfter/time.Duration(len(steps)+1) {
			told = append(told, fmt.Sprintf("'%s'  (duration: %v)", one.name, one.took))
		}
	}
	args := []any{
		"trace_id", rand.Int32(), "operation", operation, "detail", cut(detail), "duration", took,
		"start", begin, "end", end, "steps", told, "step_count", len(told),
	}
	if unsaid > 0 {
		args = append(args, "traces not logged", unsaid)
	}
	s.log.Info("trace", args...)
}

// slowRead logs what took longer than applying should.
func (s *Services) slowRead(took time.Duration, prefix, request, response string, err error) {
	s.m.SlowApply.Inc()
	args := []any{"took", took, "expected-duration", s.o.WarnApply, "prefix", prefix, "request", cut(request), "response", response}
	if err != nil {
		args = append(args, "error", Text(err))
	}
	s.log.Warn("apply request took too long", args...)
}

// cut bounds what a line holds of a request.
func cut(text string) string {
	if len(text) > maxLoggedContent {
		return text[:maxLoggedContent] + "..."
	}
	return text
}

// lookAtRange logs a range if it was slow. It took so long for the members to agree that nothing newer was missed, and so
// long in all; answer is nil if there was an error.
func (s *Services) lookAtRange(r *pb.RangeRequest, begin time.Time, agreed, took time.Duration, answer *Answer, rows int64, err error) {
	if took <= min(traceAfter, s.o.WarnApply) {
		return
	}
	response, detail := "", fmt.Sprintf("{range_begin:%s; range_end:%s; ", r.Key, r.RangeEnd)
	if err == nil {
		response = fmt.Sprintf("range_response_count:%d size:%d", rows, answer.Buffers.Len())
		detail += fmt.Sprintf("response_count:%d; response_revision:%d; ", rows, s.b.Store().Revision())
	}
	if took > s.o.WarnApply {
		s.slowRead(took, "read-only range ", r.String(), response, err)
	}
	if took > traceAfter {
		s.trace("range", begin, took, detail+"}", readSteps(!r.Serializable, agreed, took)...)
	}
}

func readSteps(linearizable bool, agreed, took time.Duration) []step {
	read := step{fromStore, took - agreed}
	if !linearizable {
		return []step{read}
	}
	return []step{{agreement, agreed}, read}
}

// lookAtTxn logs a transaction of ranges that was slow.
func (s *Services) lookAtTxn(r *pb.TxnRequest, res *command.Result, begin time.Time, agreed, took time.Duration, err error) {
	if took > s.o.WarnApply {
		response := ""
		if err == nil {
			out := txnResponse(res.Txn, r)
			var counts []string
			for _, one := range out.Responses {
				counts = append(counts, fmt.Sprintf("range_response_count:%d", len(one.GetResponseRange().GetKvs())))
			}
			response = fmt.Sprintf("responses:<%s> size:%d", strings.Join(counts, " "), proto.Size(out))
		}
		s.slowRead(took, "read-only txn ", pb.NewLoggableTxnRequest(r).String(), response, err)
	}
	if took > traceAfter {
		s.trace("transaction", begin, took, "{read_only:true; }", readSteps(agreed > 0, agreed, took)...)
	}
}

// traceWrite logs a write that was done and took long.
func (s *Services) traceWrite(c *command.Command, res *command.Result, begin time.Time, took time.Duration) {
	var operation, detail string
	switch {
	case c.Put != nil:
		p := c.Put
		size := proto.Size(&pb.PutRequest{
			Key: p.Key, Value: p.Value, Lease: int64(p.Lease), PrevKv: p.PrevKV, IgnoreValue: p.IgnoreValue, IgnoreLease: p.IgnoreLease,
		})
		operation, detail = "put", fmt.Sprintf("key:%s; req_size:%d; ", p.Key, size)
	case c.Txn != nil:
		operation, detail = "transaction", "read_only:false; "
		if res.Txn != nil {
			detail += fmt.Sprintf("number_of_response:%d; ", len(res.Txn.Ops))
		}
	case c.Compact != nil:
		operation, detail = "compact", fmt.Sprintf("revision:%d; ", c.Compact.Revision)
	default:
		return
	}
	detail = fmt.Sprintf("{%sresponse_revision:%d; }", detail, res.Revision)
	s.trace(operation, begin, took, detail, step{throughRaft, took})
}
