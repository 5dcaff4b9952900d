// Package front serves gRPC to the clients of a member: its own server over HTTP/2, in the place of grpc-go's, whose cost was
// a third of a read's. It implements grpc.ServiceRegistrar, so that services register with it as with grpc-go's server, and to
// clients it behaves like that one. It owns a connection from its first byte to its end. It accepts none (Serve is given a
// listener), does no TLS, and knows no service.
//
// One goroutine reads a connection: it takes frames out of one buffer, makes calls of them, and hands a call to a worker when
// its request is whole. Handlers may block. What they answer is appended to the connection's out by themselves, and whoever
// finds nobody writing writes, so that an answer costs no wake-up, and many answers leave in one write.
//
// Invariants, with the tests that attack them:
//
//   - A call is answered once: its END_STREAM or RST_STREAM is the last frame of its stream (call.closed; oracle_test.go).
//   - No more is sent than both windows allow (allow; flow_test.go).
//   - The reader never writes and never waits for a handler's answer, so that windows are always taken; it waits only for a
//     client that takes nothing itself (pause; flood_test.go).
//   - What a client can make this side hold is bounded: see the constants in conn.go, send.go and head.go (flood_test.go).
//   - Whatever bytes come, a connection ends with an error or goes on; nothing panics (fuzz_test.go).
//   - What is sent is what grpc-go's server sends in the same conversation, but for what docs/compat.md lists (oracle_test.go).
package front
