package front

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// inlineBytes is how long a message may be to be kept in its call, rather than in memory of its own.
const inlineBytes = 384

// call is one call from its header fields to its end. It is the context of its handler (context.go) and what grpc-go calls a
// ServerTransportStream; as a stream it is a grpc.ServerStream. Its fields belong to whom the groups say.
type call struct {
	c    *conn
	id   uint32
	head *head
	// headBytes is the length of the frame that began the call.
	headBytes int

	// Set before the handler runs.
	deadline time.Time       // zero: none
	ctx      context.Context // of the handler: the call itself, or what Trace made of it
	packer   encoding.Compressor
	seen     bool // RecvMsg has given a message

	in assembly // the reader's

	// Under c.mu.
	window     int64 // bytes that the client takes on this stream; negative after it has lowered its windows
	closed     bool  // nothing more is sent
	dispatched bool  // the handler was given to a worker
	orphan     bool  // and the call was cancelled before it was answered
	halfClosed bool  // the client has sent all that it will
	queued     bool  // in c.queue
	headerSent bool
	header     metadata.MD
	trailer    metadata.MD
	may        sync.Cond // the window has grown, it is the call's turn, or it is closed

	mu sync.Mutex // guards the following; may be taken under c.mu
	// What was received and not taken yet.
	messages  []message
	taken     int // of messages
	one       [1]message
	broken    error // what comes behind the messages; io.EOF: nothing
	arrived   sync.Cond
	unread    int // bytes of frames that belong to messages not taken
	allowance int // bytes that the client may still send
	credit    int // bytes taken that the client has not been told of
	// The context.
	err   error // why it has ended
	done  chan struct{}
	after []*hook
	timer *time.Timer

	buf [inlineBytes]byte
}

// message is one as it came.
type message struct {
	data   []byte
	slab   *[]byte // the pooled memory of data, or nil
	format byte    // 0, or 1 if it is compressed
}

// free gives the memory of a message back.
func (m *message) free(s *slabs) {
	if m.slab != nil {
		s.put(m.slab)
	}
	m.data, m.slab = nil, nil
}

func newCall(c *conn, id uint32, h *head, window int64) *call {
	k := &call{c: c, id: id, head: h, window: window, allowance: streamWindow}
	k.ctx = k
	k.may.L, k.arrived.L = &c.mu, &k.mu
	k.messages = k.one[:0]
	return k
}

// Method implements grpc.ServerTransportStream.
func (k *call) Method() string { return k.head.path }

// SetHeader implements grpc.ServerTransportStream: md goes with the headers.
func (k *call) SetHeader(md metadata.MD) error {
	if md.Len() == 0 {
		return nil
	}
	if err := validMetadata(md); err != nil {
		return err
	}
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	if k.headerSent || k.closed {
		return errHeaderSent
	}
	k.header = metadata.Join(k.header, md)
	return nil
}

// SendHeader implements grpc.ServerTransportStream: the headers go now.
func (k *call) SendHeader(md metadata.MD) error {
	if err := validMetadata(md); err != nil {
		return err
	}
	c := k.c
	c.mu.Lock()
	err := c.awaitRoom(k)
	if err == nil && k.headerSent {
		err = errHeaderSent
	}
	if err == nil {
		k.header = metadata.Join(k.header, md)
		err = c.appendHeader(k)
		c.flush(true)
	}
	c.mu.Unlock()
	if err == nil {
		k.traceHeader()
	}
	return err
}

// SetTrailer implements grpc.ServerTransportStream: md goes with the status.
func (k *call) SetTrailer(md metadata.MD) error {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	if k.closed {
		return errHeaderSent
	}
	k.trailer = metadata.Join(k.trailer, md)
	return nil
}

var errHeaderSent = status.Error(codes.Internal, "transport: SendHeader called multiple times")

// validMetadata holds the rules of gRPC for what a handler sends: names of small letters, digits and -_. and values that are
// printable ASCII, but for those of names that end in -bin.
func validMetadata(md metadata.MD) error {
	for name, values := range md {
		if name == "" {
			return status.Error(codes.Internal, "there is an empty key in the header")
		}
		for i := 0; i < len(name); i++ {
			c := name[i]
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_' || c == ':' && i == 0) {
				return status.Errorf(codes.Internal, "header key %q contains illegal characters not in [0-9a-z-_.]", name)
			}
		}
		if len(name) > 4 && name[len(name)-4:] == "-bin" {
			continue
		}
		for _, v := range values {
			for i := 0; i < len(v); i++ {
				if v[i] < ' ' || v[i] > '~' {
					return status.Errorf(codes.Internal, "header key %q contains value with non-printable ASCII characters", name)
				}
			}
		}
	}
	return nil
}

