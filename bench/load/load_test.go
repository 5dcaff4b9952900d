package load

import (
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func TestQuantile(t *testing.T) {
	var h Histogram
	for us := 1; us <= 100_000; us++ {
		h.Add(time.Duration(us) * time.Microsecond)
	}
	for _, q := range []float64{0.001, 0.1, 0.5, 0.99} {
		want := q * 100_000
		got := float64(h.Quantile(q).Microseconds())
		if got < want*0.98 || got > want*1.02 {
			t.Errorf("quantile %v is %v µs, want about %v", q, got, want)
		}
	}
}

func TestRaw(t *testing.T) {
	m := &pb.WatchResponse{Header: &pb.ResponseHeader{Revision: 7}, WatchId: 300}
	for range 3 {
		m.Events = append(m.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("k"), Value: make([]byte, 200)}})
	}
	data, err := RawCodec.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	raw := Raw{Bytes: make([]byte, 10, 4000)}
	if err := RawCodec.Unmarshal(data, &raw); err != nil {
		t.Fatal(err)
	}
	var again pb.WatchResponse
	if err := proto.Unmarshal(raw.Bytes, &again); err != nil || !proto.Equal(m, &again) {
		t.Errorf("%v: %v", err, &again)
	}
	for number, want := range map[int32]int{1: 1, 2: 1, 4: 0, 11: 3} {
		if n, err := raw.Count(protowire.Number(number)); n != want || err != nil {
			t.Errorf("field %d is there %d times (%v), want %d", number, n, err, want)
		}
	}
	raw.Bytes = raw.Bytes[:len(raw.Bytes)-1]
	if _, err := raw.Count(11); err == nil {
		t.Error("a message that was cut is counted")
	}
}
