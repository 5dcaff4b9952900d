package command

import "encoding/binary"

// MemberAdd makes a new member known. Its id was never used before.
type MemberAdd struct {
	ID       uint64
	PeerURLs []string
	Learner  bool
	// MaxLearners is how many learners there may be with this one, as the member that took the request was told
	// (--max-learners). It is in the command because all members must decide alike.
	MaxLearners uint64
}

// MemberRemove forgets a member; its id can never come back.
type MemberRemove struct{ ID uint64 }

// MemberPromote gives a learner a vote.
type MemberPromote struct{ ID uint64 }

// MemberUpdate changes where the others reach a member, and nothing else of it.
type MemberUpdate struct {
	ID       uint64
	PeerURLs []string
}

// ClusterVersion sets the version of the API that the whole cluster serves, such as 3.7.0.
type ClusterVersion struct{ Version string }

// Downgrade begins a downgrade to Target, a version as in ClusterVersion, or ends it.
type Downgrade struct {
	Enabled bool
	Target  string
}

// Conf reports whether the command changes with whom raft counts.
func (c *Command) Conf() bool {
	return c.MemberAdd != nil || c.MemberRemove != nil || c.MemberPromote != nil
}

// appendMembership appends the body of a command about members and the version that they agree on.
func (c *Command) appendMembership(dst []byte) []byte {
	switch {
	case c.MemberAdd != nil:
		dst = binary.AppendUvarint(dst, c.MemberAdd.ID)
		dst = append(dst, flags(c.MemberAdd.Learner, 1))
		dst = binary.AppendUvarint(dst, c.MemberAdd.MaxLearners)
		return appendStrings(dst, c.MemberAdd.PeerURLs)
	case c.MemberRemove != nil:
		return binary.AppendUvarint(dst, c.MemberRemove.ID)
	case c.MemberPromote != nil:
		return binary.AppendUvarint(dst, c.MemberPromote.ID)
	case c.MemberUpdate != nil:
		return appendStrings(binary.AppendUvarint(dst, c.MemberUpdate.ID), c.MemberUpdate.PeerURLs)
	case c.ClusterVersion != nil:
		return appendBytes(dst, []byte(c.ClusterVersion.Version))
	default:
		return appendBytes(append(dst, flags(c.Downgrade.Enabled, 1)), []byte(c.Downgrade.Target))
	}
}

// membership decodes the body of a command of a kind that appendMembership knows; false for other kinds.
func (d *decoder) membership(kind byte, c *Command) bool {
	switch kind {
	case kindMemberAdd:
		c.MemberAdd = &MemberAdd{ID: d.Uvarint(), Learner: d.flag(), MaxLearners: d.Uvarint(), PeerURLs: d.strings()}
	case kindMemberRemove:
		c.MemberRemove = &MemberRemove{ID: d.Uvarint()}
	case kindMemberPromote:
		c.MemberPromote = &MemberPromote{ID: d.Uvarint()}
	case kindMemberUpdate:
		c.MemberUpdate = &MemberUpdate{ID: d.Uvarint(), PeerURLs: d.strings()}
	case kindClusterVersion:
		c.ClusterVersion = &ClusterVersion{Version: string(d.Bytes())}
	case kindDowngrade:
		c.Downgrade = &Downgrade{Enabled: d.flag(), Target: string(d.Bytes())}
	default:
		return false
	}
	return true
}

// flag reads a byte that is 0 or 1.
func (d *decoder) flag() bool {
	b := d.Byte()
	if b > 1 {
		d.Fail()
	}
	return b == 1
}

func (d *decoder) strings() []string {
	n := d.Count()
	if n == 0 {
		return nil
	}
	all := make([]string, n)
	for i := range all {
		all[i] = string(d.Bytes())
	}
	return all
}
