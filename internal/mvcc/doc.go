// Package mvcc is the key-value store with its history: every put and delete makes a revision, every revision since the
// last compaction can be read, counted and watched. It is etcd's mvcc with etcd's meanings, kept as rows of the engine.
//
// It owns the version rows, revision rows, fence rows and its meta rows (docs/data.md). It never looks at a clock, never
// starts a goroutine, never waits for the disk, and never decides whether a request is allowed: package fsm does, and
// gives it one engine batch at a time.
//
// Writing is for one goroutine: NewWriter, then for each command Begin, Put, Delete, End, then Publish. Reading is for
// any goroutine: a read takes the newest published revision and an iterator of the engine, and from then on meets no
// lock. A read that is under way keeps its view whatever is written or compacted beside it.
//
// Invariants, asserted where broken numbers would otherwise spread, and attacked by the tests named:
//   - One revision row names each version row and one version row each revision row (model_test.go, crash_test.go).
//   - A fence counts exactly the live keys from its key to the next fence's (fences_test.go, crash_test.go).
//   - The revision row, the fences and the changes they tell of are in one batch; a crash never parts them
//     (crash_test.go). The revision never goes back, except as the log does.
//   - Readers see revision and fences of the same moment (TestReadersBesideWriters), and of an edge's keys nothing that was found
//     before one of its fence came or went (known_test.go).
//   - Deleting compacted history changes no answer at or after the compact revision (model_test.go).
package mvcc
