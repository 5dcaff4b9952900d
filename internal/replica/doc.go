// Package replica drives Raft for one member: it takes commands and read requests, agrees on their order with the other
// members, has the log made durable, and hands committed entries to the state machine. It carries bytes and knows
// nothing of keys.
//
// One goroutine, the loop, owns the raft.RawNode. It gathers everything that waits (messages from peers, answers of the
// log and of the state machine, ticks, commands) before it asks raft what to do next, and never waits for a disk, the
// network or the state machine: writes go to the log's own goroutine, committed entries to the apply goroutine, snapshots
// are made and installed elsewhere. So a leader's heartbeats keep their pace on a slow disk. Reads go past the loop: it
// publishes where the member stands, and they are confirmed by that (question.go). (Entries older than the log's in-memory
// tail are read from the disk by the loop: only a follower far behind needs them.)
//
// What it promises:
//
//   - A command handed to Propose enters the log at most once, also over a change of leader: a batch of commands is
//     handed to one leader in one term, and handed out again only after an entry of a later term was committed without
//     it (inflight.go).
//   - ReadIndex never answers an index below one that was committed when the call began (reads.go, question.go).
//   - The state machine sees each entry once per start, in order, and only entries that are durable in the member's own
//     log. So the log always holds what the state holds, but for a snapshot that was just installed (storage.go).
//   - Every queue is bounded; at the bound the caller gets kv.ErrTooManyRequests, a peer's message is dropped (which raft
//     heals), and nothing is dropped in silence: an Observer counts it.
//
// The tests are text scenarios over an in-memory network in testdata (replica_test.go) and small attacks on each promise
// beside the file that makes it. docs/invariants.md lists them by number.
package replica
