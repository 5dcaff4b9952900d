// Package gateway is the member's front door: one listener for gRPC and HTTP/1 (told apart by the first bytes of a
// connection), the JSON gateway of etcd's API over the same services, and the pages /health, /livez, /readyz, /version,
// /metrics and /debug. It owns listeners, connections and the HTTP forms of answers. It never touches the store but
// through rpc.Backend, and it holds no rule of the API: those are rpc's.
//
// Bounds, with the tests that attack them:
//
//   - A connection that does not say which protocol it speaks is closed after Options.SilentTimeout, and no more than
//     maxSilent of them wait at a time; a new one is accepted when another has spoken or was closed (split_test.go).
//   - JSON answers have no bound of 4 MiB (gateway_test.go).
//   - The texts of the pages are etcd's, byte for byte (testdata/http.txt, written down from etcd 3.7.3).
package gateway
