package config

import (
	"fmt"
	"maps"
	"testing"
)

// The gates of a fresh etcd 3.7.3, as its metric etcd_server_feature_enabled shows them, and one that is turned on.
func TestEachGate(t *testing.T) {
	want := map[string]string{
		"AllAlpha": "ALPHA false", "AllBeta": "BETA false", "CompactHashCheck": "ALPHA false", "FastLeaseKeepAlive": "BETA true",
		"InitialCorruptCheck": "ALPHA false", "LeaseCheckpoint": "ALPHA false", "LeaseCheckpointPersist": "ALPHA false",
		"PriorityRequest": "ALPHA false", "SetMemberLocalAddr": "ALPHA false", "StopGRPCServiceOnDefrag": "ALPHA false",
		"TxnModeWriteWithSharedBuffer": "BETA true",
	}
	for _, args := range [][]string{nil, {"--feature-gates=PriorityRequest=true"}} {
		if args != nil {
			want["PriorityRequest"] = "ALPHA true"
		}
		got := map[string]string{}
		mustLoad(t, args, nil, "").EachGate(func(name, stage string, on bool) { got[name] = fmt.Sprint(stage, " ", on) })
		if !maps.Equal(got, want) {
			t.Errorf("%q: %v", args, got)
		}
	}
}
