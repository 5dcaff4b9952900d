package front

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// The fields that almost every answer has. Each enters the client's dynamic table (RFC 7541, section 2.3) when it is first
// sent, and nothing else ever does: from then on an answer's headers are three bytes and its trailers two.
const (
	typeGRPC  = iota // content-type: application/grpc
	statusOK         // grpc-status: 0
	emptyText        // grpc-message:
	knownCount
)

const baseType = "application/grpc"

// known are these fields as literals (RFC 7541, section 6.2), without the byte that says what kind of literal.
var known = [knownCount]struct {
	enter, plain byte // that byte (and, for a name of the static table, the index in it), to enter the table and not to
	rest         []byte
}{
	typeGRPC:  {0x40 | 31, 0x0f, appendText(nil, baseType)}, // 31: content-type
	statusOK:  {0x40, 0, appendText(appendText(nil, "grpc-status"), "0")},
	emptyText: {0x40, 0, appendText(appendText(nil, "grpc-message"), "")},
}

// encoder is what it is known that the client's table holds. Blocks must be sent in the order in which they are encoded.
type encoder struct {
	entered int             // fields in the table, at most knownCount
	at      [knownCount]int // which one it was, from 1; 0: not entered
	off     bool            // the client's table is too small
	reset   bool            // the client must be told that the table is not used
}

// resize takes the client's bound of its table.
func (e *encoder) resize(n uint32) {
	if n < 4096 && !e.off {
		*e = encoder{off: true, reset: true}
	}
}

// begin begins a block.
func (e *encoder) begin(b []byte) []byte {
	if e.reset {
		e.reset = false
		b = append(b, 0x20) // the table's size is 0
	}
	return b
}

func (e *encoder) known(b []byte, which int) []byte {
	switch k := &known[which]; {
	case e.at[which] != 0:
		return append(b, 0x80|byte(62+e.entered-e.at[which])) // 62 is the youngest entry
	case e.off:
		b = append(b, k.plain)
		if k.plain == 0x0f {
			b = append(b, 31-15)
		}
		return append(b, k.rest...)
	default:
		e.entered++
		e.at[which] = e.entered
		return append(append(b, k.enter), k.rest...)
	}
}

// appendInt appends a number behind the first bits of a byte (RFC 7541, section 5.1); bits is how many of it are free.
func appendInt(b []byte, first byte, bits int, n int) []byte {
	full := 1<<bits - 1
	if n < full {
		return append(b, first|byte(n))
	}
	b = append(b, first|byte(full))
	for n -= full; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func appendText(b []byte, s string) []byte { return append(appendInt(b, 0, 7, len(s)), s...) }

// field is a literal that does not enter the table.
func (e *encoder) field(b []byte, name, value string) []byte {
	return appendText(appendText(append(b, 0), name), value)
}

// answerHead appends the block that begins an answer. extra holds the fields that are not in every answer.
func (e *encoder) answerHead(b []byte, httpStatus int, subtype string, extra []field) []byte {
	b = e.begin(b)
	if httpStatus == 200 {
		b = append(b, 0x88)
	} else {
		b = appendText(append(b, 0x08), strconv.Itoa(httpStatus))
	}
	if subtype == "" {
		b = e.known(b, typeGRPC)
	} else {
		b = e.field(b, "content-type", baseType+"+"+subtype)
	}
	for _, f := range extra {
		b = e.field(b, f.name, f.value)
	}
	return b
}

// answerEnd appends the fields that end an answer.
func (e *encoder) answerEnd(b []byte, st *status.Status, extra []field) []byte {
	code, text := st.Code(), st.Message()
	if code == 0 {
		b = e.known(b, statusOK)
	} else {
		b = e.field(b, "grpc-status", strconv.Itoa(int(code)))
	}
	if text == "" {
		b = e.known(b, emptyText)
	} else {
		b = e.field(b, "grpc-message", percent(text))
	}
	for _, f := range extra {
		b = e.field(b, f.name, f.value)
	}
	return b
}

// field is a header field that is not in every answer.
type field struct{ name, value string }

const detailsField = "grpc-status-details-bin"

// detailFields are the details of a status, if it has any, and a call's trailer metadata.
func detailFields(st *status.Status, md metadata.MD) []field {
	var out []field
	details := false
	if st.Code() != 0 {
		if p := st.Proto(); len(p.GetDetails()) > 0 {
			if b, err := proto.Marshal(p); err == nil {
				out, details = append(out, field{detailsField, binary64(string(b))}), true
			}
		}
	}
	for _, f := range metadataFields(md) {
		if !details || f.name != detailsField {
			out = append(out, f)
		}
	}
	return out
}

// metadataFields leaves out what only the server itself may say.
func metadataFields(md metadata.MD) []field {
	var out []field
	for name, values := range md {
		if reserved(name) {
			continue
		}
		for _, v := range values {
			if strings.HasSuffix(name, "-bin") {
				v = binary64(v)
			}
			out = append(out, field{name, v})
		}
	}
	return out
}

// reserved tells whether a header field is the protocol's.
func reserved(name string) bool {
	switch name {
	case "content-type", "user-agent", "grpc-message-type", "grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout", "te":
		return true
	}
	return strings.HasPrefix(name, ":")
}

func binary64(v string) string { return base64.RawStdEncoding.EncodeToString([]byte(v)) }

func unbinary64(v string) (string, error) {
	enc := base64.RawStdEncoding
	if len(v)%4 == 0 {
		enc = base64.StdEncoding // with padding, or without need for any
	}
	b, err := enc.DecodeString(v)
	return string(b), err
}

// percent is the form of grpc-message: what is not printable ASCII, and the sign itself, as %XX; what is not UTF-8 becomes
// the replacement character.
func percent(s string) string {
	plain := true
	for i := 0; i < len(s); i++ {
		plain = plain && s[i] >= ' ' && s[i] <= '~' && s[i] != '%'
	}
	if plain {
		return s
	}
	var out strings.Builder
	for _, r := range s {
		if r >= ' ' && r <= '~' && r != '%' {
			out.WriteByte(byte(r))
			continue
		}
		var b [utf8.UTFMax]byte
		for _, c := range b[:utf8.EncodeRune(b[:], r)] {
			fmt.Fprintf(&out, "%%%02X", c)
		}
	}
	return out.String()
}

// listSize is what fields count for under the client's bound of a header list.
func listSize(fields []field) int {
	n := 0
	for _, f := range fields {
		n += len(f.name) + len(f.value) + 32
	}
	return n
}
