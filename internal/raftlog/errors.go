package raftlog

import (
	"errors"
	"fmt"
)

// ErrClosed is what a closed log's Err gives, and what Close gives the second time.
var ErrClosed = errors.New("raft log is closed")

// ErrHung is wrapped by what Close gives when the disk has not answered for closePatience.
var ErrHung = errors.New("the disk does not answer; nothing that was acknowledged is lost, and this process must not open the log again")

// DamageError says that bytes which had been on the disk are not there any more or are not what was written. Open changes
// nothing when it returns one.
type DamageError struct {
	File   string // path of the segment
	Offset int64  // bytes from the file's begin: the first record that cannot be trusted
	Reason string // what is wrong there
}

// Error names the place and the way out.
func (e *DamageError) Error() string {
	return fmt.Sprintf("raft log damaged: %s at offset %d: %s; what this member had acknowledged is no longer all there, so it "+
		"must not serve: keep a copy of its data directory, check the disk, then remove the member from the cluster and add it "+
		"again with an empty data directory (the other members hold everything), or restore a backup; "+
		"`trivet inspect log` shows what can still be read", e.File, e.Offset, e.Reason)
}

// VersionError says that a segment was written by a newer version of Trivet. Nothing is changed.
type VersionError struct {
	File    string
	Version uint32
}

// Error names the file and both versions.
func (e *VersionError) Error() string {
	return fmt.Sprintf("raft log segment %s has format version %d, this version of Trivet reads up to %d: start the newer "+
		"version that wrote it", e.File, e.Version, formatVersion)
}
