package front

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/http2"
)

const (
	frameHead = 9        // bytes before the payload of a frame (RFC 9113, section 4.1)
	maxFrame  = 16 << 10 // payload of a frame, in both directions: the protocol's least, which every peer takes
	msgHead   = 5        // bytes before a message of gRPC: whether it is compressed, and its length
)

// preface is how a client begins (RFC 9113, section 3.4).
const preface = http2.ClientPreface

// frame is the head of a frame.
type frame struct {
	length int
	kind   http2.FrameType
	flags  http2.Flags
	id     uint32
}

func parseFrame(b []byte) frame {
	_ = b[frameHead-1]
	return frame{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   http2.FrameType(b[3]), flags: http2.Flags(b[4]),
		id: binary.BigEndian.Uint32(b[5:]) & (1<<31 - 1),
	}
}

func appendFrame(b []byte, length int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags),
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendReset(b []byte, id uint32, code http2.ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(b, 4, http2.FrameRSTStream, 0, id), uint32(code))
}

func appendWindowUpdate(b []byte, id uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(b, 4, http2.FrameWindowUpdate, 0, id), uint32(n))
}

func appendGoAway(b []byte, last uint32, code http2.ErrCode, text string) []byte {
	b = appendFrame(b, 8+len(text), http2.FrameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, text...)
}

func appendPing(b []byte, flags http2.Flags, data [8]byte) []byte {
	return append(appendFrame(b, 8, http2.FramePing, flags, 0), data[:]...)
}

func appendSetting(b []byte, id http2.SettingID, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, uint16(id)), v)
}

// connError ends a connection: what its client did, in the words of GOAWAY.
type connError struct {
	code http2.ErrCode
	text string
}

func (e connError) Error() string { return fmt.Sprintf("front: %v: %s", e.code, e.text) }

// unpad cuts the padding off a payload of which the first skip bytes follow the length of the padding.
func unpad(f frame, p []byte) ([]byte, error) {
	if !f.flags.Has(http2.FlagDataPadded) { // the same bit in HEADERS
		return p, nil
	}
	if len(p) == 0 {
		return nil, connError{http2.ErrCodeFrameSize, "a padded frame without the length of its padding"}
	}
	pad := int(p[0])
	if pad > len(p)-1 {
		return nil, connError{http2.ErrCodeProtocol, "a frame whose padding is longer than itself"}
	}
	return p[1 : len(p)-pad], nil
}
