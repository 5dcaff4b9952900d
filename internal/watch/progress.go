package watch

import "time"

// tickLocked queues the progress of the watchers that asked for it, are synced and were sent nothing since the last tick.
func (s *Stream) tickLocked() {
	s.tick = time.Now().Add(s.h.o.ProgressInterval)
	rev := s.h.dispatched.Load()
	for _, w := range s.watchers {
		if !w.ProgressNotify {
			continue
		}
		if w.quiet && w.state == synced && len(w.pending) == 0 && w.StartRevision <= rev {
			s.out = append(s.out, outgoing{w, Batch{Kind: Progress, ID: w.ID, Revision: rev}})
		}
		w.quiet = true
	}
}

// progressLocked answers a request for progress once everything that was published when it came is given out. It does not
// wait for a moment when nothing is left to give: under a steady load there may be none (E#17507).
func (s *Stream) progressLocked() (Batch, bool) {
	if s.requests == 0 {
		return Batch{}, false
	}
	if s.live == 0 {
		s.requests = 0
		return Batch{}, false
	}
	rev := s.givenLocked()
	if rev < s.progressFromLocked() {
		return Batch{}, false
	}
	s.requests--
	s.requestRev = rev // the next answer is no older, though a watcher of the past is made before it
	return Batch{Kind: Progress, ID: InvalidID, Revision: rev}, true
}

// givenLocked returns the revision up to which all watchers of the stream were given everything. out must be empty.
func (s *Stream) givenLocked() int64 {
	rev := s.h.dispatched.Load()
	for _, list := range [][]*watcher{s.ready, s.lag.lost} {
		for _, w := range list {
			if w.state == synced && len(w.pending) > 0 {
				rev = min(rev, w.pendingRevision-1)
			}
		}
	}
	for _, w := range s.lag.watchers {
		rev = min(rev, w.next-1)
	}
	return rev
}

// progressFromLocked returns the first revision at which a progress request can be answered.
func (s *Stream) progressFromLocked() int64 {
	if s.stale {
		s.stale, s.lastStart = false, 0
		for _, w := range s.watchers {
			if w.state != over {
				s.lastStart = max(s.lastStart, w.StartRevision)
			}
		}
	}
	return max(s.requestRev, s.lastStart)
}
