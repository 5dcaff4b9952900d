// Package engine is the store of rows under one member's state: an ordered map from bytes to bytes, kept by Pebble. It
// is the only importer of Pebble, and its keys.go is the table of every row there is.
//
// It owns how rows are ordered, grouped, flushed, checkpointed and read. It never knows what a row means to others: no
// revision is counted here, no lease expires here.
//
// There is no write-ahead log: the raft log is the log. A committed batch is visible at once and durable later, when the
// memtable that holds it has been flushed. A crash loses the batches since then, and the raft log replays them.
//
// Invariants, attacked by crash_test.go on a file system that loses unsynced data:
//   - Prefix: what survives a crash is the state after some committed batch, whole, with every batch before it and none
//     after it. Memtables are flushed in the order of commits, and one version edit makes a flush visible.
//   - Durability: once DurableApplied has answered an index, every crash leaves a state at that index or later.
//   - Checkpoint: a directory that Checkpoint has returned from opens to a state at least as new as the call.
//   - Order: rows of one user key sort together, bare prefix first, then the newest revision (keys_test.go).
package engine
