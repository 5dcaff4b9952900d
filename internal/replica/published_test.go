package replica

import (
	"fmt"
	"sync/atomic"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/transport"
)

// publishedBefore checks what reads beside the loop rest on: who hears of a term, a vote or a commit index from this member finds them
// published here.
func (r *Replica) publishedBefore(ms []*raftpb.Message) error {
	if r == nil { // it is being started
		return nil
	}
	r.reads.mu.Lock()
	defer r.reads.mu.Unlock()
	for _, m := range ms {
		switch m.GetType() {
		case raftpb.MsgPreVote, raftpb.MsgPreVoteResp: // of a term that is none yet
			continue
		}
		if m.GetTerm() > r.reads.at.term {
			return fmt.Errorf("%v leaves while term %d is published", m, r.reads.at.term)
		}
		if t := m.GetType(); (t == raftpb.MsgApp || t == raftpb.MsgHeartbeat) && m.GetCommit() > r.view.commit.Load() {
			return fmt.Errorf("%v leaves while commit index %d is published", m, r.view.commit.Load())
		}
	}
	return nil
}

// checkedTransport looks at everything that a member sends.
type checkedTransport struct {
	*transport.Endpoint
	t *testing.T
	r atomic.Pointer[Replica]
}

func (c *checkedTransport) Send(ms []*raftpb.Message) {
	if err := c.r.Load().publishedBefore(ms); err != nil {
		c.t.Error(err)
	}
	c.Endpoint.Send(ms)
}
