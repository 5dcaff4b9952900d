package front_test

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// What a client does wrong with a connection ends it, with the code that RFC 9113 asks for. (grpc-go closes it without a word.)
func TestFaults(t *testing.T) {
	const (
		data = http2.FrameData
		head = http2.FrameHeaders
	)
	frame := func(kind http2.FrameType, flags http2.Flags, id uint32, payload ...byte) func(*raw) {
		return func(r *raw) { r.ok(r.fr.WriteRawFrame(kind, flags, id, payload)) }
	}
	zeros := func(n int) []byte { return make([]byte, n) }
	for name, c := range map[string]struct {
		code http2.ErrCode
		say  func(*raw)
	}{
		"frame too long":                  {http2.ErrCodeFrameSize, frame(data, 0, 1, zeros(16385)...)},
		"DATA without a stream":           {http2.ErrCodeProtocol, frame(data, 0, 0)},
		"DATA on an idle stream":          {http2.ErrCodeProtocol, frame(data, 0, 1, 0, 0)},
		"padding too long":                {http2.ErrCodeProtocol, frame(data, http2.FlagDataPadded, 1, 2, 0)},
		"padding of nothing":              {http2.ErrCodeFrameSize, frame(data, http2.FlagDataPadded, 1)},
		"HEADERS without a stream":        {http2.ErrCodeProtocol, frame(head, http2.FlagHeadersEndHeaders, 0)},
		"HEADERS short of a priority":     {http2.ErrCodeFrameSize, frame(head, http2.FlagHeadersEndHeaders|http2.FlagHeadersPriority, 1, 0, 0)},
		"header padding too long":         {http2.ErrCodeProtocol, frame(head, http2.FlagHeadersEndHeaders|http2.FlagHeadersPadded, 1, 9)},
		"field of no table":               {http2.ErrCodeCompression, frame(head, http2.FlagHeadersEndHeaders, 1, 0xff, 0xff, 0x7f)},
		"field cut off":                   {http2.ErrCodeCompression, frame(head, http2.FlagHeadersEndHeaders, 1, 0x40, 9, 'x')},
		"CONTINUATION of nothing":         {http2.ErrCodeProtocol, frame(http2.FrameContinuation, 0, 1)},
		"RST_STREAM of an idle stream":    {http2.ErrCodeProtocol, frame(http2.FrameRSTStream, 0, 1, 0, 0, 0, 0)},
		"RST_STREAM without a stream":     {http2.ErrCodeProtocol, frame(http2.FrameRSTStream, 0, 0, 0, 0, 0, 0)},
		"RST_STREAM of a wrong length":    {http2.ErrCodeFrameSize, frame(http2.FrameRSTStream, 0, 1, 0)},
		"SETTINGS on a stream":            {http2.ErrCodeProtocol, frame(http2.FrameSettings, 0, 1)},
		"SETTINGS of a wrong length":      {http2.ErrCodeFrameSize, frame(http2.FrameSettings, 0, 0, 1)},
		"acknowledgement with settings":   {http2.ErrCodeFrameSize, frame(http2.FrameSettings, http2.FlagSettingsAck, 0, zeros(6)...)},
		"window too large":                {http2.ErrCodeFlowControl, frame(http2.FrameSettings, 0, 0, 0, 4, 0x80, 0, 0, 0)},
		"frames too small":                {http2.ErrCodeProtocol, frame(http2.FrameSettings, 0, 0, 0, 5, 0, 0, 0, 1)},
		"PING on a stream":                {http2.ErrCodeProtocol, frame(http2.FramePing, 0, 1, zeros(8)...)},
		"PING of a wrong length":          {http2.ErrCodeFrameSize, frame(http2.FramePing, 0, 0, 1)},
		"PUSH_PROMISE":                    {http2.ErrCodeProtocol, frame(http2.FramePushPromise, 0, 1, zeros(4)...)},
		"PRIORITY without a stream":       {http2.ErrCodeProtocol, frame(http2.FramePriority, 0, 0, zeros(5)...)},
		"GOAWAY on a stream":              {http2.ErrCodeProtocol, frame(http2.FrameGoAway, 0, 1, zeros(8)...)},
		"WINDOW_UPDATE of nothing":        {http2.ErrCodeProtocol, frame(http2.FrameWindowUpdate, 0, 0, zeros(4)...)},
		"WINDOW_UPDATE too large":         {http2.ErrCodeFlowControl, frame(http2.FrameWindowUpdate, 0, 0, 0x7f, 0xff, 0xff, 0xff)},
		"WINDOW_UPDATE of a wrong length": {http2.ErrCodeFrameSize, frame(http2.FrameWindowUpdate, 0, 0, 1)},
		"WINDOW_UPDATE of an idle stream": {http2.ErrCodeProtocol, frame(http2.FrameWindowUpdate, 0, 1, 0, 0, 0, 1)},
		"header fields that are interrupted": {http2.ErrCodeProtocol, func(r *raw) {
			r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(fields("Echo")...)}))
			r.ok(r.fr.WritePing(false, [8]byte{}))
		}},
		"header fields continued elsewhere": {http2.ErrCodeProtocol, func(r *raw) {
			r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(fields("Echo")...)}))
			r.ok(r.fr.WriteContinuation(3, true, nil))
		}},
		"header fields without an end": {http2.ErrCodeEnhanceYourCalm, func(r *raw) {
			r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1}))
			for range 300 {
				r.ok(r.fr.WriteContinuation(1, false, nil))
			}
		}},
		"header fields of many bytes": {http2.ErrCodeEnhanceYourCalm, func(r *raw) {
			r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1}))
			for range 70 {
				r.ok(r.fr.WriteContinuation(1, false, bytes.Repeat([]byte{0x88}, 16384)))
			}
		}},
		"a first frame that is none of SETTINGS": {http2.ErrCodeProtocol, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, addr := start(t, true, options{})
			var r *raw
			if c.say == nil {
				r = dialWith(t, addr, func(r *raw) { r.ok(r.fr.WritePing(false, [8]byte{})) })
			} else {
				r = dial(t, addr)
				c.say(r)
			}
			r.untilNoted(0, "GOAWAY")
			if got := r.String(); !strings.Contains(got, " "+c.code.String()+" ") {
				t.Errorf("the connection ended with:\n%s\nnot with GOAWAY and %v", got, c.code)
			}
		})
	}
}

