package rpc

import (
	"bytes"
	"context"
	"errors"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/mem"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// propose puts a command of the request's user through the log and folds its two errors into one. kind is its name in
// etcd_server_request_duration_seconds, which as in etcd counts a command that was applied and refused as a success.
func (s *Services) propose(ctx context.Context, kind string, c *command.Command) (command.Result, error) {
	who, _, err := s.identify(ctx, true)
	if err != nil {
		return command.Result{}, toStatus(err)
	}
	c.User, c.AuthRevision = who.User, who.Revision
	begin := time.Now()
	span := s.spanOf(ctx)
	span.AddEvent("Send raft proposal")
	res, err := s.b.Propose(ctx, c)
	if took := s.took(kind, err, begin); took > traceAfter && err == nil && res.Err == nil {
		s.traceWrite(c, &res, begin, took)
	}
	if err == nil {
		span.AddEvent("Receive raft result")
	} else {
		span.RecordError(err)
	}
	if err == nil {
		err = res.Err
	}
	return res, toStatus(err)
}

// Range answers KV.Range with the wire form of a RangeResponse: rows go from the store's iterator to the answer's bytes.
func (s *Services) Range(ctx context.Context, r *pb.RangeRequest) (*Answer, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	ctx, span := s.span(ctx, r)
	defer span.End()
	begin := time.Now()
	if !r.Serializable {
		if err := s.b.ReadBarrier(ctx); err != nil {
			took := s.took("Range", err, begin)
			s.lookAtRange(r, begin, took, took, nil, 0, err)
			return nil, toStatus(err)
		}
	}
	o := rangeOptions(r)
	may, err := s.mayRead(ctx, o.Range, nil)
	if err != nil {
		s.took("Range", err, begin)
		return nil, err
	}
	b := s.newRangeBuilder(ctx, &o)
	scanning := time.Now()
	res, err := s.b.Store().Scan(ctx, o, b.add)
	took := s.took("Range", err, begin)
	s.m.RangeTook(err == nil, time.Since(scanning))
	s.m.Ranges.Inc()
	if err == nil {
		err = may.still(ctx)
	}
	if err != nil {
		b.drop()
		s.lookAtRange(r, begin, scanning.Sub(begin), took, nil, 0, err)
		return nil, toStatus(err)
	}
	var head [maxHeaderBytes]byte
	out := b.finish(appendHeader(head[:0], s.b.Header(), res.Revision), res.More, res.Count)
	s.lookAtRange(r, begin, scanning.Sub(begin), took, out, b.rows, nil)
	return out, nil
}

func (s *Services) newRangeBuilder(ctx context.Context, o *kv.RangeOptions) *rangeBuilder {
	return &rangeBuilder{
		ctx: ctx, pool: s.pool, share: share{b: s.budget},
		keysOnly: o.KeysOnly, single: o.Single() || o.Limit == 1,
	}
}

// errChunkFull ends a scan when its chunk of a stream holds enough.
var errChunkFull = errors.New("chunk full")

// streamChunkBytes is about how large one answer of RangeStream is.
const streamChunkBytes = 512 << 10

// RangeStream answers KV.RangeStream: chunks of rows in key order, all at the revision of the first, the last one with
// header, more and count. Each chunk reads from the store anew, so that a slow client holds nothing of the engine; if
// the revision is compacted meanwhile, the stream ends with etcd's error. With another target streamSorted does it.
func (s *Services) RangeStream(ctx context.Context, r *pb.RangeRequest, send func(*Answer) error) error {
	if err := checkRangeStream(r); err != nil {
		return err
	}
	ctx, span := s.span(ctx, streamed{r})
	defer span.End()
	if !r.Serializable {
		if err := s.b.ReadBarrier(ctx); err != nil {
			return toStatus(err)
		}
	}
	o := rangeOptions(r)
	may, err := s.mayRead(ctx, o.Range, nil)
	if err != nil {
		return err
	}
	if o.Target != kv.SortByKey {
		return s.streamSorted(ctx, o, may, send)
	}
	left := o.Limit
	if left <= 0 {
		left = math.MaxInt64
	}
	var sent, headRevision int64
	s.m.Ranges.Inc()
	for {
		if ctx.Err() != nil {
			return streamError(ctx)
		}
		var last []byte
		b := s.newRangeBuilder(ctx, &o)
		o.Limit = left
		if left == math.MaxInt64 {
			o.Limit = 0
		}
		if headRevision == 0 && o.Revision <= 0 {
			// Pin the revision before the first row, so that the chunks agree even if the first is cut short.
			headRevision = s.b.Store().Revision()
			o.Revision = headRevision
		}
		n, size, scanning := int64(0), 0, time.Now()
		res, err := s.b.Store().Scan(ctx, o, func(row mvcc.Row) error {
			if size >= streamChunkBytes {
				return errChunkFull
			}
			n, size = n+1, size+rowBound(row)
			last = append(last[:0], row.Key...)
			return b.add(row)
		})
		full := errors.Is(err, errChunkFull)
		s.m.RangeTook(err == nil || full, time.Since(scanning))
		if err == nil || full {
			if refused := may.still(ctx); refused != nil {
				err, full = refused, false
			}
		}
		if err != nil && !full {
			b.drop()
			return toStatus(err)
		}
		sent, left = sent+n, left-n
		if full {
			if err := send(wrapField(b.finish(nil, false, 0), rangeStreamResponse)); err != nil {
				return err
			}
			o.Key = append(bytes.Clone(last), 0)
			if o.Single() {
				return toStatus(errors.New("rpc: a single key does not fill a chunk"))
			}
			continue
		}
		if headRevision == 0 {
			headRevision = res.Revision
		}
		var head [maxHeaderBytes]byte
		count := sent - n + res.Count
		return send(wrapField(b.finish(appendHeader(head[:0], s.b.Header(), headRevision), res.More, count), rangeStreamResponse))
	}
}

// Put answers KV.Put with the wire form of a PutResponse.
func (s *Services) Put(ctx context.Context, r *pb.PutRequest) (*Answer, error) {
	if err := checkPut(r); err != nil {
		return nil, err
	}
	ctx, span := s.span(ctx, r)
	defer span.End()
	res, err := s.propose(ctx, "Put", &command.Command{Put: putCommand(r)})
	if err != nil {
		return nil, err
	}
	room := maxHeaderBytes
	if res.Prev != nil {
		room += sizeKeyValue(res.Prev) + tailBytes
	}
	out := appendHeader(make([]byte, 0, room), s.b.Header(), res.Revision)
	if res.Prev != nil {
		out = appendKeyValue(out, putPrev, res.Prev)
	}
	return &Answer{Buffers: mem.BufferSlice{mem.SliceBuffer(out)}}, nil
}

// DeleteRange answers KV.DeleteRange.
func (s *Services) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	ctx, span := s.span(ctx, r)
	defer span.End()
	res, err := s.propose(ctx, "DeleteRange", &command.Command{DeleteRange: deleteCommand(r)})
	if err != nil {
		return nil, err
	}
	out := &pb.DeleteRangeResponse{Header: headerPB(s.b.Header(), res.Revision)}
	if d := res.DeleteRange; d != nil {
		out.Deleted, out.PrevKvs = d.Deleted, keyValues(d.Prev)
	}
	return out, nil
}

