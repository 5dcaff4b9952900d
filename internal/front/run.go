package front

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// run runs the handler of a call, and sends what it returns.
func (s *Server) run(k *call) {
	defer s.handlers.Done()
	if s.o.Trace != nil {
		s.traced(k)
	} else {
		_ = k.handle()
	}
	k.c.returned(k)
}

// handle returns what went wrong, which the client has been told.
func (k *call) handle() error {
	m := k.head.method
	if m == nil {
		st := status.New(codes.Unimplemented, k.c.s.unknown(k.head.path))
		k.c.finish(k, st)
		return st.Err()
	}
	if name := k.head.packing; name != "" {
		if k.packer = encoding.GetCompressor(name); k.packer == nil {
			st := status.Newf(codes.Unimplemented, "grpc: Decompressor is not installed for grpc-encoding %q", name)
			k.c.finish(k, st)
			return st.Err()
		}
	}
	var err error
	if m.stream != nil {
		err = m.stream(m.impl, (*stream)(k))
	} else {
		err = k.handleUnary(m)
	}
	if err != nil {
		st, ok := status.FromError(err)
		if !ok {
			st = status.FromContextError(err)
			err = st.Err()
		}
		k.c.finish(k, st)
		return err
	}
	if m.stream != nil {
		k.c.finish(k, okStatus)
	}
	return nil
}

// handleUnary sends the answer too.
func (k *call) handleUnary(m *method) error {
	reply, err := m.unary(m.impl, k.ctx, k.receive, nil)
	if err != nil {
		return err
	}
	out, err := k.encode(reply)
	if err != nil {
		return err
	}
	err = k.c.answer(k, &out)
	out.free()
	return err
}

// outgoing is a message in the form in which it is sent.
type outgoing struct {
	from  any
	head  [msgHead]byte
	sent  int // bytes of head that were taken
	data  mem.BufferSlice
	size  int // of data
	plain int // of what data was before it was compressed
	part  int // index in data of what comes next, and how much of that was taken
	off   int
}

func (m *outgoing) left() int { return msgHead + m.size }

// free gives back what was not sent.
func (m *outgoing) free() { m.data[m.part:].Free() }

// appendNext appends the next n bytes. Memory is given back as soon as it was copied, so that a long answer finds it warm.
func (m *outgoing) appendNext(b []byte, n int) []byte {
	b, n = m.appendHead(b, n)
	for n > 0 {
		from := m.part
		data := m.next(n)
		b = append(b, data...)
		n -= len(data)
		m.data[from:m.part].Free()
	}
	return b
}

// appendHead appends what is left of the head, n bytes at most, and returns how many of n are left.
func (m *outgoing) appendHead(b []byte, n int) ([]byte, int) {
	part := min(n, msgHead-m.sent)
	b = append(b, m.head[m.sent:m.sent+part]...)
	m.sent += part
	return b, n - part
}

// next returns the next bytes of data as they lie there, n at most, perhaps none. Their memory is given back by the caller, once
// part is behind it.
func (m *outgoing) next(n int) []byte {
	data := m.data[m.part].ReadOnlyData()[m.off:]
	if m.off += min(n, len(data)); n >= len(data) {
		m.part, m.off = m.part+1, 0
	}
	return data[:min(n, len(data))]
}

// encode makes the wire form of a message.
func (k *call) encode(v any) (outgoing, error) {
	data, err := k.c.s.o.Codec.Marshal(v)
	if err != nil {
		return outgoing{}, status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	m := outgoing{from: v, data: data, size: data.Len()}
	m.plain = m.size
	if k.packer != nil && m.size > 0 {
		packed, err := pack(k.packer, data)
		if err != nil {
			data.Free()
			return outgoing{}, err
		}
		data.Free()
		m.data, m.size, m.head[0] = mem.BufferSlice{mem.SliceBuffer(packed)}, len(packed), 1
	}
	if m.size > math.MaxInt32 {
		m.free()
		return outgoing{}, status.Errorf(codes.ResourceExhausted, "trying to send message larger than max (%d vs. %d)", m.size, math.MaxInt32)
	}
	m.head[1], m.head[2], m.head[3], m.head[4] = byte(m.size>>24), byte(m.size>>16), byte(m.size>>8), byte(m.size)
	return m, nil
}

func pack(p encoding.Compressor, data mem.BufferSlice) ([]byte, error) {
	var out bytes.Buffer
	w, err := p.Compress(&out)
	for i := 0; i < len(data) && err == nil; i++ {
		_, err = w.Write(data[i].ReadOnlyData())
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: error while compressing: %v", err)
	}
	return out.Bytes(), nil
}

// unpack decompresses a message, of which no more than limit bytes may come.
func unpack(p encoding.Compressor, data []byte, limit int) ([]byte, error) {
	r, err := p.Decompress(bytes.NewReader(data))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: failed to decompress the message: %v", err)
	}
	out, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if c, ok := r.(io.Closer); ok {
		_ = c.Close()
	}
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: failed to read decompressed data: %v", err)
	}
	if len(out) > limit {
		return nil, status.Errorf(codes.ResourceExhausted, "grpc: received message after decompression larger than max %d", limit)
	}
	return out, nil
}

// traced is handle with Options.Trace told of everything, in grpc-go's order.
func (s *Server) traced(k *call) {
	t := s.o.Trace
	k.ctx = t.TagRPC(k, &stats.RPCTagInfo{FullMethodName: k.head.path})
	t.HandleRPC(k.ctx, &stats.InHeader{
		FullMethod: k.head.path, RemoteAddr: k.c.peer.Addr, LocalAddr: k.c.peer.LocalAddr,
		Compression: k.head.packing, WireLength: k.headBytes, Header: k.head.md.Copy(),
	})
	begin := &stats.Begin{BeginTime: time.Now(), IsClientStream: true, IsServerStream: true}
	if m := k.head.method; m != nil {
		begin.IsClientStream, begin.IsServerStream = m.clientStreams, m.serverStreams
	}
	t.HandleRPC(k.ctx, begin)
	err := k.handle()
	end := &stats.End{BeginTime: begin.BeginTime, EndTime: time.Now()}
	if err != nil && !errors.Is(err, io.EOF) {
		end.Error = err
	}
	t.HandleRPC(k.ctx, end)
}

func (k *call) traceReceived(v any, plain, packed int) {
	if t := k.c.s.o.Trace; t != nil {
		t.HandleRPC(k.ctx, &stats.InPayload{
			Payload: v, Length: plain, CompressedLength: packed, WireLength: packed + msgHead, RecvTime: time.Now(),
		})
	}
}

func (k *call) traceHeader() {
	if t := k.c.s.o.Trace; t != nil {
		h := &stats.OutHeader{Header: k.sentHeader()}
		if k.packer != nil {
			h.Compression = k.head.packing
		}
		t.HandleRPC(k.ctx, h)
	}
}

func (k *call) sentHeader() metadata.MD {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	return k.header.Copy()
}

func (k *call) traceSent(v any, m *outgoing) {
	if t := k.c.s.o.Trace; t != nil {
		t.HandleRPC(k.ctx, &stats.OutPayload{
			Payload: v, Length: m.plain, CompressedLength: m.size, WireLength: m.size + msgHead, SentTime: time.Now(),
		})
	}
}

func (k *call) traceTrailer() {
	if t := k.c.s.o.Trace; t != nil {
		k.c.mu.Lock()
		md := k.trailer.Copy()
		k.c.mu.Unlock()
		t.HandleRPC(k.ctx, &stats.OutTrailer{Trailer: md})
	}
}

var _ context.Context = (*call)(nil)