// stream is a call as its handler sees it.
type stream call

func (s *stream) call() *call { return (*call)(s) }

// Context implements grpc.ServerStream.
func (s *stream) Context() context.Context { return s.ctx }

// SetHeader implements grpc.ServerStream.
func (s *stream) SetHeader(md metadata.MD) error { return s.call().SetHeader(md) }

// SendHeader implements grpc.ServerStream.
func (s *stream) SendHeader(md metadata.MD) error { return s.call().SendHeader(md) }

// SetTrailer implements grpc.ServerStream.
func (s *stream) SetTrailer(md metadata.MD) { _ = s.call().SetTrailer(md) }

// RecvMsg implements grpc.ServerStream.
func (s *stream) RecvMsg(m any) error { return s.call().receive(m) }

// SendMsg implements grpc.ServerStream. One goroutine sends at a time. Nothing that m is made of is used any more when it returns.
func (s *stream) SendMsg(m any) error { return s.call().sendMsg(m, false) }

// SendAll sends messages as SendMsg would each, but lets them leave together.
func (s *stream) SendAll(ms []any) error {
	for i, m := range ms {
		if err := s.call().sendMsg(m, i < len(ms)-1); err != nil {
			return err
		}
	}
	return nil
}

func (k *call) sendMsg(m any, more bool) error {
	out, err := k.encode(m)
	if err == nil {
		defer out.free()
		err = k.c.send(k, &out, more)
	}
	if err != nil {
		k.c.finish(k, status.Convert(err))
		return err
	}
	k.traceSent(m, &out)
	return nil
}

// receive waits for the next message and decodes it. As in grpc-go, an error is told to the client too, and a message of a
// client that may send but one is not given before the client has said that there are no more.
func (k *call) receive(v any) error {
	err := k.receiveNext(v)
	if err != nil && !errors.Is(err, io.EOF) {
		k.c.finish(k, status.Convert(err))
	}
	return err
}

func (k *call) receiveNext(v any) error {
	many := k.head.method.clientStreams
	m, err := k.next()
	if errors.Is(err, io.EOF) && !many && !k.seen {
		return status.Error(codes.Internal, "cardinality violation: received no request message from non-client-streaming RPC")
	}
	if err != nil {
		return err
	}
	defer m.free(&k.c.s.slabs)
	data, err := k.unpack(m)
	if err != nil {
		return err
	}
	if err := k.c.s.o.Codec.Unmarshal(data, v); err != nil {
		return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
	}
	k.seen = true
	k.traceReceived(v, len(data), len(m.data))
	if many {
		return nil
	}
	second, err := k.next()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		defer second.free(&k.c.s.slabs)
		if _, err = k.unpack(second); err == nil {
			err = status.Error(codes.Internal, "cardinality violation: received multiple request messages for non-client-streaming RPC")
		}
	}
	return err
}

// next waits for the next message as it came. Its bytes are the caller's until the call ends.
func (k *call) next() (message, error) {
	k.mu.Lock()
	for k.err == nil && k.taken == len(k.messages) && k.broken == nil {
		k.arrived.Wait()
	}
	switch {
	case k.err != nil:
		defer k.mu.Unlock()
		return message{}, contextStatus(k.err)
	case k.taken == len(k.messages):
		defer k.mu.Unlock()
		return message{}, k.broken
	}
	m := k.messages[k.taken]
	k.messages[k.taken] = message{}
	if k.taken++; k.taken == len(k.messages) {
		k.messages, k.taken = k.messages[:0], 0
	}
	n := len(m.data) + msgHead
	k.unread -= n
	k.credit += n
	grant := 0
	if k.credit >= streamWindow/4 && k.broken == nil {
		grant, k.credit = k.credit, 0
		k.allowance += grant
	}
	k.mu.Unlock()
	k.c.unread.Add(-int64(n))
	if grant > 0 {
		k.c.grant(k, grant)
	}
	return m, nil
}

// unpack decompresses a message, if it is compressed.
func (k *call) unpack(m message) ([]byte, error) {
	switch {
	case m.format == 0:
		return m.data, nil
	case m.format > 1:
		return nil, status.Errorf(codes.Internal, "grpc: received unexpected payload format %d", m.format)
	case k.packer == nil: // a call with an encoding that nobody knows has not come this far
		return nil, status.Error(codes.Internal, "grpc: compressed flag set with identity or empty encoding")
	}
	return unpack(k.packer, m.data, k.c.s.o.MaxRecvBytes)
}

// contextStatus is what a call answers whose context has ended by err.
func contextStatus(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	return status.Error(codes.Canceled, err.Error())
}
