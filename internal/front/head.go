package front

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	// maxHeaderList bounds the fields of a call, as clients are told. grpc-go's server allows 16 MiB and tells nobody.
	maxHeaderList = 1 << 20
	// maxHeaderBlock bounds them as they come, and maxContinuations the frames that they come in.
	maxHeaderBlock   = maxHeaderList
	maxContinuations = 256
	// cachedHeads is how many sets of fields a connection remembers, and cachedBytes how large one may be.
	cachedHeads = 8
	cachedBytes = 4 << 10
)

// head is what the header fields of a call say, but for its timeout, which differs from call to call. Clients send the same
// fields with call after call, so a connection remembers some heads. It never changes once it is made.
type head struct {
	fields  []hpack.HeaderField // as they came, without grpc-timeout
	md      metadata.MD
	path    string
	method  *method // nil: there is none at this path
	subtype string  // of the content type
	packing string  // grpc-encoding, "" if it is identity
	refuse  *refusal
	notPost *refusal // to be looked at last
}

// unary tells whether a call is answered with one message.
func (h *head) unary() bool { return h.method != nil && h.method.unary != nil }

// refusal is the answer to a call that is not served, or, with a code, the end of its stream.
type refusal struct {
	http int
	st   *status.Status
	code http2.ErrCode
}

// headReader decodes the header blocks of a connection. It is the reader's.
type headReader struct {
	s       *Server
	dec     *hpack.Decoder
	fields  []hpack.HeaderField // of the block that was decoded last
	timeout string
	timed   bool
	left    int  // bytes that fields may still have
	long    bool // they had more
	regular bool // a field that is no pseudo-header was seen
	bad     bool // a field was malformed

	heads [cachedHeads]*head
	next  int // where the next one goes
}

func newHeadReader(s *Server) *headReader {
	r := &headReader{s: s}
	r.dec = hpack.NewDecoder(4096, r.take)
	r.dec.SetMaxStringLength(maxHeaderList)
	return r
}

// take gets each field of a block.
func (r *headReader) take(f hpack.HeaderField) {
	if strings.HasPrefix(f.Name, ":") {
		r.bad = r.bad || r.regular || !pseudo(f.Name)
		for i := range r.fields {
			r.bad = r.bad || r.fields[i].Name == f.Name
		}
	} else {
		r.regular = true
		r.bad = r.bad || !wireName(f.Name)
	}
	r.bad = r.bad || !httpguts.ValidHeaderFieldValue(f.Value)
	if r.left -= int(f.Size()); r.left < 0 {
		r.long = true
	}
	if r.bad || r.long {
		r.dec.SetEmitEnabled(false)
		return
	}
	if f.Name == "grpc-timeout" {
		r.timeout, r.timed = f.Value, true
		return
	}
	r.fields = append(r.fields, f)
}

func pseudo(name string) bool {
	switch name {
	case ":method", ":path", ":scheme", ":authority", ":protocol":
		return true
	}
	return false
}

// wireName tells whether a name may come over HTTP/2: a token without capital letters.
func wireName(name string) bool {
	if name == "" {
		return false
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; !httpguts.IsTokenRune(rune(c)) || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}

// read decodes a block, which must be done even for calls that are not served. The head is nil with a code if the stream is
// to be reset. timeout is negative if the client has set none.
func (r *headReader) read(block []byte) (h *head, timeout time.Duration, code http2.ErrCode, err error) {
	r.fields, r.timed, r.left, r.long, r.regular, r.bad = r.fields[:0], false, maxHeaderList, false, false, false
	r.dec.SetEmitEnabled(true)
	if _, err := r.dec.Write(block); err != nil {
		return nil, 0, 0, connError{http2.ErrCodeCompression, "header fields do not decode"}
	}
	if r.dec.Close() != nil {
		return nil, 0, 0, connError{http2.ErrCodeCompression, "header fields are cut off"}
	}
	switch {
	case r.long:
		return nil, 0, http2.ErrCodeFrameSize, nil
	case r.bad:
		return nil, 0, http2.ErrCodeProtocol, nil
	}
	timeout = -1
	if r.timed {
		if timeout, err = parseTimeout(r.timeout); err != nil {
			h := r.make(status.Newf(codes.Internal, "malformed grpc-timeout: %v", err))
			return h, -1, 0, nil
		}
	}
	return r.find(), timeout, 0, nil
}

// find returns the head that has these fields.
func (r *headReader) find() *head {
	for _, h := range r.heads {
		if h != nil && same(h.fields, r.fields) {
			return h
		}
	}
	h := r.make(nil)
	if maxHeaderList-r.left <= cachedBytes {
		r.heads[r.next] = h
		r.next = (r.next + 1) % cachedHeads
	}
	return h
}

func same(a, b []hpack.HeaderField) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Value != b[i].Value || a[i].Name != b[i].Name {
			return false
		}
	}
	return true
}

