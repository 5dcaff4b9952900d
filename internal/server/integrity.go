package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/leader"
	"github.com/trivet-kv/trivet/internal/member"
)

// The members' rolling hashes are compared all the time. While this member leads, and something was applied since the last
// time, it puts a mark into the log, at which all members note their hash (package fsm), and asks them for it. What a
// majority noted goes into the next mark; whoever noted something else finds that there, takes its own state for damaged
// and rebuilds itself (rebuild.go). So it is the log that says who is wrong, to the leader too, and to a member that was
// away. If some member differs, the next mark comes at once.

// integrity is what the leader knows of the last mark, in one term.
type integrity struct {
	term    uint64
	mark    uint64       // index of the last one
	agreed  command.Note // to be told by the next
	begin   bool         // the next begins the hashes anew
	telling bool         // the last mark came at once, to tell those who differ
}

// compareEffects compares the rolling hashes while this member leads. It runs until the member stops.
func (m *Member) compareEffects() {
	var i integrity
	m.whileLeading(m.options.IntegrityInterval, func(ctx context.Context, term uint64) error {
		if i.term != term {
			i = integrity{term: term}
		}
		for again := true; again; {
			var err error
			if again, err = m.markAndCompare(ctx, &i); err != nil {
				return err
			}
		}
		return nil
	})
}

// markAndCompare makes a mark and compares what the members noted there. Again tells that another mark must follow at once.
func (m *Member) markAndCompare(ctx context.Context, i *integrity) (again bool, err error) {
	others := m.others()
	if len(others) == 0 || m.replica.Status().Applied == i.mark && !i.telling && !i.begin {
		return false, nil // nobody to compare with, or nothing new
	}
	r, err := m.Propose(ctx, &command.Command{Mark: &command.Mark{Restart: i.begin, Agreed: i.agreed}})
	if err != nil {
		return false, err
	}
	begun, told := i.begin, i.telling
	*i = integrity{term: i.term, mark: r.Index}
	own, err := m.noteAt(ctx, r.Index)
	if err != nil {
		return false, err
	}
	notes, voters := m.notesOf(ctx, others, r.Index), 0
	for _, one := range m.machine.state.Load().Members.All() {
		if !one.Learner {
			voters++
		}
		if one.ID == m.identity.MemberID {
			notes = append(notes, leader.Noted{Member: one.ID, Voter: !one.Learner, Note: own})
		}
	}
	a := leader.Agree(r.Index, notes, voters)
	i.agreed, i.begin = a.Agreed, a.Restart
	switch {
	case a.Torn:
		return false, m.raiseForAll(ctx, r.Term, notes)
	case len(a.Differ) > 0:
		m.logger.Error("members differ from the majority in what they applied; they will find that in the log and rebuild themselves",
			"members", fmt.Sprintf("%x", a.Differ), "index", r.Index)
	}
	// Who was told and still differs is told again at the next interval: it may take a while to rebuild itself.
	i.telling = len(a.Differ) > 0 && !told
	return i.telling || i.begin && !begun, nil
}

// raiseForAll raises the alarm CORRUPT for the cluster, as etcd does: nobody can tell who is right.
func (m *Member) raiseForAll(ctx context.Context, term uint64, notes []leader.Noted) error {
	if err := m.leads(ctx, term); err != nil {
		return err
	}
	if m.corruptRaised(leader.Somebody) {
		return nil
	}
	m.logger.Error("the members differ in what they applied, and no majority agrees: raising the alarm CORRUPT for the cluster; find the member that is right (endpoint hashkv), make a new cluster of it and disarm the alarm",
		"notes", fmt.Sprintf("%+v", notes))
	m.raiseCorrupt(leader.Somebody)
	return nil
}

// noteAt is what this member noted at the entry, once it has applied that; a note that says nothing if it noted none.
func (m *Member) noteAt(ctx context.Context, index uint64) (command.Note, error) {
	for m.replica.Status().Applied < index {
		select {
		case <-ctx.Done():
			return command.Note{}, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	for _, n := range m.machine.state.Load().Notes() {
		if n.Index == index {
			return n, nil
		}
	}
	return command.Note{Index: index}, nil
}

// notesOf asks members for their notes and returns the answers of those that gave one.
func (m *Member) notesOf(ctx context.Context, members []member.Member, index uint64) []leader.Noted {
	ctx, cancel := context.WithTimeout(ctx, m.options.requestTimeout()/2)
	defer cancel()
	return gather(members, func(one member.Member) (leader.Noted, bool) {
		b, err := m.transport.Call(ctx, one.ID, callNote, binary.BigEndian.AppendUint64(nil, index))
		if err != nil || len(b) != 16 {
			return leader.Noted{}, false // it may be down, or behind: it will compare by itself
		}
		return leader.Noted{Member: one.ID, Voter: !one.Learner, Note: command.Note{
			Index: index, Since: binary.BigEndian.Uint64(b), Hash: binary.BigEndian.Uint64(b[8:]),
		}}, true
	})
}

// serveNote answers callNote.
func (m *Member) serveNote(ctx context.Context, index uint64) ([]byte, error) {
	if m.peers.replica.Load() == nil {
		return nil, errStarting
	}
	ctx, cancel := context.WithTimeout(ctx, m.options.requestTimeout()/2)
	defer cancel()
	n, err := m.noteAt(ctx, index)
	if err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, n.Since), n.Hash), nil
}

// diverged runs on the apply goroutine when this member found that it applied something else than the majority.
func (m *Member) diverged(d fsm.Divergence) {
	m.fail(fmt.Errorf("%w: its state differs from that of the majority: at entry %d the hash of what was applied since entry %d is %016x here and %016x there",
		errDiverged, d.Own.Index, d.Own.Since, d.Own.Hash, d.Agreed.Hash))
}

// errDiverged is wrapped when a state is not what the log made of it on the other members.
var errDiverged = errors.New("this member has diverged")

// ownCorrupt is the alarm that a member raises about itself when its state is not to be trusted, until it was rebuilt.
func (m *Member) ownCorrupt() kv.Alarm {
	return kv.Alarm{Type: kv.AlarmCorrupt, MemberID: m.identity.MemberID, Own: true}
}

// raiseOwn tells the cluster, if it can be told soon, that this member is about to rebuild itself.
func (m *Member) raiseOwn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*m.options.electionTimeout())
	defer cancel()
	if _, err := m.Propose(ctx, &command.Command{Alarm: &command.Alarm{Alarm: m.ownCorrupt(), Raise: true}}); err != nil {
		m.logger.Warn("the alarm CORRUPT could not be raised for this member", "error", err)
		return
	}
	m.logger.Warn("the alarm CORRUPT is raised for this member until it is rebuilt")
}

// clearOwn clears the alarm that this member raised about itself before it was rebuilt, in this start or an earlier one.
func (m *Member) clearOwn() {
	for m.life.Err() == nil {
		err := m.ReadBarrier(m.life)
		if err == nil {
			if !slices.Contains(m.Alarms(), m.ownCorrupt()) {
				return
			}
			_, err = m.Propose(m.life, &command.Command{Alarm: &command.Alarm{Alarm: m.ownCorrupt()}})
		}
		if err != nil {
			select {
			case <-m.life.Done():
			case <-time.After(m.options.Tick):
			}
		}
	}
}
