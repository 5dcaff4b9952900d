package compat

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// episodeCalls is how many calls an episode has. A failing one is shortened, so it is not to be long; each begins with
// empty stores, so it is not to be short either.
const episodeCalls = 1000

// TestRandom makes random calls of both systems until they differ.
func TestRandom(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(rand.Uint32())
	}
	t.Logf("seed %d", seed)
	began, calls := time.Now(), 0
	for episode, voided := *firstFlag, 0; calls < *callsFlag; {
		err := runEpisode(&systems, seed, uint64(episode), min(episodeCalls, *callsFlag-calls))
		switch {
		case err == nil:
			calls += systems.calls
			episode++
		case systems.void(err) && voided < 5:
			voided++
			t.Logf("episode %d counts for nothing, the machine stood still: %v", episode, err)
			systems.both(func(t *target) error { t.stop(); return nil })
		default:
			script := systems.done
			t.Errorf("seed %d, episode %d, after %d calls: %v\n%v", seed, episode, calls+systems.calls, err, systems.crashed())
			shortened, err := shorten(t, script, err)
			if len(shortened) > 40 {
				whole := filepath.Join(os.TempDir(), fmt.Sprintf("compat-%d-%d.txt", seed, episode))
				if err := os.WriteFile(whole, []byte(formatScript(shortened)), 0o644); err != nil {
					t.Error(err)
				}
				t.Fatalf("the script of %d lines is in %s\n%v", len(shortened), whole, err)
			}
			t.Fatalf("the shortest script that differs:\n\n%s\n%v", formatScript(shortened), err)
		}
	}
	took := time.Since(began)
	t.Logf("%d calls in %v, %.0f a second", calls, took.Round(time.Millisecond), float64(calls)/took.Seconds())
}

func runEpisode(p *pair, seed, episode uint64, calls int) error {
	if err := p.begin(false); err != nil {
		return err
	}
	d := newDriver(p, seed, episode)
	for p.calls < calls {
		if err := p.all(d.next()); err != nil {
			return err
		}
	}
	return p.do([]op{{verb: "settle"}})
}

// TestNotices makes one system get other requests than the other, and wants that to be noticed and to be told in a few
// lines; a suite that compares nothing finds nothing.
func TestNotices(t *testing.T) {
	defer func() { systems.trivet.alter = nil }()
	for what, alter := range map[string]func(proto.Message){
		"value of a put": func(m proto.Message) {
			if p, ok := m.(*pb.PutRequest); ok && string(p.Key) == "b" {
				p.Value = append(p.Value, '!')
			}
		},
		"a lease": func(m proto.Message) {
			if p, ok := m.(*pb.PutRequest); ok {
				p.Lease = 0
			}
		},
		"an error's text": func(m proto.Message) {
			if r, ok := m.(*pb.CompactionRequest); ok {
				r.Revision += 1000
			}
		},
	} {
		systems.trivet.alter = nil
		if err := systems.begin(false); err != nil {
			t.Fatal(err)
		}
		systems.trivet.alter = alter
		err := systems.run(noticeable(t), false)
		if systems.void(err) {
			t.Skipf("the machine stood still: %v", err)
		}
		if err == nil {
			t.Errorf("%s: not noticed", what)
			continue
		}
		if shortened, _ := shorten(t, systems.done, err); len(shortened) > 3 {
			t.Errorf("%s: shortened only to\n%s", what, formatScript(shortened))
		}
	}
}

func noticeable(t *testing.T) []op {
	text := `
m1 Lease.LeaseGrant ID:5 TTL:1000
m1 watch w create_request:{key:"a" range_end:"z"}
m1 KV.Put key:"a" value:"1"
m2 KV.Put key:"b" value:"2" lease:5
m3 KV.Put key:"c" value:"3"
m3 KV.Range key:"a"
m1 KV.DeleteRange key:"a" range_end:"c"
m1 KV.Txn success:{request_put:{key:"d"}} success:{request_put:{key:"e"}}
settle
! m2 KV.Compact revision:0
m1 KV.Range key:"a" range_end:"z"
m2 KV.Put key:"a" value:"9"
`
	ops, err := parseScript(text)
	if err != nil {
		t.Fatal(err)
	}
	return ops
}

// TestScriptForm prints scripts and reads them again.
func TestScriptForm(t *testing.T) {
	if err := systems.begin(false); err != nil {
		t.Fatal(err)
	}
	d := newDriver(&systems, 1, 1)
	var ops []op
	for len(ops) < 500 {
		ops = append(ops, d.next()...)
	}
	text := formatScript(ops)
	again, err := parseScript(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := formatScript(again); got != text {
		t.Error("a script is another one when it is read again")
	}
}

// TestCrashIsNoticed kills a member under a script: that is never the machine's fault.
func TestCrashIsNoticed(t *testing.T) {
	if err := systems.begin(false); err != nil {
		t.Fatal(err)
	}
	if err := systems.trivet.cluster.Members[2].Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	systems.trivet.cluster.Members[2].Wait()
	err := systems.do([]op{{verb: "call", method: "KV.Range", member: 2, req: &pb.RangeRequest{Key: []byte("a")}}})
	if err == nil || systems.void(err) {
		t.Errorf("not noticed: %v", err)
	}
	if err := systems.begin(false); err == nil || systems.void(err) {
		t.Errorf("not noticed before the next script: %v", err)
	}
}
