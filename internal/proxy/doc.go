// Package proxy is the gRPC proxy in front of a cluster: one connection to each member for many clients, watches of the
// same range joined into one, and serializable reads answered from a cache. The services are those of etcd's own package
// grpcproxy; what this package owns is everything around them: the doors, the client of the members, the pages, start and
// stop, and calls that etcd's services answer wrongly.
//
// It keeps nothing on disk, and holds no state but the cache and the watches: a proxy that is killed loses nothing.
//
// Invariants, with the tests that attack them:
//
//   - An answer that needed permission is never given to somebody else, and nothing is done in another's name: calls with
//     a token do not meet the cache, and renew leases over a stream of their own (e2e TestGRPCProxyUsers).
//   - No request ends the process (TestEmptyOperation).
//   - Errors have etcd's codes and texts, as if a member had been asked (TestErrorsKeepTheirCodes).
//   - Start and Stop end when they are told to, whatever the members do (TestWithoutMembers).
//   - The log shows no password and no token (TestLogOfCalls).
package proxy
