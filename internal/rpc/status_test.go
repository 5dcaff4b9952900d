package rpc

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/trivet-kv/trivet/internal/kv"
)

func TestStatusTable(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{kv.ErrCompacted, codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted"},
		{fmt.Errorf("read the store: %w", kv.ErrFutureRevision), codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision"},
		{kv.ErrTooManyRequests, codes.Unknown, "etcdserver: too many requests"},
		{kv.ErrRequestTooLarge, codes.InvalidArgument, "etcdserver: request is too large"},
		{kv.ErrTimeout, codes.Unavailable, "etcdserver: request timed out"},
		{kv.ErrTimeoutLeaderFail, codes.Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"},
		{kv.ErrLeaseTTLTooLong, codes.OutOfRange, "etcdserver: too large lease TTL"},
		{kv.ErrNoSpace, codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded"},
		{context.DeadlineExceeded, codes.DeadlineExceeded, "context deadline exceeded"},
		{fmt.Errorf("wait: %w", context.Canceled), codes.Canceled, "wait: context canceled"},
		{errors.New("engine: broken"), codes.Unknown, "engine: broken"},
		{rpctypes.ErrGRPCEmptyKey, codes.InvalidArgument, "etcdserver: key is not provided"},
	} {
		if st := status.Convert(toStatus(c.err)); st.Code() != c.code || st.Message() != c.text {
			t.Errorf("%v: %v %q, want %v %q", c.err, st.Code(), st.Message(), c.code, c.text)
		}
	}
	if toStatus(nil) != nil {
		t.Error("no error is an error")
	}
}

// Every sentinel of package kv has its line in the table.
func TestEverySentinelIsMapped(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../kv/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		if s, ok := node.(*ast.ValueSpec); ok && strings.HasPrefix(s.Names[0].Name, "Err") {
			n++
		}
		return true
	})
	if n != len(statusTable) {
		t.Errorf("package kv has %d sentinels, the table %d lines", n, len(statusTable))
	}
}
