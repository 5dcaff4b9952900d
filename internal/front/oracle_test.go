package front_test

import (
	"bytes"
	"compress/gzip"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// conversations are held with front and with grpc-go's server; what both say must be the same.
var conversations = map[string]func(*raw){
	"answer":           func(r *raw) { r.call(1, "Echo", "hello"); r.until(1) },
	"empty answer":     func(r *raw) { r.call(1, "Echo", ""); r.until(1) },
	"several in a row": func(r *raw) { r.call(1, "Echo", "a"); r.until(1); r.call(3, "Echo", "b"); r.until(3) },
	"several at once": func(r *raw) {
		for id := uint32(1); id < 40; id += 2 {
			r.call(id, "Echo", strings.Repeat("x", int(id)))
		}
		for id := uint32(1); id < 40; id += 2 {
			r.until(id)
		}
	},
	"in small frames": func(r *raw) {
		r.headers(1, false, fields("Echo")...)
		for _, b := range msg("in small frames") {
			r.data(1, false, []byte{b})
		}
		r.data(1, true, nil)
		r.until(1)
	},
	"interleaved": func(r *raw) {
		a, b := msg("first"), msg("second")
		r.headers(1, false, fields("Echo")...)
		r.headers(3, false, fields("Echo")...)
		r.data(1, false, a[:3])
		r.data(3, false, b[:7])
		r.data(1, true, a[3:])
		r.data(3, true, b[7:])
		r.until(1, 3)
	},
	"large both ways": func(r *raw) { r.call(1, "Echo", string(pattern(60_000))); r.until(1) },
	"large enough to need windows": func(r *raw) {
		r.headers(1, false, fields("Size")...)
		r.ok(r.fr.WriteData(1, false, msg(string(pattern(200_000)))[:5])) // the server lets the whole message in by its length
		r.sync()
		body := pattern(200_000)
		r.windowed(1, body)
		r.until(1)
	},
	"padding": func(r *raw) {
		r.headers(1, false, fields("Echo")...)
		r.ok(r.fr.WriteDataPadded(1, true, msg("padded"), make([]byte, 200)))
		r.until(1)
	},
	"padded headers with a priority": func(r *raw) {
		r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 1, BlockFragment: r.block(fields("Echo")...), EndHeaders: true, PadLength: 9,
			Priority: http2.PriorityParam{StreamDep: 0, Weight: 3},
		}))
		r.ok(r.fr.WritePriority(1, http2.PriorityParam{Weight: 9}))
		r.data(1, true, msg("x"))
		r.until(1)
	},
	"continued headers": func(r *raw) {
		b := r.block(fields("Seen", "long", strings.Repeat("y", 2000))...)
		r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:10]}))
		r.ok(r.fr.WriteContinuation(1, false, b[10:500]))
		r.ok(r.fr.WriteContinuation(1, true, b[500:]))
		r.data(1, true, msg(""))
		r.until(1)
	},
	"what the handler sees": func(r *raw) {
		r.call(1, "Seen", "", "token", "abc", "token", "def", "x-bin", "AAEC", "x-bin", "AAE", "grpc-timeout", "1H", "grpc-accept-encoding", "gzip", "grpc-previous-rpc-attempts", "2")
		r.until(1)
	},

	"error":                   func(r *raw) { r.call(1, "Fail", "because"); r.until(1) },
	"error in odd letters":    func(r *raw) { r.call(1, "Fail", "100 % ü \x01\xff\n"); r.until(1) },
	"error with details":      func(r *raw) { r.call(1, "Fail", "details"); r.until(1) },
	"error of no status":      func(r *raw) { r.call(1, "Fail", "plain"); r.until(1) },
	"error of a context":      func(r *raw) { r.call(1, "Fail", "deadline"); r.until(1) },
	"wrapped error":           func(r *raw) { r.call(1, "Fail", "wrapped"); r.until(1) },
	"metadata":                func(r *raw) { r.call(1, "Meta", "x"); r.until(1) },
	"metadata at once":        func(r *raw) { r.call(1, "Meta", "send"); r.until(1) },
	"metadata and an error":   func(r *raw) { r.call(1, "Meta", "error"); r.until(1) },
	"long error":              func(r *raw) { r.call(1, "Fail", strings.Repeat("long ", 8000)); r.until(1) },
	"answer does not encode":  func(r *raw) { r.call(1, "Echo", "unencodable"); r.until(1) },
	"request does not decode": func(r *raw) { r.call(1, "Echo", "undecodable"); r.until(1) },
	"unknown method":          func(r *raw) { r.call(1, "None", ""); r.until(1) },
	"unknown service": func(r *raw) {
		f := fields("None")
		f[5] = "/other.Other/None"
		r.headers(1, true, f...)
		r.until(1)
	},
	"malformed paths": func(r *raw) {
		for i, path := range []string{"", "Echo", "/Echo", "test.Test/Echo", "//", "/test.Test/", "/a/b/c"} {
			f := fields("None")
			f[5] = path
			r.headers(uint32(2*i+1), true, f...)
			r.until(uint32(2*i + 1))
		}
	},
	"content types": func(r *raw) {
		for i, kind := range []string{"application/grpc+proto", "application/grpc+other", "application/grpc;x", "application/grpcx", "text/plain", "", "application/grpc+"} {
			f := fields("Echo")
			f[9] = kind
			id := uint32(2*i + 1)
			r.headers(id, false, f...)
			r.data(id, true, msg("x"))
			r.until(id)
		}
	},
	"no content type": func(r *raw) { r.headers(1, true, fields("Echo")[:8]...); r.until(1) },
	"GET":             func(r *raw) { f := fields("Echo"); f[1] = "GET"; r.headers(1, false, f...); r.until(1) },
	"no authority":    func(r *raw) { f := fields("Echo"); r.headers(1, true, append(f[:6:6], f[8:]...)...); r.until(1) },
	"host": func(r *raw) {
		f := fields("Seen", "host", "h")
		r.headers(1, false, append(f[:6:6], f[8:]...)...)
		r.data(1, true, msg(""))
		r.until(1)
	},
	"host besides":     func(r *raw) { r.call(1, "Seen", "", "host", "h"); r.until(1) },
	"two hosts":        func(r *raw) { r.call(1, "Seen", "", "host", "h", "host", "i"); r.until(1) },
	"connection field": func(r *raw) { r.headers(1, true, fields("Echo", "connection", "close")...); r.until(1) },
	"timeouts": func(r *raw) {
		for i, timeout := range []string{"1H", "99999999H", "1", "", "x", "1x", "123456789S", "-1S", "0n", "99999999n", "1M"} {
			id := uint32(2*i + 1)
			r.call(id, "Echo", "x", "grpc-timeout", timeout)
			r.until(id)
		}
	},
	"binary field that is none": func(r *raw) { r.call(1, "Echo", "x", "a-bin", "=?"); r.until(1) },
	"capital letters":           func(r *raw) { r.headers(1, true, fields("Echo", "Upper", "x")...); r.until(1) },
	"control letters":           func(r *raw) { r.headers(1, true, fields("Echo", "ctl", "a\x00b")...); r.until(1) },
	"pseudo field behind":       func(r *raw) { r.headers(1, true, append(fields("Echo"), ":late", "x")...); r.until(1) },
	"pseudo field twice":        func(r *raw) { r.headers(1, true, append([]string{":path", "/"}, fields("Echo")...)...); r.until(1) },
	"pseudo field of answers":   func(r *raw) { r.headers(1, true, append([]string{":status", "200"}, fields("Echo")...)...); r.until(1) },

	"message too long": func(r *raw) {
		r.headers(1, false, fields("Echo")...)
		r.data(1, false, []byte{0, 0, 4, 0, 1})
		r.until(1)
	},
	"messages of unknown forms": func(r *raw) {
		for i, format := range []byte{1, 2, 255} {
			id := uint32(2*i + 1)
			r.headers(id, false, fields("Echo")...)
			r.data(id, true, formatted(format, "x"))
			r.until(id)
		}
	},
	"unknown encoding": func(r *raw) {
		r.headers(1, false, fields("Echo", "grpc-encoding", "snappy")...)
		r.data(1, true, msg("x"))
		r.until(1)
	},
	"identity": func(r *raw) {
		r.call(1, "Echo", "x", "grpc-encoding", "identity")
		r.until(1)
		r.headers(3, false, fields("Echo", "grpc-encoding", "identity")...)
		r.data(3, true, formatted(1, "x"))
		r.until(3)
	},
	"gzip": func(r *raw) {
		r.headers(1, false, fields("Echo", "grpc-encoding", "gzip")...)
		r.data(1, true, formatted(1, zipped("compressed")))
		r.call(3, "Echo", "not compressed", "grpc-encoding", "gzip")
		r.call(5, "Echo", "", "grpc-encoding", "gzip")
		r.headers(7, false, fields("Echo", "grpc-encoding", "gzip")...)
		r.data(7, true, formatted(1, "no gzip"))
		r.headers(9, false, fields("Size", "grpc-encoding", "gzip")...)
		r.data(9, true, formatted(1, zipped(strings.Repeat("a", maxRecv+1))))
		r.call(11, "Fail", "x", "grpc-encoding", "gzip")
		r.until(1, 3, 5, 7, 9, 11)
	},
	"two requests": func(r *raw) {
		r.headers(1, false, fields("Echo")...)
		r.data(1, false, append(msg("a"), msg("b")...)) // with an end grpc-go may or may not have seen that in time
		r.until(1)
	},
	"no request": func(r *raw) {
		r.headers(1, true, fields("Echo")...)
		r.headers(3, false, fields("Echo")...)
		r.data(3, true, nil)
		r.headers(5, true, fields("Many")...)
		r.until(1, 3, 5)
	},
	"cut requests": func(r *raw) {
		for i, n := range []int{1, 5, 8} {
			id := uint32(6*i + 1)
			r.headers(id, false, fields("Echo")...)
			r.data(id, true, msg("whole")[:n])
			r.headers(id+2, false, fields("Echo")...)
			r.data(id+2, true, append(msg("x"), msg("whole")[:n]...))
			r.headers(id+4, false, fields("Collect")...)
			r.data(id+4, true, append(msg("x"), msg("whole")[:n]...))
			r.until(id, id+2, id+4)
		}
	},

	"stream": func(r *raw) {
		r.headers(1, false, fields("Bidi")...)
		for _, m := range []string{"a", "", string(pattern(3000)), "b"} {
			r.data(1, false, msg(m))
		}
		r.untilBody(1, 4*5+3002)
		r.data(1, true, nil)
		r.until(1)
	},
	"stream without messages":  func(r *raw) { r.headers(1, true, fields("Bidi")...); r.until(1) },
	"stream that ends early":   func(r *raw) { r.headers(1, false, fields("Early")...); r.data(1, false, msg("over")); r.until(1) },
	"stream that is undecoded": func(r *raw) { r.headers(1, false, fields("Bidi")...); r.data(1, false, msg("undecodable")); r.until(1) },
	"stream with a long one": func(r *raw) {
		r.headers(1, false, fields("Bidi")...)
		r.data(1, false, msg("x"))
		r.data(1, false, []byte{0, 0, 4, 0, 1})
		r.until(1)
	},
	"many answers": func(r *raw) { r.call(1, "Many", "1000"); r.until(1) },
	"many requests": func(r *raw) {
		r.headers(1, false, fields("Collect")...)
		r.data(1, true, bytes.Repeat(msg("12345678"), 4000))
		r.until(1)
	},
	"more requests than few": func(r *raw) {
		r.headers(1, false, fields("Many")...)
		r.data(1, false, append(msg("1"), msg("1")...))
		r.until(1)
	},
	"data behind the end": func(r *raw) { r.call(1, "Wait", "x"); r.data(1, false, msg("y")); r.until(1) },
	"deadline":            func(r *raw) { r.call(1, "Hold", "x", "grpc-timeout", "50m"); r.until(1) },
	"illegal stream id":   func(r *raw) { r.headers(2, true, fields("Echo")...); r.untilNoted(0, "GOAWAY") },
	"stream id that was used": func(r *raw) {
		r.call(5, "Echo", "x")
		r.until(5)
		r.headers(3, true, fields("Echo")...)
		r.untilNoted(0, "GOAWAY")
	},
	"pings": func(r *raw) {
		r.ok(r.fr.WritePing(false, [8]byte{1, 2}))
		r.untilNoted(0, "PONG 0102")
		r.call(1, "Echo", "x")
		r.until(1)
	},
	"too many pings": func(r *raw) {
		for range 10 {
			r.ok(r.fr.WritePing(false, [8]byte{}))
		}
		r.untilNoted(0, "GOAWAY")
		r.note(0, "answers: %d", strings.Count(r.log[0].String(), "PONG"))
	},
	"frames of other kinds": func(r *raw) {
		r.ok(r.fr.WriteRawFrame(77, 0xff, 0, []byte("unknown")))
		r.ok(r.fr.WriteRawFrame(78, 0xff, 9, []byte("unknown")))
		r.call(1, "Echo", "x")
		r.until(1)
	},
	"GOAWAY of a client": func(r *raw) { r.call(1, "Echo", "x"); r.ok(r.fr.WriteGoAway(0, 0, nil)); r.until(1) },
	"small table of fields": func(r *raw) {
		r.call(1, "Echo", "x")
		r.until(1)
		r.ok(r.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}))
		r.fr.ReadMetaHeaders.SetMaxDynamicTableSize(0)
		r.sync()
		r.call(3, "Meta", "x")
		r.call(5, "Echo", "x")
		r.until(3, 5)
		r.ok(r.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 8192}))
		r.call(7, "Echo", "x")
		r.until(7)
	},
	"no list of fields so long": func(r *raw) {
		r.ok(r.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1000}))
		r.sync()
		r.call(1, "Fail", strings.Repeat("long", 1000))
		r.call(3, "Echo", "x")
		r.until(1, 3)
	},
}

// windowed sends a message in frames, waiting between them for what a server allows.
func (r *raw) windowed(id uint32, b []byte) {
	for len(b) > 0 {
		n := min(len(b), 16384)
		r.ok(r.fr.WriteData(id, n == len(b), b[:n]))
		b = b[n:]
		r.sync()
	}
}

func zipped(s string) string {
	var b strings.Builder
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(s))
	_ = w.Close()
	return b.String()
}

func TestSameAsGRPC(t *testing.T) {
	for name, talk := range conversations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got [2]string
			for i, ours := range []bool{false, true} {
				_, _, addr := start(t, ours, options{})
				r := dial(t, addr)
				talk(r)
				got[i] = r.String()
			}
			if got[0] != got[1] {
				t.Errorf("grpc-go says:\n%s\nand we:\n%s", got[0], got[1])
			}
		})
	}
}
