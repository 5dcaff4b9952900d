package front_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// window is a client's initial window of each stream.
func window(n uint32) http2.Setting { return http2.Setting{ID: http2.SettingInitialWindowSize, Val: n} }

// A stream gets what its window allows, and not a byte more, whatever other streams do.
func TestStreamWindow(t *testing.T) {
	_, _, addr := start(t, true, options{minTime: time.Nanosecond})
	r := dial(t, addr, window(0))
	r.call(1, "Echo", "waits")
	r.call(3, "Fail", "a status needs no window")
	r.until(3)
	r.sync()
	if len(r.body[1]) > 0 {
		t.Fatalf("%d bytes came without a window", len(r.body[1]))
	}
	want := msg("waits")
	for n := 1; n <= len(want); n++ {
		r.ok(r.fr.WriteWindowUpdate(1, 1))
		r.untilBody(1, n)
		r.sync()
		if !bytes.Equal(r.body[1], want[:n]) {
			t.Fatalf("after %d bytes of window there are %q", n, r.body[1])
		}
	}
	r.until(1)
}

// Lowering the window of all streams may leave one with less than nothing: then nothing comes until it is positive again.
func TestNegativeWindow(t *testing.T) {
	_, _, addr := start(t, true, options{minTime: time.Nanosecond})
	r := dial(t, addr, window(100))
	r.call(1, "Give", "1000")
	r.untilBody(1, 100)
	r.ok(r.fr.WriteSettings(window(10))) // -90
	r.ok(r.fr.WriteWindowUpdate(1, 90))  // 0
	r.sync()
	if len(r.body[1]) != 100 {
		t.Fatalf("%d bytes came in a window of 100", len(r.body[1]))
	}
	r.ok(r.fr.WriteWindowUpdate(1, 5))
	r.untilBody(1, 105)
	r.sync()
	if len(r.body[1]) != 105 {
		t.Fatalf("%d bytes came in windows of 105", len(r.body[1]))
	}
	r.ok(r.fr.WriteSettings(window(2000)))
	r.until(1)
	if want := msg(string(pattern(1000))); !bytes.Equal(r.body[1], want) {
		t.Error("another answer came than was sent")
	}
}

// All streams together get what the connection's window allows; each gets a share.
func TestConnectionWindow(t *testing.T) {
	_, _, addr := start(t, true, options{minTime: time.Nanosecond})
	r := dial(t, addr, window(1<<20))
	const calls = 5
	for i := range uint32(calls) {
		r.call(2*i+1, "Give", "100000")
	}
	total := func() (n int) {
		for i := range uint32(calls) {
			n += len(r.body[2*i+1])
		}
		return n
	}
	for total() < 65535 {
		r.one()
	}
	r.sync()
	if total() != 65535 {
		t.Fatalf("%d bytes came in a window of 65535", total())
	}
	// A status is no data, and a call that the client gives up gives up its turn.
	r.call(11, "Fail", "x")
	r.until(11)
	r.ok(r.fr.WriteRSTStream(5, http2.ErrCodeCancel))
	for allowed := 65535; allowed < 4*100_005+200_000; {
		r.ok(r.fr.WriteWindowUpdate(0, 30_000))
		allowed += 30_000
		r.sync()
		if total() > allowed {
			t.Fatalf("%d bytes came in a window of %d", total(), allowed)
		}
	}
	r.until(1, 3, 7, 9)
	want := msg(string(pattern(100_000)))
	for _, id := range []uint32{1, 3, 7, 9} {
		if !bytes.Equal(r.body[id], want) {
			t.Errorf("stream %d got another answer than was sent", id)
		}
	}
}

// A client that takes windows back gets its answers when it gives them again, and one that goes away ends what waits.
func TestEndWhileWaiting(t *testing.T) {
	s, _, addr := start(t, true, options{minTime: time.Nanosecond})
	r := dial(t, addr, window(10))
	r.call(1, "Give", "100000")
	r.call(3, "Begun", "on the same connection")
	r.call(5, "Begun", "cancelled")
	r.untilNoted(3, "HEADERS")
	r.untilNoted(5, "HEADERS")
	r.untilBody(1, 10)
	r.ok(r.fr.WriteRSTStream(5, http2.ErrCodeCancel))
	if err := s.waited(t, "cancelled"); !errors.Is(err, context.Canceled) {
		t.Errorf("the context ended with %v", err)
	}
	_ = r.conn.Close()
	if err := s.waited(t, "on the same connection"); !errors.Is(err, context.Canceled) {
		t.Errorf("the context ended with %v", err)
	}
}