// Txn answers KV.Txn. A transaction of ranges alone is a read: it runs here, at one revision, without the log.
func (s *Services) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := checkTxn(r, s.o.MaxTxnOps); err != nil {
		return nil, err
	}
	if err := checkDuplicates(r); err != nil {
		return nil, err
	}
	t := txnCommand(r)
	if t.Depth() > command.MaxTxnDepth {
		return nil, rpctypes.ErrGRPCTooManyOps
	}
	ctx, span := s.span(ctx, r)
	defer span.End()
	var res command.Result
	var err error
	if fsm.ReadOnly(t) {
		begin := time.Now()
		var agreed time.Duration
		if !serializable(r) {
			err = s.b.ReadBarrier(ctx)
			agreed = time.Since(begin)
		}
		var may reading
		if err == nil {
			may, err = s.mayRead(ctx, kv.Range{}, t)
		}
		if err == nil {
			res, err = fsm.ReadTxn(s.b.Store(), t)
		}
		if err == nil {
			err = may.still(ctx)
		}
		if took := s.took("ReadonlyTxn", err, begin); took > min(traceAfter, s.o.WarnApply) {
			s.lookAtTxn(r, &res, begin, agreed, took, err)
		}
		s.m.Ranges.Add(float64(len(t.Compare) + len(r.Success)))
		err = toStatus(err)
	} else {
		res, err = s.propose(ctx, "Txn", &command.Command{Txn: t})
	}
	if err != nil {
		return nil, err
	}
	if res.Txn == nil {
		panic("rpc: the state machine answered a transaction without a result")
	}
	out := txnResponse(res.Txn, r)
	out.Header = headerPB(s.b.Header(), res.Revision)
	return out, nil
}

// serializable reports whether a transaction of ranges may be answered without asking the cluster.
func serializable(r *pb.TxnRequest) bool {
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			if !op.GetRequestRange().GetSerializable() {
				return false
			}
		}
	}
	return true
}

// Compact answers KV.Compact; with physical set it waits until this member has deleted the rows.
func (s *Services) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	ctx, span := s.span(ctx, r)
	defer span.End()
	res, err := s.propose(ctx, "Compaction", &command.Command{Compact: &command.Compact{Revision: r.Revision}})
	if err != nil {
		return nil, err
	}
	if r.Physical && res.Compacted != nil {
		select {
		case <-res.Compacted:
		case <-ctx.Done():
			return nil, toStatus(ctx.Err())
		}
	}
	return &pb.CompactionResponse{Header: headerPB(s.b.Header(), s.b.Store().Revision())}, nil
}
