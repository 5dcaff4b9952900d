package server

import (
	"sync"
	"time"
)

// usagePatience is how long who asks for the disk usage waits for it. While its manifest waits for room on a full disk, the state
// engine does not tell: then the last answer stands.
const usagePatience = time.Second

// usage is what the state engine told last of its files.
type usage struct {
	mu           sync.Mutex
	asked        chan struct{} // closed with the answer; nil if nobody asks. So one at most waits for the engine
	total, inUse int64
}

// diskUsage returns the bytes of all files of the state, and of those that hold current rows.
func (m *Member) diskUsage() (total, inUse int64) {
	u := &m.usage
	u.mu.Lock()
	asked := u.asked
	if asked == nil {
		asked = make(chan struct{})
		u.asked = asked
		go m.askUsage(asked)
	}
	u.mu.Unlock()
	patience := time.NewTimer(usagePatience)
	defer patience.Stop()
	select {
	case <-asked:
	case <-patience.C:
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.total, u.inUse
}

// askUsage ends with the engine's answer, for which the engine's Close waits, as for a read.
func (m *Member) askUsage(asked chan struct{}) {
	total, inUse := m.machine.state.Load().Engine.DiskUsage()
	u := &m.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	u.total, u.inUse, u.asked = total, inUse, nil
	close(asked)
}
