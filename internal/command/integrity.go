package command

import "encoding/binary"

// Mark is a place in the log at which every member notes the rolling hash of what it has applied (package fsm).
type Mark struct {
	// Restart makes every member begin its hash anew at this entry, the same on all: members whose states are too old to
	// have one take part from here on.
	Restart bool
	// Agreed is what a majority of the members had noted at an earlier mark; its zero value says nothing. A member that
	// noted something else there differs from the majority.
	Agreed Note
}

// Note is a rolling hash: of everything applied behind the entry Since, up to and including the entry Index.
type Note struct {
	Index, Since, Hash uint64
}

// Fence does nothing. Once it is committed, so was everything that was acknowledged before it was proposed, by members
// other than the one it is for, which keeps silent until then: see A8 in docs/invariants.md.
type Fence struct {
	Member uint64
}

func (m *Mark) append(dst []byte) []byte {
	dst = append(dst, flags(m.Restart, 1))
	dst = binary.AppendUvarint(dst, m.Agreed.Index)
	dst = binary.AppendUvarint(dst, m.Agreed.Since)
	return binary.BigEndian.AppendUint64(dst, m.Agreed.Hash)
}

func (d *decoder) mark() *Mark {
	f := d.Byte()
	if f > 1 {
		d.Fail()
	}
	return &Mark{Restart: f == 1, Agreed: Note{Index: d.Uvarint(), Since: d.Uvarint(), Hash: d.Uint64()}}
}
