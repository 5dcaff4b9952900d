// Package raftlog is the durable raft log of one member: a row of segment files, one writer goroutine, one fdatasync for
// everything that waits. It is the only thing on the path of a write that waits for the disk, and it is the write-ahead
// log of the state engine, which has none of its own.
//
// It owns the directory it is given: every file in it, their names, sizes and bytes. It never interprets the data of an
// entry, never decides what may be cut (the caller names an index), never repairs damage, and never tries a failed write
// or sync again. It takes no lock on the directory: whoever opens the data directory holds that.
//
// # On disk
//
// A segment is a file of fixed size, zero-filled (or recycled, or reserved where groups are large) and synced before it gets its
// name, so that a commit only overwrites bytes that the file already has. Its first 4 KiB hold a versioned header: sequence number, a random salt, the
// log's last position and the hard state at the time it was begun, and where the segment before it ends. Records follow,
// each on a multiple of 8 bytes. Every record names the offset up to which its segment was known to be durable when the
// record was made (its sync point); its header checksum is seeded with the segment's salt and sequence number and the
// record's own offset, so that what an earlier use of the file left behind never validates. docs/data.md has the table.
//
// # Torn or damaged
//
// Recovery reads records until one does not validate. In the last segment that is the end of the log, a torn tail, or
// damage. What decides is the sync point of whatever record headers still validate behind that place: one that says
// "durable up to here" beyond it proves that the bytes were once on the disk, so they are damaged and Open refuses. With
// no such proof the bytes were never acknowledged: they are cut, overwritten with zeros and synced before anything new is
// written, so that they can never join the log later. In an earlier segment everything up to the end that the next header
// names was durable, so there every failure is damage. A clean Close leaves a mark that is a sync point for all before it.
//
// # Invariants
//
// docs/invariants.md numbers these; crash_test.go and damage_test.go attack them.
//
//   - What Open finds is exactly the state after some whole number of Append calls, in order, and at least up to the last
//     one that was acknowledged with Sync: a write is there completely or not at all.
//   - A segment's successor exists under its name only if the segment is durable to its last byte.
//   - Segments vanish from the oldest on, one directory sync each, so that no crash leaves a gap.
//   - A file is reused only after a directory sync has made its old name unreachable.
//   - After a failed write or sync, but for want of room, nothing is acknowledged any more; what a failed sync may have left clean in the page
//     cache is written again by the next Open, before it is believed.
//
// # Goroutines
//
// Each Log has two, both started by Open and stopped by Close: the writer (commit.go), sole owner of the files and of
// what is not yet durable, and the filler (fill.go), which makes the next segment ahead of need. The queue between
// Append and the writer is bounded by its caller, see Backlog.
package raftlog
