package server

import (
	"github.com/trivet-kv/trivet/internal/raftlog"
	"github.com/trivet-kv/trivet/internal/replica"
)

// replicaLog is the log under the names that the replica has for it.
type replicaLog struct{ *raftlog.Log }

// Append implements replica.Log.
func (l replicaLog) Append(w replica.Write) {
	l.Log.Append(raftlog.Write{
		HardState: w.HardState, Entries: w.Entries, Reset: (*raftlog.Position)(w.Reset), Sync: w.Sync, Done: w.Done,
	})
}
