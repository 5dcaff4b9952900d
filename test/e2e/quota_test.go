package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fillUp puts values that do not compress until one is refused for want of space.
func fillUp(t *testing.T, client *clientv3.Client, quota int) {
	t.Helper()
	value := make([]byte, 256<<10)
	rand.Read(value)
	for i := range 4 * quota / len(value) {
		_, err := client.Put(t.Context(), fmt.Sprint("fill/", i), string(value))
		if errors.Is(err, rpctypes.ErrNoSpace) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("four times the quota was written")
}

// cleanUp deletes what fillUp wrote, and its history, once the watchers have seen it.
func cleanUp(t *testing.T, client *clientv3.Client, watchers ...*auditor) {
	t.Helper()
	r, err := client.Delete(t.Context(), "fill/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range watchers {
		w.reach(t, r.Header.Revision, patience)
	}
	if _, err := client.Compact(t.Context(), r.Header.Revision); err != nil {
		t.Fatal(err)
	}
}

// alarms waits until there are some alarms, or none.
func alarms(t *testing.T, client *clientv3.Client, some bool) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		r, err := client.AlarmList(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Alarms) > 0 == some {
			return
		}
		if time.Since(begun) > time.Minute {
			t.Fatalf("after a minute the alarms are %v", r.Alarms)
		}
	}
}

// TestQuota: members that reached their quota refuse puts with etcd's error, go on reading, deleting, revoking leases and compacting, and take
// puts again after that, twice. Beside that a writer tries all the time, readers read and watchers watch.
// The alarm clears itself, and no size is too large for the quota (E#9992, E#17318, E#20753).
func TestQuota(t *testing.T) {
	const quota = 8 << 20
	c := startCluster(t, 3, fmt.Sprint("--quota-backend-bytes=", quota))
	client := c.client()
	if _, err := client.Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	witness := c.witness(t, c.client())
	for range 2 {
		witness.count.goesOn()
		lease, err := client.Grant(t.Context(), 600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Put(t.Context(), "leased", "", clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
		fillUp(t, client, quota)
		alarms(t, client, true)
		for _, m := range c.members {
			one := c.client(m)
			if _, err := one.Put(t.Context(), "k", "w"); !errors.Is(err, rpctypes.ErrNoSpace) {
				t.Errorf("a put on %s: %v", m.name, err)
			}
			if r, err := one.Get(t.Context(), "k"); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "v" {
				t.Errorf("a get on %s: %v, %v", m.name, r, err)
			}
		}
		if _, err := client.Revoke(t.Context(), lease.ID); err != nil {
			t.Errorf("a revocation without space: %v", err)
		}
		if r, err := client.Get(t.Context(), "leased"); err != nil || len(r.Kvs) > 0 {
			t.Errorf("the key of a lease that was revoked: %v, %v", r, err)
		}
		for _, m := range c.members {
			witness.count.sees(m)
		}
		cleanUp(t, client, witness.watchers...)
		alarms(t, client, false)
		if _, err := client.Put(t.Context(), "k", "v"); err != nil {
			t.Errorf("a put after cleaning up: %v", err)
		}
	}
	if got := metric(t, c.members[0], "etcd_server_quota_backend_bytes"); got != quota {
		t.Errorf("the quota in the metrics is %v", got)
	}
	witness.verify(t)
}

// TestQuotaManualDisarm: with --quota-manual-disarm the alarm stays until somebody clears it.
func TestQuotaManualDisarm(t *testing.T) {
	const quota = 4 << 20
	c := startCluster(t, 1, fmt.Sprint("--quota-backend-bytes=", quota), "--quota-manual-disarm")
	client := c.client()
	fillUp(t, client, quota)
	alarms(t, client, true)
	cleanUp(t, client)
	c.members[0].p.expect(time.Minute, 0, "gave back the space")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // three looks of the member
	defer cancel()
	for ctx.Err() == nil {
		if _, err := client.Put(t.Context(), "k", "w"); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Fatalf("a put before the alarm is cleared: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if _, err := client.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(t.Context(), "k", "w"); err != nil {
		t.Errorf("a put after the alarm was cleared: %v", err)
	}
}