// What a client does wrong with a stream ends that alone.
func TestStreamFaults(t *testing.T) {
	for name, c := range map[string]struct {
		code http2.ErrCode
		say  func(*raw)
	}{
		"WINDOW_UPDATE of nothing": {http2.ErrCodeProtocol, func(r *raw) {
			r.call(1, "Wait", "x")
			r.ok(r.fr.WriteRawFrame(http2.FrameWindowUpdate, 0, 1, make([]byte, 4)))
		}},
		"WINDOW_UPDATE too large": {http2.ErrCodeFlowControl, func(r *raw) { r.call(1, "Wait", "x"); r.ok(r.fr.WriteWindowUpdate(1, 1<<31-1)) }},
		"more than the window": {http2.ErrCodeFlowControl, func(r *raw) {
			r.headers(1, false, fields("Deaf")...)
			r.data(1, false, bytes.Repeat(msg(string(pattern(1000))), 200))
		}},
		"PRIORITY of a wrong length": {http2.ErrCodeFrameSize, func(r *raw) { r.call(1, "Wait", "x"); r.ok(r.fr.WriteRawFrame(http2.FramePriority, 0, 1, []byte{1})) }},
		"a list of fields that is too long": {http2.ErrCodeFrameSize, func(r *raw) {
			b := r.block(fields("Echo", "long", strings.Repeat("0", 1<<20))...)
			r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:16384]}))
			for b = b[16384:]; len(b) > 16384; b = b[16384:] {
				r.ok(r.fr.WriteContinuation(1, false, b[:16384]))
			}
			r.ok(r.fr.WriteContinuation(1, true, b))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, addr := start(t, true, options{})
			r := dial(t, addr)
			c.say(r)
			r.untilNoted(1, "RST "+c.code.String())
			r.call(101, "Echo", "the connection goes on")
			r.until(101)
			if string(r.body[101]) != string(msg("the connection goes on")) {
				t.Errorf("then it said:\n%s", r)
			}
		})
	}
}

// A client that does not speak HTTP/2 is told so in it.
func TestNoPreface(t *testing.T) {
	_, _, addr := start(t, true, options{})
	r := dialWith(t, addr, nil)
	r.write([]byte("GET / HTTP/1.1\r\nHost: member\r\n\r\n"))
	r.untilEOF()
	if got := r.String(); !strings.Contains(got, "GOAWAY 0 PROTOCOL_ERROR") {
		t.Errorf("it was told:\n%s", got)
	}
}

// A client that takes no answer that begins as answers do is told so at once, also where several messages were to leave together.
func TestAnswersThatCannotBegin(t *testing.T) {
	_, _, addr := start(t, true, options{})
	r := dial(t, addr)
	r.ok(r.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 100}))
	r.call(1, "Many", "2")
	r.until(1)
	if got := r.String(); !strings.Contains(got, "RST INTERNAL_ERROR") {
		t.Errorf("it said:\n%s", got)
	}
}
