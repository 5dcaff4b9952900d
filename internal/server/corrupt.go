package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/leader"
	"github.com/trivet-kv/trivet/internal/member"
)

// etcd's checks that the members hold the same: once before a member serves, from time to time, and after compactions. They
// compare HashKV, which reads all of the store, and are off unless asked for.

// hashRequest asks a member for its leader.Data at a revision, as if it had compacted at least up to another one (-1: as it
// is), within a time: a call does not tell its end. With barrier it first applies what is committed.
type hashRequest struct {
	revision, compact int64
	within            time.Duration
	barrier           bool
}

func (r *hashRequest) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(r.revision))
	b = binary.BigEndian.AppendUint64(b, uint64(r.compact))
	b = binary.BigEndian.AppendUint64(b, uint64(r.within))
	if r.barrier {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeHashRequest(b []byte) (hashRequest, error) {
	if len(b) != 25 || b[24] > 1 {
		return hashRequest{}, fmt.Errorf("a malformed request for a hash: %x", b)
	}
	return hashRequest{
		revision: int64(binary.BigEndian.Uint64(b)), compact: int64(binary.BigEndian.Uint64(b[8:])),
		within: time.Duration(binary.BigEndian.Uint64(b[16:])), barrier: b[24] == 1,
	}, nil
}

// encodeData leaves the member out: who asks knows.
func encodeData(d leader.Data) []byte {
	b := []byte{0}
	if d.Hashed {
		b[0] = 1
	}
	b = binary.BigEndian.AppendUint32(b, d.Hash)
	b = binary.BigEndian.AppendUint64(b, uint64(d.Revision))
	return binary.BigEndian.AppendUint64(b, uint64(d.Compact))
}

func decodeData(id uint64, b []byte) (leader.Data, error) {
	if len(b) != 21 || b[0] > 1 {
		return leader.Data{}, fmt.Errorf("a malformed answer to a request for a hash: %x", b)
	}
	return leader.Data{
		Member: id, Hashed: b[0] == 1, Hash: binary.BigEndian.Uint32(b[1:]),
		Revision: int64(binary.BigEndian.Uint64(b[5:])), Compact: int64(binary.BigEndian.Uint64(b[13:])),
	}, nil
}

// serveHash answers a peer. One hash is made at a time: each reads the whole store.
func (m *Member) serveHash(ctx context.Context, body []byte) ([]byte, error) {
	r, err := decodeHashRequest(body)
	if err != nil {
		return nil, err
	}
	if m.peers.replica.Load() == nil {
		return nil, errStarting
	}
	ctx, cancel := context.WithTimeout(ctx, r.within)
	defer cancel()
	if r.barrier {
		if err := m.ReadBarrier(ctx); err != nil {
			return nil, err
		}
	}
	d, err := m.dataAt(ctx, r.revision, r.compact)
	if err != nil {
		return nil, err
	}
	return encodeData(d), nil
}

// dataAt is what this member has at a revision (0: at the newest), compacted at least so far.
func (m *Member) dataAt(ctx context.Context, revision, compacted int64) (leader.Data, error) {
	select {
	case m.hashing <- struct{}{}:
		defer func() { <-m.hashing }()
	case <-ctx.Done():
		return leader.Data{}, ctx.Err()
	}
	s := m.Store()
	hash, compact, _, err := s.HashKVCompacted(ctx, revision, compacted)
	switch {
	case errors.Is(err, kv.ErrCompacted) || errors.Is(err, kv.ErrFutureRevision):
		return leader.Data{Member: m.identity.MemberID, Revision: s.Revision(), Compact: s.CompactRevision()}, nil
	case err != nil:
		return leader.Data{}, err
	}
	return leader.Data{Member: m.identity.MemberID, Hashed: true, Hash: hash, Revision: s.Revision(), Compact: compact}, nil
}

// hashesOf asks members for their data and returns the answers of those that gave one.
func (m *Member) hashesOf(ctx context.Context, members []member.Member, r hashRequest) []leader.Data {
	return gather(members, func(one member.Member) (leader.Data, bool) {
		b, err := m.transport.Call(ctx, one.ID, callHash, r.encode())
		var d leader.Data
		if err == nil {
			d, err = decodeData(one.ID, b)
		}
		if err != nil && m.life.Err() == nil {
			m.logger.Warn("the data of a member could not be compared", "member", fmt.Sprintf("%x", one.ID), "revision", r.revision, "error", err)
		}
		return d, err == nil
	})
}

// gather asks members, all at once, and returns the answers of those that gave one, in no order.
func gather[T any](members []member.Member, ask func(member.Member) (T, bool)) (answers []T) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, one := range members {
		wg.Go(func() {
			if answer, ok := ask(one); ok {
				mu.Lock()
				answers = append(answers, answer)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return answers
}

func (m *Member) others() []member.Member {
	all := slices.Clone(m.machine.state.Load().Members.All())
	return slices.DeleteFunc(all, func(one member.Member) bool { return one.ID == m.identity.MemberID })
}

// firstCheckFor bounds how long a start is held up by comparing data.
const firstCheckFor = time.Minute

// checkBeforeServing refuses to start with data that differs from that of a peer that serves, at the same revision
// (--feature-gates=InitialCorruptCheck=true). It does not matter which of the two has compacted further, as long as that is not
// beyond this member's newest revision (E#20059). Peers that do not serve, or are behind, say nothing.
func (m *Member) checkBeforeServing() error {
	const flag = "--feature-gates=InitialCorruptCheck=true"
	ctx, cancel := context.WithTimeout(m.life, firstCheckFor)
	defer cancel()
	others := m.answering(ctx, m.others())
	own, err := m.dataAt(ctx, 0, -1)
	if err != nil {
		return fmt.Errorf("%s: this member's data cannot be read: %w", flag, err)
	}
	compared, at := 0, map[int64]leader.Data{own.Compact: own} // by how far both are compacted
	for _, d := range m.hashesOf(ctx, others, hashRequest{revision: own.Revision, compact: own.Compact, within: firstCheckFor}) {
		mine, known := at[d.Compact]
		if d.Hashed && !known {
			if mine, err = m.dataAt(ctx, own.Revision, d.Compact); err != nil {
				return fmt.Errorf("%s: this member's data cannot be read: %w", flag, err)
			}
			at[d.Compact] = mine
		}
		switch {
		case !d.Hashed || !mine.Hashed || mine.Compact != d.Compact:
			m.logger.Warn("the data of a member cannot be compared: it does not have this revision", "member", fmt.Sprintf("%x", d.Member),
				"revision", own.Revision, "compact-revision", own.Compact, "its-revision", d.Revision, "its-compact-revision", d.Compact)
			continue
		case d.Hash != mine.Hash:
			return fmt.Errorf("%s: the data of this member (%x) differs from that of the member %x at revision %d (compacted at %d; hashes %08x and %08x): "+
				"compare both with the others (endpoint hashkv); then remove the member that is wrong from the cluster and add it again with an empty data directory",
				flag, m.identity.MemberID, d.Member, own.Revision, d.Compact, mine.Hash, d.Hash)
		}
		compared++
	}
	m.logger.Info("the data of this member was compared before serving", "revision", own.Revision, "members", compared)
	return nil
}

// answering are those of the members that serve calls; it waits a moment for connections.
func (m *Member) answering(ctx context.Context, members []member.Member) []member.Member {
	ctx, cancel := context.WithTimeout(ctx, askPeersFor)
	defer cancel()
	return gather(members, func(one member.Member) (member.Member, bool) {
		for ctx.Err() == nil && !m.peers.gone(one.ID) {
			if _, err := m.transport.Call(ctx, one.ID, callVersion, nil); err == nil {
				return one, true
			}
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
		return one, false
	})
}

// compareNowAndThen compares the newest revision while this member leads (--corrupt-check-time). It runs until the member
// stops.
func (m *Member) compareNowAndThen() {
	m.whileLeading(m.options.CorruptCheckTime, func(ctx context.Context, term uint64) error {
		compact, revision := m.Store().CompactRevision(), m.Store().Revision()
		own, answers, err := m.ownAndOthers(ctx, revision, compact, m.trusting())
		if err != nil {
			return err
		}
		_, err = m.judge(ctx, term, own, answers)
		return err
	})
}

// compactCheck is what is known of the members' data at one compaction, in one term of this leader.
type compactCheck struct {
	term  uint64
	own   leader.Data
	agree []leader.Data
	done  bool // all agree
}

// compareCompactions compares what the last compaction left while this member leads (--feature-gates=CompactHashCheck=true).
// A member is asked once about each, unless it could not answer or differed. It runs until the member stops.
func (m *Member) compareCompactions() {
	var c compactCheck
	m.whileLeading(m.options.CompactHashCheckTime, func(ctx context.Context, term uint64) error {
		compact := m.Store().CompactRevision()
		if compact <= 0 || c.done && c.term == term && c.own.Compact == compact {
			return nil
		}
		if c.term != term || c.own.Compact != compact {
			c = compactCheck{term: term}
		}
		rest := slices.DeleteFunc(m.trusting(), func(one member.Member) bool {
			return slices.ContainsFunc(c.agree, func(d leader.Data) bool { return d.Member == one.ID })
		})
		own, answers, err := c.own, []leader.Data(nil), error(nil)
		if own.Hashed {
			answers = m.hashesOf(ctx, rest, hashRequest{revision: compact, compact: -1, within: m.checkFor(m.options.CompactHashCheckTime), barrier: true})
		} else if own, answers, err = m.ownAndOthers(ctx, compact, compact, rest); err != nil {
			return err
		}
		all, err := m.judge(ctx, term, own, append(slices.Clone(c.agree), answers...))
		if err != nil {
			return err
		}
		c.own, c.done = own, all
		for _, d := range answers {
			if d.Hashed && d.Compact == own.Compact && d.Hash == own.Hash {
				c.agree = append(c.agree, d)
			}
		}
		return nil
	})
}

// whileLeading calls check in intervals while this member leads and has applied what earlier leaders agreed on.
func (m *Member) whileLeading(every time.Duration, check func(ctx context.Context, term uint64) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-m.life.Done():
			return
		case <-tick.C:
		}
		s := m.replica.Status()
		if s.Leader != m.identity.MemberID || s.AppliedTerm != s.Term {
			continue
		}
		ctx, cancel := context.WithTimeout(m.life, m.checkFor(every))
		if err := check(ctx, s.Term); err != nil && m.life.Err() == nil {
			m.logger.Warn("the members' data could not be compared; it will be tried again", "error", err)
		}
		cancel()
	}
}

// checkFor bounds one check.
func (m *Member) checkFor(every time.Duration) time.Duration {
	return max(every, m.options.requestTimeout())
}

// trusting are the other members, but for those that said of themselves that their data is damaged.
func (m *Member) trusting() []member.Member {
	return slices.DeleteFunc(m.others(), func(one member.Member) bool {
		return slices.Contains(m.Alarms(), kv.Alarm{Type: kv.AlarmCorrupt, MemberID: one.ID, Own: true})
	})
}

// ownAndOthers makes this member's hash while the others make theirs.
func (m *Member) ownAndOthers(ctx context.Context, revision, compact int64, others []member.Member) (own leader.Data, answers []leader.Data, err error) {
	var wg sync.WaitGroup
	wg.Go(func() {
		deadline, _ := ctx.Deadline()
		answers = m.hashesOf(ctx, others, hashRequest{revision: revision, compact: -1, within: time.Until(deadline), barrier: true})
	})
	own, err = m.dataAt(ctx, revision, -1)
	wg.Wait()
	if err == nil && (!own.Hashed || own.Compact != compact) {
		err = fmt.Errorf("history was compacted at %d while the members were asked about revision %d", own.Compact, revision)
	}
	own.Revision = revision
	return own, answers, err
}

// judge compares answers that were given after own was read, raises the alarm CORRUPT for those members whose data is
// wrong, and reports whether all members agree.
func (m *Member) judge(ctx context.Context, term uint64, own leader.Data, answers []leader.Data) (all bool, err error) {
	if err := m.leads(ctx, term); err != nil {
		return false, err
	}
	s, members := m.Store(), m.machine.state.Load().Members.All()
	now := leader.Data{Revision: s.Revision(), Compact: s.CompactRevision()}
	corrupt, compared := leader.Corrupt(own, answers, now, len(members))
	for _, id := range corrupt {
		what := "the data of a member differs from that of the majority: raising the alarm CORRUPT for it; remove it, disarm the alarm, and add it again with an empty data directory"
		if id == leader.Somebody {
			what = "the members' data differs, and no majority agrees: raising the alarm CORRUPT for the cluster; find the member that is right (endpoint hashkv), make a new cluster of it and disarm the alarm"
		}
		m.logger.Error(what, "member", fmt.Sprintf("%x", id), "revision", own.Revision, "compact-revision", own.Compact, "answers", fmt.Sprintf("%+v", append(answers, own)))
		m.raiseCorrupt(id)
	}
	if len(corrupt) == 0 {
		m.logger.Info("the members' data was compared", "revision", own.Revision, "compact-revision", own.Compact, "members", compared)
	}
	return len(corrupt) == 0 && compared == len(members)-1, nil
}

// raiseCorrupt raises the alarm CORRUPT for a member, or for leader.Somebody, unless it is raised.
func (m *Member) raiseCorrupt(id uint64) {
	if !m.corruptRaised(id) {
		alarm := kv.Alarm{Type: kv.AlarmCorrupt, MemberID: id}
		m.proposeQuietly(&command.Command{Alarm: &command.Alarm{Alarm: alarm, Raise: true, Found: true}})
	}
}

func (m *Member) corruptRaised(id uint64) bool {
	return slices.ContainsFunc(m.Alarms(), func(a kv.Alarm) bool { return a.Type == kv.AlarmCorrupt && a.MemberID == id })
}
