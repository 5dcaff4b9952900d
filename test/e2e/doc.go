// Package e2e tests Trivet as its users meet it: the built binary, real processes, real sockets and files, etcd's own Go
// client and command line. It owns the harness that starts members, kills them (SIGKILL), pauses them (SIGSTOP), stops
// them (SIGTERM) and starts them again on the same data. It never reaches into a member: what a test knows, it knows
// through the client port, the exit status and what the process printed. Faults finer than a process, and those of the
// network and the disk, belong to internal/sim.
//
// The binary is built once per run. With TRIVET_E2E_BINARY set, that file is used instead; it must understand
// `server` and etcd's flags, so the tests that are about etcd's behaviour can be held against etcd itself.
//
// Invariants attacked here:
//   - an acknowledged write is found after any number of kills of any number of members (TestLoadAndKill);
//   - a revision is given once, and never taken back (TestLoadAndKill);
//   - a watcher that resumes sees every revision once, in order (TestLoadAndKill, TestLaggingMember);
//   - members that are restarted one after the other fail no call of a client that knows all of them (TestRollingRestart);
//   - nor do members whose binaries are replaced, that are moved, added or removed, or between which leadership is moved
//     (TestUpgrade, TestChangesUnderLoad);
//   - a member that was away ends with the same data as the others (TestLaggingMember);
//   - a disk under one member that is slow, hangs or is full stops nobody else, and that member goes on when it is well again
//     (TestHungDisk, TestDiskFillsUp, TestLoneDiskFillsUp);
//   - a member whose state is not what the log made of it is found, by itself or by etcd's checks, and nobody else's answers
//     are wrong (TestDiverged, TestCorruptChecks);
//   - a learner answers linearizable reads, none of them stale, and watches without a gap (TestLearner);
//   - bad input touches nothing on disk (TestBadInput).
package e2e
