package raftlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
)

const (
	// segmentHeaderBytes is a block of its own, so that no write of a record ever rewrites the header's sector.
	segmentHeaderBytes = 4096
	// headerUsedBytes of it are written; the rest is left as it is:
	//
	//	 0 magic "TRVTLOG\n"                           8 bytes
	//	 8 format version                              uint32
	//	12 flags: 1 = there is a hard state            uint32
	//	16 sequence number                             uint64
	//	24 salt                                        uint64
	//	32 file size                                   uint64
	//	40 end of the segment before, 0 in the first   uint64
	//	48 last index, 56 last term                    uint64
	//	64 term, 72 vote, 80 commit                    uint64
	//	88 CRC32C of bytes 0..88                       uint32
	headerUsedBytes = 92
	headerMagic     = "TRVTLOG\n"
	formatVersion   = 1
	// maxVersion is more than there will ever be: what gives a higher one in a header that does not check is damage, which a
	// member is rebuilt for, and not the log of a newer Trivet, which nobody may touch.
	maxVersion = 1<<16 - 1
)

// segmentHeader is everything that recovery needs to begin at this segment as if nothing had been before it.
type segmentHeader struct {
	version   uint32
	seal      seal
	size      int64
	prevEnd   int64
	base      Position
	hardState *raftpb.HardState // nil if none was written yet
}

func (h segmentHeader) encode() []byte {
	b := make([]byte, headerUsedBytes)
	copy(b, headerMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], formatVersion)
	if h.hardState != nil {
		le.PutUint32(b[12:], 1)
	}
	le.PutUint64(b[16:], h.seal.seq)
	le.PutUint64(b[24:], h.seal.salt)
	le.PutUint64(b[32:], uint64(h.size))
	le.PutUint64(b[40:], uint64(h.prevEnd))
	le.PutUint64(b[48:], h.base.Index)
	le.PutUint64(b[56:], h.base.Term)
	le.PutUint64(b[64:], h.hardState.GetTerm())
	le.PutUint64(b[72:], h.hardState.GetVote())
	le.PutUint64(b[80:], h.hardState.GetCommit())
	le.PutUint32(b[88:], crc32.Checksum(b[:88], castagnoli))
	return b
}

// decodeSegmentHeader decodes and checks the header in b. The reason is empty if it is good; a version that is not known
// is a good header with that version and nothing else in it.
func decodeSegmentHeader(b []byte) (h segmentHeader, reason string) {
	if len(b) < headerUsedBytes {
		return h, fmt.Sprintf("the file has only %d bytes", len(b))
	}
	le := binary.LittleEndian
	if string(b[:8]) != headerMagic {
		return h, "the segment header does not begin with Trivet's mark"
	}
	h.version = le.Uint32(b[8:])
	if le.Uint32(b[88:]) != crc32.Checksum(b[:88], castagnoli) {
		if h.version > formatVersion && h.version <= maxVersion {
			return h, ""
		}
		return h, "the segment header's checksum does not match"
	}
	h.seal = seal{seq: le.Uint64(b[16:]), salt: le.Uint64(b[24:])}
	h.size = int64(le.Uint64(b[32:]))
	h.prevEnd = int64(le.Uint64(b[40:]))
	h.base = Position{Index: le.Uint64(b[48:]), Term: le.Uint64(b[56:])}
	if le.Uint32(b[12:])&1 != 0 {
		term, vote, commit := le.Uint64(b[64:]), le.Uint64(b[72:]), le.Uint64(b[80:])
		h.hardState = &raftpb.HardState{Term: &term, Vote: &vote, Commit: &commit}
	}
	if h.size < segmentHeaderBytes || h.size > maxSegmentBytes {
		return h, fmt.Sprintf("the segment header gives an impossible size of %d bytes", h.size)
	}
	return h, ""
}

// File names. A live segment is NNNNNNNNNNNNNNNN.log after its sequence number; one that waits to be used again keeps the
// number it had, NNNNNNNNNNNNNNNN.free; what is being zero-filled ends in .tmp and means nothing after a restart.
const (
	liveSuffix = ".log"
	freeSuffix = ".free"
	tmpSuffix  = ".tmp"
	spareName  = "spare" + tmpSuffix // owned by the filler, then by the writer
	bigName    = "big" + tmpSuffix   // owned by the writer: a segment for one write larger than a segment
)

func segmentName(seq uint64, suffix string) string {
	return fmt.Sprintf("%016d%s", seq, suffix)
}

// parseName gives the sequence number in a file name with the given suffix.
func parseName(name, suffix string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	seq, err := strconv.ParseUint(digits, 10, 64)
	return seq, err == nil && seq > 0
}
