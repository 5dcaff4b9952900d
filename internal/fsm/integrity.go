package fsm

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
)

// The rolling hash of what was applied. Every command mixes in what it did: its place in the log, whether it was refused,
// the changes of keys with what they superseded, and those of leases. It does not depend on how entries fell into batches or
// on who waited, and is in the same batch as the effects, so that a member which applies entries again after a crash comes
// to the same hash. A member that has another hash than the others behind the same entry did something else than they.
//
// It costs nothing to agree on: marks in the log say where every member notes its hash, and a later mark carries the note
// that a majority made.

// maxNotes is how many notes are kept: a leader asks for the last, and the next mark or two speak of it.
const maxNotes = 4

const sumVersion = 1

var (
	rowSum   = engine.MetaName("sum")   // version, since, hash: 1, 8, 8 bytes, in every batch
	rowNotes = engine.MetaName("notes") // version, then of each note, oldest first: index, since, hash, 8 bytes each
)

// sum is the rolling hash of everything that was applied behind the entry since; 0: of nothing, as in a state that is older
// than hashes, until a mark begins one.
type sum struct {
	since, hash uint64
	notes       []command.Note // the last ones, oldest first; never changed in place
}

// Divergence tells that this state differs from those of the majority: the two notes are of the same entry.
type Divergence struct {
	Own, Agreed command.Note
}

func readSum(r engine.Reader) (s sum, err error) {
	row, found, err := r.Get(rowSum)
	if err != nil {
		return sum{}, err
	}
	if found {
		if len(row) != 17 || row[0] != sumVersion {
			return sum{}, fmt.Errorf("%w: the row of the rolling hash is %x", engine.ErrMalformed, row)
		}
		s.since, s.hash = binary.BigEndian.Uint64(row[1:]), binary.BigEndian.Uint64(row[9:])
	}
	if row, found, err = r.Get(rowNotes); err != nil || !found {
		return s, err
	}
	if len(row)%24 != 1 || row[0] != sumVersion {
		return sum{}, fmt.Errorf("%w: the row of the noted hashes is %x", engine.ErrMalformed, row)
	}
	for b := row[1:]; len(b) > 0; b = b[24:] {
		s.notes = append(s.notes, command.Note{
			Index: binary.BigEndian.Uint64(b), Since: binary.BigEndian.Uint64(b[8:]), Hash: binary.BigEndian.Uint64(b[16:]),
		})
	}
	return s, nil
}

// write puts the hash into the batch; once there is none, there is no row.
func (s *sum) write(b *engine.Batch) error {
	if s.since == 0 {
		return nil
	}
	row := append(make([]byte, 0, 17), sumVersion)
	row = binary.BigEndian.AppendUint64(row, s.since)
	return b.Set(rowSum, binary.BigEndian.AppendUint64(row, s.hash))
}

func (s *sum) writeNotes(b *engine.Batch) error {
	row := []byte{sumVersion}
	for _, n := range s.notes {
		for _, x := range []uint64{n.Index, n.Since, n.Hash} {
			row = binary.BigEndian.AppendUint64(row, x)
		}
	}
	return b.Set(rowNotes, row)
}

// Notes are the hashes that were noted at the last marks, oldest first. Any goroutine may ask; the slice is not to be
// changed.
func (s *State) Notes() []command.Note {
	if n := s.notes.Load(); n != nil {
		return *n
	}
	return nil
}

// mark notes the hash of what was applied before the entry, and compares an older note with what a majority noted.
func (a *applier) mark(m *command.Mark) error {
	for _, own := range a.sum.notes {
		if own.Index == m.Agreed.Index && own.Since == m.Agreed.Since && own.Hash != m.Agreed.Hash {
			a.outcome.Diverged = &Divergence{Own: own, Agreed: m.Agreed}
		}
	}
	if m.Restart {
		a.sum.since, a.sum.hash = a.entry.Index, 0
	}
	if a.sum.since == 0 {
		return nil
	}
	notes := append(slices.Clone(a.sum.notes), command.Note{Index: a.entry.Index, Since: a.sum.since, Hash: a.sum.hash})
	a.sum.notes = notes[max(0, len(notes)-maxNotes):]
	return a.sum.writeNotes(a.batch)
}

// mixer is what mixing needs beside the hash.
type mixer struct {
	digest         xxhash.Digest
	scratch        []byte
	events, leases int // of those in the batch, how many are mixed in
}

// mix adds to the hash what the command did.
func (a *applier) mix(kind byte, r *command.Result) {
	if a.sum.since == 0 {
		return
	}
	d := &a.mixer.digest
	d.Reset()
	refused := byte(0)
	if r.Err != nil {
		refused = 1 // not why: texts change between versions
	}
	events := a.writer.Events()[a.mixer.events:]
	leases := a.outcome.Leases[a.mixer.leases:]
	b := binary.BigEndian.AppendUint64(a.mixer.scratch[:0], a.sum.hash)
	b = binary.BigEndian.AppendUint64(b, a.entry.Index)
	b = append(b, kind, refused)
	for _, n := range []int64{r.Revision, int64(len(events)), int64(len(leases))} {
		b = binary.AppendVarint(b, n)
	}
	for i := range events {
		e := &events[i]
		b = append(b, byte(e.Type))
		for _, n := range [...]int64{
			e.Revision.Main, e.Revision.Sub, e.Superseded.Main, e.Superseded.Sub,
			e.KV.CreateRevision, e.KV.Version, int64(e.KV.Lease), int64(len(e.KV.Key)), int64(len(e.KV.Value)),
		} {
			b = binary.AppendVarint(b, n)
		}
		b = append(b, e.KV.Key...)
		_, _ = d.Write(b) // hashes do not fail
		_, _ = d.Write(e.KV.Value)
		b = b[:0]
	}
	for i := range leases {
		b = mixLease(b, &leases[i])
	}
	_, _ = d.Write(b)
	a.sum.hash = d.Sum64()
	a.mixer.events, a.mixer.leases = len(a.writer.Events()), len(a.outcome.Leases)
	a.mixer.scratch = b
}

func mixLease(b []byte, c *LeaseChange) []byte {
	flags := byte(0)
	if c.Granted {
		flags |= 1
	}
	if c.Revoked {
		flags |= 2
	}
	b = append(b, flags)
	for _, n := range [...]int64{int64(c.Lease.ID), c.Lease.TTL, c.Lease.Remaining} {
		b = binary.AppendVarint(b, n)
	}
	return binary.AppendUvarint(b, c.Lease.Granted)
}