// A deadline is kept for a call whose request never comes whole.
func TestDeadlineWhileUploading(t *testing.T) {
	_, _, addr := start(t, true, options{})
	r := dial(t, addr)
	r.headers(1, false, fields("Echo", "grpc-timeout", "50m")...)
	r.data(1, false, msg("half of it")[:7])
	r.until(1)
	if got := r.String(); got != "-- 1\nRST CANCEL\n" {
		t.Errorf("it said:\n%s", got)
	}
}

// Whoever waits for his turn is woken when the connection ends, and when his call does.
func TestEndWhileQueued(t *testing.T) {
	_, srv, addr := start(t, true, options{minTime: time.Nanosecond})
	for n := range 20 {
		r := dial(t, addr, window(1<<20))
		for i := range uint32(8) {
			r.call(2*i+1, "Give", "100000")
		}
		r.untilSum(65535)
		r.sync()
		r.ok(r.fr.WriteRSTStream(3, http2.ErrCodeCancel))
		r.ok(r.fr.WriteRSTStream(7, http2.ErrCodeCancel))
		r.ok(r.fr.WriteWindowUpdate(0, 1000))
		if n%2 == 0 {
			_ = r.conn.Close()
		}
	}
	srv.Stop() // returns when all handlers have
}

// What calls leave unread does not stand in the way of others, and windows are given back.
func TestUnreadRequests(t *testing.T) {
	_, _, addr := start(t, true, options{minTime: time.Nanosecond})
	r := dial(t, addr)
	// Each begins a message of 100,000 bytes that does not end: 4 MiB together, four times the connection's window.
	id := uint32(1)
	for range 40 {
		r.headers(id, false, fields("Size")...)
		r.data(id, false, msg(string(pattern(100_000)))[:99_000])
		r.sync()
		id += 2
	}
	r.call(id, "Size", "123")
	r.until(id)
	for i := uint32(1); i < id; i += 2 {
		r.data(i, true, pattern(100_000)[99_000-5:])
		r.until(i)
		if got := string(r.body[i]); got != string(msg("100000")) {
			t.Fatalf("the size was %q", got)
		}
	}
}

// client is grpc-go's.
func client(t testing.TB, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(grpcCodec{}), grpc.MaxCallRecvMsgSize(1<<30)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	t.Cleanup(cancel)
	return ctx
}

// grpc-go's client gets whole answers, small and large, from many goroutines at once, some of which give up.
func TestClient(t *testing.T) {
	for _, wrap := range []bool{false, true} {
		t.Run(fmt.Sprintf("wrap %v", wrap), func(t *testing.T) {
			_, _, addr := start(t, true, options{minTime: time.Nanosecond, wrap: wrap})
			testClient(t, client(t, addr))
		})
	}
}

func testClient(t *testing.T, conn *grpc.ClientConn) {
	ctx := within(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 100 {
				in, out := pattern(n*i*100), []byte(nil)
				if err := conn.Invoke(ctx, "/test.Test/Echo", &in, &out); err != nil || !bytes.Equal(in, out) {
					t.Errorf("%d bytes were answered with %d and %v", len(in), len(out), err)
					return
				}
			}
		})
	}
	const long = 20_000_000
	want := pattern(long)
	for range 2 {
		all.Go(func() {
			in, out := []byte(fmt.Sprint(long)), []byte(nil)
			if err := conn.Invoke(ctx, "/test.Test/Give", &in, &out); err != nil || !bytes.Equal(out, want) {
				t.Errorf("%d bytes came as %d, with %v", long, len(out), err)
			}
		})
	}
	all.Go(func() {
		for i := range 20 {
			brief, cancel := context.WithTimeout(ctx, time.Duration(i)*2*time.Millisecond)
			in, out := []byte(fmt.Sprint(long)), []byte(nil)
			err := conn.Invoke(brief, "/test.Test/Give", &in, &out)
			cancel()
			if status.Code(err) != codes.DeadlineExceeded && (err != nil || !bytes.Equal(out, want)) {
				t.Errorf("a call with little time was answered with %d bytes and %v", len(out), err)
			}
		}
	})
	all.Wait()
	in, out := pattern(maxRecv+1), []byte(nil)
	if err := conn.Invoke(ctx, "/test.Test/Echo", &in, &out); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a request that is too long was answered with %v", err)
	}
	err := conn.Invoke(ctx, "/test.Test/Meta", ptr("bad"), &out)
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "illegal characters") {
		t.Errorf("metadata that no client takes was answered with %v", err)
	}
}

