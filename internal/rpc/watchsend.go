package rpc

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/watch"
)

// burst is what a stream of watchers has to send at one moment: an event for each of its watchers, most often. All of it
// leaves together, and its memory is used again.
type burst struct {
	answers []Answer
	buffers mem.BufferSlice // of answers
	arena   []byte          // of buffers, but for long events
	bytes   int

	events            int // in so many answers with events
	told, progressing int // answers with events, and with progress
}

// maxBurst and maxBurstBytes are what a burst stops growing at, but for the batch it has just got. keptArena and keptBuffers are the
// most memory that is used again.
const (
	maxBurst      = 64
	maxBurstBytes = 64 << 10
	keptArena     = 2 * maxBurstBytes
	keptBuffers   = 4 * maxBurst
)

var bursts = sync.Pool{New: func() any { return &burst{answers: make([]Answer, 0, maxBurst)} }}

func (o *burst) full() bool { return len(o.answers) >= maxBurst || o.bytes >= maxBurstBytes }

// sendBurst sends a burst, which is gone then.
func (s *Services) sendBurst(o *burst, stream WatchStream) error {
	if len(o.answers) == 0 {
		bursts.Put(o)
		return nil
	}
	begin := time.Now()
	if err := stream.Send(o.answers); err != nil {
		return err
	}
	took := time.Since(begin).Seconds() / float64(len(o.answers))
	s.m.Events.Add(float64(o.events))
	for range o.told {
		s.m.WatchSendSeconds.Observe(took)
		s.m.WatchSendPerEventSeconds.Observe(took * float64(o.told) / float64(o.events))
	}
	for range o.progressing {
		s.m.WatchProgressSeconds.Observe(took)
	}
	for range len(o.answers) - o.told - o.progressing {
		s.m.WatchControlSeconds.Observe(took)
	}
	o.empty()
	return nil
}

func (o *burst) empty() {
	clear(o.answers)
	clear(o.buffers)
	*o = burst{answers: o.answers[:0], buffers: o.buffers[:0], arena: o.arena[:0]}
	if cap(o.arena) <= keptArena && cap(o.buffers) <= keptBuffers {
		bursts.Put(o)
	}
}

// add adds one batch: as one answer, or in fragments if the watcher allows them and the answer is longer than a message of a
// client may be.
func (o *burst) add(s *Services, b *watch.Batch) {
	var head [2*maxHeaderBytes + 64]byte
	prefix := appendHeader(head[:0], s.b.Header(), b.Revision)
	prefix = appendVarint(prefix, watchID, uint64(b.ID))
	switch b.Kind {
	case watch.Events:
		o.addEvents(prefix, b, s.o.MaxRequestBytes+grpcOverheadBytes)
		return
	case watch.Created:
		prefix = appendBool(prefix, watchCreated, true)
	case watch.Refused:
		prefix = appendBool(prefix, watchCreated, true)
		prefix = appendBool(prefix, watchCanceled, true)
		prefix = appendBytes(prefix, watchReason, []byte(refusal(b.Err)))
	case watch.Canceled:
		prefix = appendBool(prefix, watchCanceled, true)
		if b.Err != nil {
			prefix = appendBytes(prefix, watchReason, []byte(refusal(b.Err)))
		}
	case watch.Compacted:
		prefix = appendBool(prefix, watchCanceled, true)
		prefix = appendVarint(prefix, watchCompact, uint64(b.CompactRevision))
	case watch.Progress:
		o.progressing++
	default:
		panic(fmt.Sprintf("rpc: a watch batch of kind %d", b.Kind))
	}
	from, buffer := o.begin()
	o.arena = append(o.arena, prefix...)
	o.end(from, buffer)
}

// begin begins an answer, and end ends it: what came to arena meanwhile, and then what came to buffers.
func (o *burst) begin() (from, buffer int) {
	o.buffers = append(o.buffers, nil)
	return len(o.arena), len(o.buffers) - 1
}

func (o *burst) end(from, buffer int) {
	o.buffers[buffer] = mem.SliceBuffer(o.arena[from:len(o.arena):len(o.arena)])
	o.answers = append(o.answers, Answer{Buffers: o.buffers[buffer:len(o.buffers):len(o.buffers)]})
	o.bytes += o.answers[len(o.answers)-1].Buffers.Len()
}

// inlineBytes is the length up to which the events of an answer are copied behind its header; longer ones are sent from
// the buffers that all watchers share.
const inlineBytes = 4 << 10

// addEvents adds the events of a batch, in answers that begin with prefix. With fragments none is longer than limit, unless one
// event is.
func (o *burst) addEvents(prefix []byte, b *watch.Batch, limit int) {
	events := b.Events
	for len(events) > 0 {
		n, size := 0, len(prefix)
		for n < len(events) {
			e := len(events[n].Wire(b.PrevKV, encodeEvent))
			if b.Fragment && n > 0 && size+e >= limit {
				break
			}
			n, size = n+1, size+e
		}
		from, buffer := o.begin()
		o.arena = appendBool(append(o.arena, prefix...), watchFragment, n < len(events))
		for _, e := range events[:n] {
			wire := e.Wire(b.PrevKV, encodeEvent)
			if size <= inlineBytes {
				o.arena = append(o.arena, wire...)
			} else {
				o.buffers = append(o.buffers, mem.SliceBuffer(wire))
			}
		}
		o.end(from, buffer)
		o.events += n
		o.told++
		events = events[n:]
	}
}

// refusal is the reason that etcd gives for a watcher that it does not make.
func refusal(err error) string {
	if _, ok := err.(watchRefusal); ok || errors.Is(err, watch.ErrEmptyRange) || errors.Is(err, watch.ErrDuplicateID) {
		return err.Error()
	}
	return Text(err)
}

// encodeEvent appends an event as the field events of a WatchResponse. It is what package watch keeps with the event.
func encodeEvent(dst []byte, e *watch.Event, prev *kv.KeyValue) []byte {
	body := sizeVarint(eventType, uint64(e.Type)) + sizeMessage(eventKV, sizeKeyValue(&e.KV))
	if prev != nil {
		body += sizeMessage(eventPrev, sizeKeyValue(prev))
	}
	dst = protowire.AppendTag(dst, watchEvents, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(body))
	dst = appendVarint(dst, eventType, uint64(e.Type))
	dst = appendKeyValue(dst, eventKV, &e.KV)
	if prev != nil {
		dst = appendKeyValue(dst, eventPrev, prev)
	}
	return dst
}

// sizeMessage is the size of a field that holds a message of n bytes; unlike bytes, an empty one is there.
func sizeMessage(field protowire.Number, n int) int {
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}
