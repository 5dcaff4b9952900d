package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// begun is a request to the JSON gateway whose handler waits for the rest of the body. finish sends it and returns the answer.
func begun(t *testing.T, m *member, path, body, rest string) (finish func() (string, error)) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(m.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_, err = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: member\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", path, len(body)+len(rest))
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	const goOn = "HTTP/1.1 100 Continue\r\n\r\n"
	if got, err := io.ReadAll(io.LimitReader(r, int64(len(goOn)))); err != nil || string(got) != goOn {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := io.WriteString(c, body); err != nil {
		t.Fatal(err)
	}
	return func() (string, error) {
		if _, err := io.WriteString(c, rest); err != nil {
			return "", err
		}
		a, err := http.ReadResponse(r, nil)
		if err != nil {
			return "", err
		}
		defer a.Body.Close()
		b, err := io.ReadAll(a.Body)
		return a.Status + " " + string(b), err
	}
}

func dialGRPC(t *testing.T, m *member) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(strings.TrimPrefix(m.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestStopLetsCallsEnd: a request that began before the stop is answered by services that still serve it, a watch ends, and
// then the stop does.
func TestStopLetsCallsEnd(t *testing.T) {
	m := start(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w, err := pb.NewWatchClient(dialGRPC(t, m)).Watch(ctx)
	if err == nil {
		err = w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}})
	}
	if err == nil {
		_, err = w.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	finish := begun(t, m, "/v3/kv/put", `{"key":"aw==",`, `"value":"dg=="}`)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		m.front.Stop(ctx)
	}()
	if _, err := w.Recv(); err == nil {
		t.Error("the watch went on")
	}
	if _, err := pb.NewKVClient(dialGRPC(t, m)).Range(ctx, &pb.RangeRequest{Key: []byte("k")}); err == nil {
		t.Error("a connection was taken during the stop")
	}
	select {
	case <-stopped:
		t.Fatal("the stop did not wait for a request")
	case <-time.After(50 * time.Millisecond):
	}
	if got, err := finish(); err != nil || !strings.HasPrefix(got, "200 OK {") {
		t.Errorf("the request was answered with %s, %v", got, err)
	}
	<-stopped
}

// TestStopIsBounded: a request whose body never comes whole, and clients that send half of a beginning, are broken off when
// time is up.
func TestStopIsBounded(t *testing.T) {
	m := start(t, nil)
	finish := begun(t, m, "/v3/kv/put", `{"key":`, `"aw=="}`)
	for _, text := range []string{"", "GET / HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"} {
		c, err := net.Dial("tcp", strings.TrimPrefix(m.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		m.front.Stop(ctx)
	}()
	select {
	case <-stopped:
	case <-time.After(30 * time.Second):
		t.Fatal("the stop does not end")
	}
	if ctx.Err() == nil {
		t.Error("the stop did not wait for the request")
	}
	if got, err := finish(); err == nil {
		t.Errorf("the request was answered with %s", got)
	}
}
