package front_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/net/http2"
)

// What a call costs a server, ours and grpc-go's, without what a client costs: requests are bytes that were made before, and
// of answers only the ends of streams are looked at. Calls go out at once in bunches of what is named.
func BenchmarkCall(b *testing.B) {
	for _, bunch := range []int{1, 32} {
		for _, ours := range []bool{false, true} {
			b.Run(fmt.Sprintf("at once %d, ours %v", bunch, ours), func(b *testing.B) {
				benchmarkCall(b, ours, bunch)
			})
		}
	}
}

func benchmarkCall(b *testing.B, ours bool, bunch int) {
	_, _, addr := start(b, ours, options{})
	r := dial(b, addr, window(1<<30))
	r.ok(r.fr.WriteWindowUpdate(0, 1<<30))
	body := string(pattern(256))
	r.call(1, "Echo", body)
	r.until(1)
	fields := r.block(fields("Echo")...) // in the table of fields by now
	request := append(frameBytes(http2.FrameHeaders, http2.FlagHeadersEndHeaders, fields), frameBytes(http2.FrameData, http2.FlagDataEndStream, msg(body))...)
	second := 9 + len(fields)
	in := bufio.NewReaderSize(r.conn, 64<<10)
	id := uint32(3)
	out := make([]byte, 0, bunch*len(request))
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		out = out[:0]
		part := min(bunch, b.N-n)
		for range part {
			at := len(out)
			out = append(out, request...)
			binary.BigEndian.PutUint32(out[at+5:], id)
			binary.BigEndian.PutUint32(out[at+second+5:], id)
			id += 2
		}
		r.write(out)
		for ends := 0; ends < part; {
			head, err := in.Peek(9)
			if err != nil {
				b.Fatal(err)
			}
			if head[3] == byte(http2.FrameHeaders) && head[4]&byte(http2.FlagHeadersEndStream) != 0 {
				ends++
			}
			length := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
			if head[3] == byte(http2.FramePing) && head[4] == 0 {
				ping, _ := in.Peek(9 + length)
				r.write(frameBytes(http2.FramePing, http2.FlagPingAck, ping[9:]))
			}
			if _, err := in.Discard(9 + length); err != nil {
				b.Fatal(err)
			}
		}
		n += part
	}
}

func frameBytes(kind http2.FrameType, flags http2.Flags, payload []byte) []byte {
	n := len(payload)
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), byte(kind), byte(flags), 0, 0, 0, 0}, payload...)
}

// What an answer of 5 MB costs, with grpc-go's client, which is slow to widen its windows.
func BenchmarkLarge(b *testing.B) {
	for _, ours := range []bool{false, true} {
		b.Run(fmt.Sprintf("ours %v", ours), func(b *testing.B) {
			_, _, addr := start(b, ours, options{})
			conn := client(b, addr)
			in := []byte("5000000")
			var out []byte
			b.ReportAllocs()
			for range b.N {
				if err := conn.Invoke(b.Context(), "/test.Test/Give", &in, &out); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
