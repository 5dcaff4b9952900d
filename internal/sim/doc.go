// Package sim runs several members of one cluster in one process, under testing/synctest, with an in-memory network, a
// disk each that loses what was not synced, and fake time. A seed chooses delays, losses, partitions, crashes and
// restarts, and what clients do. Afterwards the checkers hold what clients, watchers and holders of leases were answered
// against the history that the members agree on.
//
// The members are the real ones: everything between the service methods and the file system and the network is the code
// that runs in production. Nothing but tests may use this package.
//
// What it promises to find:
//
//   - a write acknowledged and lost, or applied twice, in part, or without anybody having asked for it;
//   - an answer that does not show the store as it was at the revision that it names;
//   - a revision that goes back, over all keys and members;
//   - requests for one key that cannot be put in one order (porcupine);
//   - a watcher that misses, repeats or reorders, is told a progress that is none, or loses its stream without a reason;
//   - a lease that ends before the time its holder was promised, or that never ends;
//   - members that disagree, that do not come back after a crash, or that go on with a disk that failed;
//   - a member that goes on after it was removed or comes back from it, a vote that was given and is gone, and members that
//     disagree on who they are, in their tables or in raft;
//   - a member whose data was damaged that does not come back, or that comes back having forgotten what it promised;
//   - a cluster that does not recover within a minute after the last fault.
//
// TestPlantedBug makes sure of the first and the fourth: logs whose syncs come late must be found out. TestZombiesAreFound
// makes sure of members that nobody tells of their removal, TestPlantedForgetting of those that do not know that they lost
// their logs.
//
// A seed does not fix the interleaving of goroutines, only faults and requests; see the notes at Run. The checkers are
// tested by themselves, with spoilt histories, in check_test.go.
package sim