// make reads the fields. What is wrong with several things at once is answered as grpc-go does; wrong is what is wrong with
// the timeout.
func (r *headReader) make(wrong *status.Status) *head {
	h := &head{fields: append([]hpack.HeaderField(nil), r.fields...), md: make(metadata.MD, len(r.fields))}
	var verb, badType string
	grpcType, connection := false, false
	for _, f := range h.fields {
		switch f.Name {
		case "content-type":
			if sub, ok := contentSubtype(f.Value); ok {
				h.subtype, grpcType = sub, true
				h.md.Append(f.Name, f.Value)
			} else {
				badType = f.Value
			}
		case ":method":
			verb = f.Value
		case ":path":
			h.path = f.Value
		case "grpc-encoding":
			h.packing = f.Value
		case "connection":
			connection = true
		default:
			if reserved(f.Name) && f.Name != ":authority" && f.Name != "user-agent" {
				continue
			}
			v := f.Value
			if strings.HasSuffix(f.Name, "-bin") {
				var err error
				if v, err = unbinary64(v); err != nil {
					wrong = status.Newf(codes.Internal, "malformed binary metadata %q in header %q: %v", f.Value, f.Name, err)
					continue
				}
			}
			h.md[f.Name] = append(h.md[f.Name], v)
		}
	}
	if h.packing == "identity" {
		h.packing = ""
	}
	h.method = r.s.methods[h.path]
	h.refuse = h.judge(grpcType, connection, badType, wrong)
	if verb != http.MethodPost {
		h.notPost = &refusal{http: http.StatusMethodNotAllowed,
			st: status.Newf(codes.Internal, "Received a HEADERS frame with :method %q which should be POST", verb)}
	}
	return h
}

// judge finds what is wrong with the fields, and renames host, which an :authority stands for.
func (h *head) judge(grpcType, connection bool, badType string, wrong *status.Status) *refusal {
	authorities, hosts := len(h.md[":authority"]), len(h.md["host"])
	switch {
	case authorities > 1 || hosts > 1:
		return &refusal{http: http.StatusBadRequest, st: status.Newf(codes.Internal,
			"num values of :authority: %v, num values of host: %v, both must only have 1 value as per HTTP/2 spec", authorities, hosts)}
	case connection:
		return &refusal{code: http2.ErrCodeProtocol}
	case !grpcType:
		return &refusal{http: http.StatusUnsupportedMediaType, st: status.Newf(codes.InvalidArgument, "invalid gRPC request content-type %q", badType)}
	case wrong != nil:
		return &refusal{http: http.StatusBadRequest, st: wrong}
	case authorities+hosts == 0:
		return &refusal{http: http.StatusBadRequest, st: status.New(codes.Internal, "no host or :authority header present")}
	}
	if authorities == 0 {
		h.md[":authority"] = h.md["host"]
	}
	delete(h.md, "host")
	return nil
}

func contentSubtype(v string) (string, bool) {
	rest, ok := strings.CutPrefix(v, baseType)
	switch {
	case !ok:
		return "", false
	case rest == "":
		return "", true
	case rest[0] == '+' || rest[0] == ';':
		return rest[1:], true
	}
	return "", false
}

// parseTimeout reads grpc-timeout: up to eight digits and a unit.
func parseTimeout(s string) (time.Duration, error) {
	if len(s) < 2 {
		return 0, fmt.Errorf("transport: timeout string is too short: %q", s)
	}
	if len(s) > 9 {
		return 0, fmt.Errorf("transport: timeout string is too long: %q", s)
	}
	var unit time.Duration
	switch s[len(s)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, fmt.Errorf("transport: timeout unit is not recognized: %q", s)
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 64)
	if err != nil {
		return 0, err
	}
	if n > uint64(math.MaxInt64/unit) {
		return math.MaxInt64, nil
	}
	return time.Duration(n) * unit, nil
}

// The keys under which grpc-go keeps things in a context, learned from the functions that look them up.
var (
	metadataKey = keyOf(func(ctx context.Context) { metadata.FromIncomingContext(ctx) })
	peerKey     = keyOf(func(ctx context.Context) { peer.FromContext(ctx) })
	streamKey   = keyOf(func(ctx context.Context) { grpc.ServerTransportStreamFromContext(ctx) })
)
