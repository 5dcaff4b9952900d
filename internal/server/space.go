package server

import (
	"time"

	"github.com/trivet-kv/trivet/internal/engine"
)

// When a member has the space of deleted rows given back: garbage of a quarter of the state, but not of less than a
// quarter of a memtable, is worth the rewriting. Near the quota room is worth more.
const (
	spaceEvery   = time.Second
	garbageShare = 4
	garbageBytes = 4 << 20
	nearShare    = 50
	nearBytes    = 64 << 10
)

// engineLooks is how many looks the engine is given to compact by itself, and sweepWait how long the compactor is to finish
// deleting history first: what it deletes later would be rewritten twice.
const (
	engineLooks = 5
	sweepWait   = 30 * time.Second
)

// spacer is what giveSpaceBack remembers between its looks.
type spacer struct {
	engine *engine.Engine
	left   int64 // garbage in files that was tried and stayed: it is not tried again
	last   int64 // garbage in files at the last look
	looks  int   // at an engine that was busy, one after the other
	next   time.Time
	// Of what is being given back, if begun is not zero.
	begun  time.Time
	before int64
}

// giveSpaceBack has the space of deleted rows given back: soon after history was compacted, step by step, with rests
// between, so that writers go on. What there is to do is read from the state's files, so it goes on after a restart. It
// runs until the member stops.
func (m *Member) giveSpaceBack() {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	var s spacer
	for {
		select {
		case <-m.life.Done():
			return
		case <-tick.C:
		}
		e := m.machine.state.Load().Engine
		if s.engine != e {
			s = spacer{engine: e}
		}
		e.Measure()
		e.Short(m.nearQuota(e.Size()))
		if err := m.giveBack(&s); err != nil && m.life.Err() == nil && m.machine.state.Load().Engine == e {
			m.logger.Warn("giving back the space of deleted rows failed; it will be tried again", "error", err)
			s.next = time.Now().Add(10 * spaceEvery)
		}
	}
}

// worth is how much garbage is worth its rewriting in a state of a size.
func (m *Member) worth(size int64) int64 {
	if m.nearQuota(size) {
		return max(size/nearShare, nearBytes)
	}
	return max(size/garbageShare, garbageBytes)
}

func (m *Member) nearQuota(size int64) bool {
	quota := m.options.QuotaBytes
	return quota > 0 && nearly(size, quota)
}

// giveBack makes one step.
func (m *Member) giveBack(s *spacer) error {
	files, unflushed := s.engine.Garbage()
	s.left = min(s.left, files)
	enough := m.worth(s.engine.Size())
	fallen := files < s.last
	s.last = files
	if files+unflushed-s.left < enough {
		s.looks = 0
		m.gaveBack(s)
		return nil
	}
	// Rewriting takes room before it gives any back: a full disk has none.
	if time.Now().Before(s.next) || m.room.full() || !m.swept() {
		return nil
	}
	if s.begun.IsZero() {
		s.begun, s.before = time.Now(), s.engine.Size()
	}
	if unflushed >= enough/2 {
		return s.engine.Flush() // and then the engine begins by itself
	}
	if s.looks++; fallen || s.engine.Busy() && s.looks <= engineLooks {
		return nil
	}
	begin := time.Now()
	if err := s.engine.Reclaim(m.life); err != nil {
		return err
	}
	took := time.Since(begin)
	s.next = begin.Add(2 * took)
	after, _ := s.engine.Garbage()
	if s.last = after; after >= files {
		s.left = after
	}
	return nil
}

// gaveBack says what came of it, once nothing is left to do.
func (m *Member) gaveBack(s *spacer) {
	if s.begun.IsZero() {
		return
	}
	m.logger.Info("gave back the space of deleted rows", "size", s.engine.Size(), "before", s.before, "took", time.Since(s.begun))
	s.begun = time.Time{}
}

// swept reports whether compacted history is deleted, for which it waits a while. If history is compacted again and again,
// it may never be all deleted: then that is no reason to wait for ever.
func (m *Member) swept() bool {
	wait := time.NewTimer(sweepWait)
	defer wait.Stop()
	select {
	case <-m.compactor.Done(m.Store().CompactRevision()):
	case <-wait.C:
	case <-m.life.Done():
		return false
	}
	return true
}
