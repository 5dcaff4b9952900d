package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestMetricsAreFed does a little of everything and looks for it in the metrics, summed over the members. Where a number
// is given, it is what etcd 3.7.3 counts for the same calls.
func TestMetricsAreFed(t *testing.T) {
	c := startCluster(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := c.client(c.members...)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var revision int64
	for i := range 5 {
		r, err := client.Put(ctx, fmt.Sprint("key", i%3), "value")
		do(err)
		revision = r.Header.Revision
	}
	_, err := client.Get(ctx, "key0")
	do(err)
	_, err = client.Delete(ctx, "key", clientv3.WithPrefix())
	do(err)
	_, err = client.Txn(ctx).If(clientv3.Compare(clientv3.Version("key0"), "=", 0)).Then(clientv3.OpPut("key0", "again"), clientv3.OpDelete("nothing")).Commit()
	do(err)
	lease, err := client.Grant(ctx, 1000)
	do(err)
	_, err = client.KeepAliveOnce(ctx, lease.ID)
	do(err)
	_, err = client.Revoke(ctx, lease.ID)
	do(err)
	_, err = client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	do(err)
	if _, err = client.Compact(ctx, revision); err == nil {
		t.Error("compacted twice")
	}
	_, err = client.Revoke(ctx, lease.ID)
	if err == nil {
		t.Error("revoked twice")
	}
	_, err = client.AlarmList(ctx)
	do(err)
	_, err = client.Defragment(ctx, c.members[0].clientURL)
	do(err)
	_, err = client.HashKV(ctx, c.members[0].clientURL, 0)
	do(err)
	c.agree(30 * time.Second)

	for _, want := range []struct {
		name string
		sum  float64 // 0: any number above 0
	}{
		{"etcd_mvcc_put_total", 3 * 6}, {"etcd_mvcc_delete_total", 3 * 2}, {"etcd_mvcc_range_total", 0}, {"etcd_mvcc_txn_total", 0},
		{"etcd_mvcc_db_total_size_in_bytes", 0}, {"etcd_mvcc_hash_rev_duration_seconds_count", 0},
		{"etcd_debugging_mvcc_db_compaction_keys_total", 3 * 2}, {"etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count", 0},
		{"etcd_debugging_mvcc_db_compaction_last", 0}, {"etcd_debugging_mvcc_compact_revision", float64(3 * revision)},
		{"etcd_debugging_lease_granted_total", 3}, {"etcd_debugging_lease_revoked_total", 3}, {"etcd_debugging_lease_renewed_total", 1},
		{"etcd_disk_wal_fsync_duration_seconds_count", 0}, {"etcd_disk_wal_write_duration_seconds_count", 0}, {"etcd_disk_wal_write_bytes_total", 0},
		{"etcd_disk_backend_commit_duration_seconds_count", 0}, {"etcd_disk_backend_defrag_duration_seconds_count", 1},
		{"etcd_server_range_duration_seconds_count", 0}, {"etcd_server_request_duration_seconds_count", 0},
		{"etcd_server_has_leader", 3}, {"etcd_server_is_leader", 1}, {"etcd_server_proposals_applied_total", 0},
		{"etcd_network_active_peers", 0}, {"etcd_network_peer_sent_bytes_total", 0}, {"etcd_network_peer_received_bytes_total", 0},
		{"etcd_network_peer_round_trip_time_seconds_count", 0}, {"etcd_network_client_grpc_sent_bytes_total", 0}, {"etcd_network_known_peers", 9},
		{`etcd_server_apply_duration_seconds_count{op="Compaction",success="true",version="v3"}`, 3 * 2},
		{`etcd_server_apply_duration_seconds_count{op="LeaseRevoke",success="false",version="v3"}`, 3},
		{`etcd_server_request_duration_seconds_count{success="true",type="Alarm"}`, 1},
		{`grpc_server_handled_total{grpc_code="NotFound",grpc_method="LeaseRevoke",grpc_service="etcdserverpb.Lease",grpc_type="unary"}`, 1},
		{`grpc_server_msg_sent_total{grpc_method="LeaseRevoke",grpc_service="etcdserverpb.Lease",grpc_type="unary"}`, 2},
	} {
		// What a compaction gave up is deleted a little later, and not on all members at once.
		sum := 0.0
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			sum = 0
			for _, m := range c.members {
				sum += metric(t, m, want.name)
			}
			if sum == want.sum || want.sum == 0 && sum > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is %v, want %v", want.name, sum, want.sum)
			}
		}
	}
	if metric(t, c.members[0], "etcd_mvcc_db_open_read_transactions") < 0 || metric(t, c.members[0], "etcd_disk_defrag_inflight") != 0 {
		t.Error("something is counted as under way that is not")
	}
}
