package rpc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// lines is a log that handlers and the test may use at once.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A slow call is logged with etcd's fields, what it writes or compares with is not, and a call with a password neither.
func TestSlowCallsAreLogged(t *testing.T) {
	log := &lines{}
	s := serve(t, rpc.Options{WarnSlow: time.Nanosecond, Logger: slog.New(slog.NewJSONHandler(log, nil))}, watch.Options{})
	conn := s.dial(t)
	kvs := pb.NewKVClient(conn)
	const secret = "hunter2"
	if _, err := kvs.Put(within(t), &pb.PutRequest{Key: []byte("akey"), Value: []byte(secret)}); err != nil {
		t.Fatal(err)
	}
	if _, err := kvs.Range(within(t), &pb.RangeRequest{Key: []byte("akey")}); err != nil {
		t.Fatal(err)
	}
	if _, err := kvs.Txn(within(t), &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("ckey"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte(secret)}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("tkey"), Value: []byte(secret)}}}},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := kvs.DeleteRange(within(t), &pb.DeleteRangeRequest{Key: []byte("akey")}); err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewAuthClient(conn).Authenticate(within(t), &pb.AuthenticateRequest{Name: "joe", Password: secret}); err == nil {
		t.Error("authenticated without users")
	}
	want := []struct {
		method, content     string
		requests, responses float64
	}{
		{"/etcdserverpb.KV/Put", "akey", 1, 0},
		{"/etcdserverpb.KV/Range", "akey", 0, 1},
		{"/etcdserverpb.KV/Txn", "tkey", 1, 0},
		{"/etcdserverpb.KV/DeleteRange", "akey", 0, 1},
		{"/etcdserverpb.Auth/Authenticate", "", -1, -1},
	}
	// An answer may be on its way before its line is written.
	for deadline := time.Now().Add(time.Minute); strings.Count(log.String(), "\n") < len(want) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	text := log.String()
	if strings.Contains(text, secret) {
		t.Errorf("a value is in the log: %s", text)
	}
	got := strings.Split(strings.TrimSpace(text), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d lines: %s", len(got), text)
	}
	for i, w := range want {
		var line map[string]any
		if err := json.Unmarshal([]byte(got[i]), &line); err != nil {
			t.Fatal(err)
		}
		content, _ := line["request content"].(string)
		if line["msg"] != "request stats" || line["level"] != "WARN" || line["response type"] != w.method || line["request count"] != w.requests ||
			line["response count"] != w.responses || !strings.Contains(content, w.content) || (w.content == "") != (content == "") {
			t.Errorf("%s: %s", w.method, got[i])
		}
		for _, field := range []string{"start time", "time spent", "remote", "request size", "response size"} {
			if _, ok := line[field]; !ok {
				t.Errorf("%s: no field %q", w.method, field)
			}
		}
	}
}

// A call that is not slow is logged at the level debug, and at no other.
func TestFastCallsAreLoggedToDebug(t *testing.T) {
	call := func(level slog.Level) (*lines, *served) {
		log := &lines{}
		s := serve(t, rpc.Options{WarnSlow: time.Hour, Logger: slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: level}))}, watch.Options{})
		if _, err := pb.NewKVClient(s.dial(t)).Put(within(t), &pb.PutRequest{Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
		return log, s
	}
	quiet, _ := call(slog.LevelInfo)
	loud, _ := call(slog.LevelDebug)
	for deadline := time.Now().Add(time.Minute); !strings.Contains(loud.String(), "request stats"); {
		if time.Now().After(deadline) {
			t.Fatalf("at the level debug: %s", loud.String())
		}
		time.Sleep(time.Millisecond)
	}
	if text := quiet.String(); strings.Contains(text, "request stats") {
		t.Errorf("at the level info: %s", text)
	}
}

// Reads that took longer than applying should are logged and counted as etcd does, with their steps if they took long.
func TestSlowReadsAreLogged(t *testing.T) {
	log := &lines{}
	s := serve(t, rpc.Options{WarnApply: time.Nanosecond, WarnSlow: time.Hour, Logger: slog.New(slog.NewJSONHandler(log, nil))}, watch.Options{})
	kvs := pb.NewKVClient(s.dial(t))
	if _, err := kvs.Put(within(t), &pb.PutRequest{Key: []byte("akey"), Value: []byte("hunter2")}); err != nil {
		t.Fatal(err)
	}
	if _, err := kvs.Range(within(t), &pb.RangeRequest{Key: []byte("akey")}); err != nil {
		t.Fatal(err)
	}
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("akey")}}}
	if _, err := kvs.Txn(within(t), &pb.TxnRequest{Success: []*pb.RequestOp{get}}); err != nil {
		t.Fatal(err)
	}
	s.Hold.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := kvs.Range(ctx, &pb.RangeRequest{Key: []byte("akey"), RangeEnd: []byte("b")}); err == nil {
		t.Fatal("read without the others")
	}
	// The member goes on after its client has gone.
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(log.String(), `"msg":"trace"`) && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	var got []map[string]any
	for line := range strings.Lines(log.String()) {
		one := map[string]any{}
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatal(err)
		}
		got = append(got, one)
	}
	if len(got) != 4 {
		t.Fatalf("%d lines:\n%s", len(got), log)
	}
	for i, want := range []struct{ msg, prefix, response string }{
		{"apply request took too long", "read-only range ", "range_response_count:1 size:"},
		{"apply request took too long", "read-only txn ", "responses:<range_response_count:1> size:"},
		{"apply request took too long", "read-only range ", ""},
	} {
		g := got[i]
		if g["msg"] != want.msg || g["prefix"] != want.prefix || !strings.HasPrefix(g["response"].(string), want.response) ||
			!strings.Contains(g["request"].(string), "akey") || g["expected-duration"] == nil || g["took"] == nil || (g["error"] != nil) != (i == 2) {
			t.Errorf("line %d: %v", i, g)
		}
	}
	g := got[3]
	if g["operation"] != "range" || g["detail"] != "{range_begin:akey; range_end:b; }" || g["step_count"] != 1.0 ||
		!strings.HasPrefix(g["steps"].([]any)[0].(string), "'agreement among raft nodes before linearized reading'") {
		t.Errorf("%v", g)
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Error("a value is in the log")
	}
	if n := counted(t, s, "etcd_server_slow_apply_total"); n != 3 {
		t.Errorf("%v slow reads were counted", n)
	}
}

// counted is the value of a counter.
func counted(t *testing.T, s *served, name string) float64 {
	t.Helper()
	families, err := s.metrics.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.Metric[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