func ptr(s string) *[]byte {
	b := []byte(s)
	return &b
}

// A stream of grpc-go's client goes on in both directions at once, and ends as both sides say.
func TestClientStream(t *testing.T) {
	_, _, addr := start(t, true, options{})
	conn := client(t, addr)
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	stream, err := conn.NewStream(within(t), desc, "/test.Test/Bidi")
	if err != nil {
		t.Fatal(err)
	}
	const messages = 2000
	go func() {
		for n := range messages {
			in := pattern(n)
			if err := stream.SendMsg(&in); err != nil {
				t.Error(err)
				return
			}
		}
		_ = stream.CloseSend()
	}()
	for n := range messages {
		var out []byte
		if err := stream.RecvMsg(&out); err != nil || !bytes.Equal(out, pattern(n)) {
			t.Fatalf("message %d came as %d bytes, with %v", n, len(out), err)
		}
	}
	if err := stream.RecvMsg(new([]byte)); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
	if got := stream.Trailer().Get("end"); len(got) != 1 || got[0] != "reached" {
		t.Errorf("the trailer was %v", stream.Trailer())
	}

	timed, stop := context.WithTimeout(context.Background(), 50e6)
	defer stop()
	if err := conn.Invoke(timed, "/test.Test/Wait", ptr("timed"), new([]byte)); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the call ended with %v", err)
	}
}

// Messages that are sent several at once come each by itself, in order and whole, whether they leave at once or wait for windows;
// what they were made of is free when they were sent.
func TestSendAll(t *testing.T) {
	_, _, addr := start(t, true, options{})
	conn := client(t, addr)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			stream, err := conn.NewStream(within(t), &grpc.StreamDesc{ServerStreams: true}, "/test.Test/Growing")
			if err == nil {
				err = stream.SendMsg(ptr("150"))
			}
			if err == nil {
				err = stream.CloseSend()
			}
			var out []byte
			for n := 0; n < 150 && err == nil; n++ {
				if err = stream.RecvMsg(&out); err == nil && !bytes.Equal(out, pattern(n*growth)) {
					err = fmt.Errorf("message %d came as %d bytes", n, len(out))
				}
			}
			if err == nil && !errors.Is(stream.RecvMsg(&out), io.EOF) {
				err = errors.New("the stream has no end")
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// Answers of all sizes, streams and cancelled calls share connections; each gets its own answer, and the stop finds nobody left.
func TestManyAtOnce(t *testing.T) {
	_, srv, addr := start(t, true, options{})
	conns := []*grpc.ClientConn{client(t, addr), client(t, addr)}
	ctx := within(t)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for range 50 {
				if err := oneOfMany(ctx, conns[rnd.IntN(len(conns))], rnd); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	srv.Stop()
}

func oneOfMany(ctx context.Context, conn *grpc.ClientConn, rnd *rand.Rand) error {
	size := rnd.IntN(1 << (5 + rnd.IntN(14)))
	in, out := pattern(size), []byte(nil)
	switch rnd.IntN(4) {
	case 0: // and go away before all of it is there
		ctx, cancel := context.WithTimeout(ctx, time.Duration(rnd.IntN(3000))*time.Microsecond)
		defer cancel()
		err := conn.Invoke(ctx, "/test.Test/Give", ptr("300000"), &out)
		if c := status.Code(err); c != codes.OK && c != codes.DeadlineExceeded && c != codes.Canceled {
			return err
		}
		return nil
	case 1:
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Test/Bidi")
		for n := 0; n < 5 && err == nil; n++ {
			if err = stream.SendMsg(&in); err == nil {
				err = stream.RecvMsg(&out)
			}
			if err == nil && !bytes.Equal(in, out) {
				return fmt.Errorf("%d bytes came back as %d others", len(in), len(out))
			}
		}
		if err == nil {
			err = stream.CloseSend()
		}
		if err == nil && !errors.Is(stream.RecvMsg(&out), io.EOF) {
			return errors.New("a stream has no end")
		}
		return err
	case 2:
		if err := conn.Invoke(ctx, "/test.Test/Give", ptr("300000"), &out); err != nil {
			return err
		}
		in = pattern(300_000)
	default:
		if err := conn.Invoke(ctx, "/test.Test/Echo", &in, &out); err != nil {
			return err
		}
	}
	if !bytes.Equal(in, out) {
		return fmt.Errorf("%d bytes were answered with %d others", len(in), len(out))
	}
	return nil
}
