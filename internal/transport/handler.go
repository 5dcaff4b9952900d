package transport

import (
	"context"

	"go.etcd.io/raft/v3/raftpb"
)

// Handler takes what arrives. All methods but Serve must return at once; they are called from many goroutines.
type Handler interface {
	// Receive takes messages of a peer that came together, in order. They and all they point at are the handler's; the slice
	// is not.
	Receive(ms ...*raftpb.Message)

	// ReceiveSnapshot takes a MsgSnap whose checkpoint lies, durable, in dir. The handler calls discard when it is done
	// with dir, installed or not. An error means that neither was taken; the sender gets its text.
	ReceiveSnapshot(m *raftpb.Message, dir string, discard func()) error

	// Unreachable says that messages to a peer were lost.
	Unreachable(id uint64)

	// PeerUp says that messages flow to a peer (again). PeerDown says that they do not; processGone that nobody even
	// listens at the peer's addresses, so that its process must have ended: such a peer will not come back as what it
	// was. PeerDown is called again when processGone becomes known later.
	PeerUp(id uint64)
	PeerDown(id uint64, processGone bool)

	// Removed says that a peer refuses this member because it was removed from the cluster.
	Removed(by uint64)

	// Serve answers a Call of a peer, or of a stranger (Ask), whose id is 0. At most MaxCalls run at once for each peer.
	Serve(ctx context.Context, from uint64, kind byte, body []byte) ([]byte, error)
}
