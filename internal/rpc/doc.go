// Package rpc is the gRPC face of a member: etcd's services KV, Watch, Lease, Cluster and Maintenance as plain methods on
// values that know nothing of a server. It owns validation, the translation between wire messages and package command,
// the one table from sentinel errors to etcd's codes and texts (status.go), and the wire form of answers. It never keeps
// state of the store, never opens a listener, and decides nothing that must be the same on every member: that is fsm's.
//
// Register joins the services to a grpc server; another front door can call the same methods. Admission (a learner's
// limits, RequireLeader, the client's version) is one plain method too, Services.Admit, so no interceptor is needed.
//
// Invariants, with the tests that attack them:
//
//   - A range answer holds the rows of exactly one revision, whatever is written or compacted while it is made
//     (kv_test.go, etcd_test.go).
//   - The answers of one watch stream go out from one goroutine, so a created answer precedes the watcher's first
//     event, and no event follows its cancel answer (watch_test.go).
//   - Texts and codes of errors are those of rpctypes (status_test.go, validate_test.go).
//   - Memory for large range answers is bounded for the whole member (budget.go, budget_test.go).
package rpc
