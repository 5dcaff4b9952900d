package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/trivet-kv/trivet/internal/alarm"
	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/lease"
	"github.com/trivet-kv/trivet/internal/raftlog"
)

// stateLine is one row. Which fields are there depends on the row's prefix.
type stateLine struct {
	Row string `json:"row"` // what the prefix stands for

	Key         text            `json:"key,omitempty"`
	Revision    string          `json:"revision,omitempty"` // main, or main.sub
	Op          string          `json:"op,omitempty"`       // put or delete
	Replaced    string          `json:"replaced,omitempty"` // the revision that a change superseded
	Create      int64           `json:"create_revision,omitempty"`
	Version     int64           `json:"version,omitempty"`
	Value       text            `json:"value,omitempty"`
	Lease       id              `json:"lease,omitempty"`
	TTL         int64           `json:"ttl,omitempty"`       // seconds
	Remaining   int64           `json:"remaining,omitempty"` // seconds, as last checkpointed
	Member      json.RawMessage `json:"member,omitempty"`
	Auth        map[string]any  `json:"auth,omitempty"` // of users, roles and their settings; never a password's hash
	Alarm       string          `json:"alarm,omitempty"`
	AlarmMember id              `json:"alarm_member,omitempty"`
	Own         bool            `json:"own,omitempty"`  // the member raised the alarm itself
	Name        string          `json:"name,omitempty"` // of a meta row
	Number      *int64          `json:"number,omitempty"`
	Index       uint64          `json:"index,omitempty"`
	Term        uint64          `json:"term,omitempty"`
	Raw         string          `json:"raw,omitempty"` // hexadecimal: the value, if nothing above tells it
}

// state shows every row.
func (i *inspection) state() error {
	e, err := i.openState()
	if err != nil {
		return err
	}
	defer e.Close()
	leases, err := lease.Open(e)
	if err != nil {
		return err
	}
	it, err := e.NewIter(nil, nil)
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if i.rows != "" && !strings.ContainsRune(i.rows, rune(it.Key()[0])) {
			continue
		}
		l, err := stateRow(it.Key(), it.Value(), leases)
		if err != nil {
			return err
		}
		if i.keysOnly {
			l.Value = nil
		}
		if err := i.line(l); err != nil {
			return err
		}
	}
	return it.Err()
}

func stateRow(key, value []byte, leases *lease.Leases) (l stateLine, err error) {
	switch key[0] {
	case engine.PrefixVersion:
		return versionRow(key, value)
	case engine.PrefixRevision:
		rev, err := engine.DecodeRevision(key)
		if err != nil {
			return l, err
		}
		c, err := engine.DecodeChange(value)
		l = stateLine{Row: "change", Revision: revisionText(rev), Key: c.Key, Op: opText(c.Type)}
		if c.Superseded.Main != 0 {
			l.Replaced = revisionText(c.Superseded)
		}
		return l, err
	case engine.PrefixLease:
		n, err := engine.DecodeLease(key)
		terms, _ := leases.Lookup(n)
		return stateLine{Row: "lease", Lease: id(n), TTL: terms.TTL, Remaining: terms.Remaining}, err
	case engine.PrefixAttachment:
		n, k, err := engine.DecodeAttachment(key)
		return stateLine{Row: "attachment", Lease: id(n), Key: k}, err
	case engine.PrefixFence:
		k, err := engine.DecodeFence(key)
		return stateLine{Row: "fence", Key: k, Raw: fmt.Sprintf("%x", value)}, err
	case engine.PrefixMember:
		if _, err := engine.DecodeMember(key); err != nil {
			return l, err
		}
		l = stateLine{Row: "member"}
		if json.Valid(value) {
			l.Member = append(l.Member, value...)
		} else {
			l.Raw = fmt.Sprintf("%x", value)
		}
		return l, nil
	case engine.PrefixAlarm:
		a, err := alarm.Decode(key, value)
		return stateLine{Row: "alarm", Alarm: a.Type.String(), AlarmMember: id(a.MemberID), Own: a.Own}, err
	case engine.PrefixAuth:
		return authRow(key, value)
	case engine.PrefixMeta:
		return metaRow(key, value)
	}
	return stateLine{Row: "unknown", Name: fmt.Sprintf("%x", key), Raw: fmt.Sprintf("%x", value)}, nil
}

func versionRow(key, value []byte) (l stateLine, err error) {
	k, rev, err := engine.DecodeVersion(key)
	if err != nil {
		return l, err
	}
	tail, tombstone, err := engine.DecodeVersionValue(value)
	if err != nil {
		return l, err
	}
	l = stateLine{Row: "version", Key: k, Revision: revisionText(rev), Op: opText(kv.Put)}
	if tombstone {
		l.Op = opText(kv.Delete)
		return l, nil
	}
	t, err := engine.DecodeTail(tail)
	l.Create, l.Version, l.Value, l.Lease = t.Create, t.Version, t.Value, id(t.Lease)
	return l, err
}

func authRow(key, value []byte) (stateLine, error) {
	row, err := auth.DecodeRow(key, value)
	switch {
	case err != nil:
		return stateLine{}, err
	case row.User != nil:
		u := map[string]any{"roles": row.User.Roles, "no_password": row.User.NoPassword, "since": row.User.Since}
		return stateLine{Row: "user", Name: row.User.Name, Auth: u}, nil
	case row.Role != nil:
		var permissions []map[string]any
		for _, p := range row.Role.Permissions {
			permissions = append(permissions, map[string]any{"key": text(p.Key), "range_end": text(p.End), "access": p.Access})
		}
		return stateLine{Row: "role", Name: row.Role.Name, Auth: map[string]any{"permissions": permissions}}, nil
	}
	s := row.Settings
	return stateLine{Row: "auth", Auth: map[string]any{"enabled": s.Enabled, "revision": s.Revision, "disabled": s.Disabled}}, nil
}

func metaRow(key, value []byte) (l stateLine, err error) {
	l = stateLine{Row: "meta", Name: string(key[1:])}
	switch l.Name {
	case string(engine.MetaApplied()[1:]):
		l.Index, l.Term, err = engine.DecodeApplied(value)
	case string(engine.MetaRevision()[1:]), string(engine.MetaCompact()[1:]), string(engine.MetaFormat()[1:]):
		var n int64
		n, err = engine.DecodeNumber(value)
		l.Number = &n
	default:
		l.Raw = fmt.Sprintf("%x", value)
	}
	return l, err
}

func opText(t kv.EventType) string {
	if t == kv.Delete {
		return "delete"
	}
	return "put"
}

func revisionText(r kv.Revision) string {
	if r.Sub == 0 {
		return fmt.Sprint(r.Main)
	}
	return fmt.Sprintf("%d.%d", r.Main, r.Sub)
}

// memberLine is the answer to inspect member.
type memberLine struct {
	Name      string   `json:"name"`
	MemberID  id       `json:"member_id"`
	ClusterID id       `json:"cluster_id"`
	Token     string   `json:"cluster_token"`
	PeerURLs  []string `json:"peer_urls"`

	State           string `json:"state"` // the current folder
	Applied         uint64 `json:"applied_index"`
	AppliedTerm     uint64 `json:"applied_term"`
	Revision        int64  `json:"revision"`
	CompactRevision int64  `json:"compact_revision"`
	StateBytes      int64  `json:"state_bytes"` // on disk

	LogFirst  uint64 `json:"log_first_index"`
	LogLast   uint64 `json:"log_last_index"`
	Term      uint64 `json:"term"`
	Vote      id     `json:"vote,omitempty"`
	Commit    uint64 `json:"commit"` // as last recorded; it may be further
	CleanStop bool   `json:"clean_stop"`
	LogTorn   bool   `json:"log_torn,omitempty"`  // a start will cut an incomplete write
	LogError  string `json:"log_error,omitempty"` // the log is damaged

	StateError string `json:"state_error,omitempty"` // the state is damaged, or in use
}

// member shows the identity, and how far state and log have come.
func (i *inspection) member() error {
	who := i.dir.Identity
	l := memberLine{Name: who.Name, MemberID: id(who.MemberID), ClusterID: id(who.ClusterID), Token: who.Token, PeerURLs: who.PeerURLs}
	stateErr := i.stateReach(&l)
	if stateErr != nil {
		l.StateError = stateErr.Error()
	}
	if err := i.logReach(&l); err != nil {
		l.LogError = err.Error()
	}
	if err := i.line(l); err != nil {
		return err
	}
	return stateErr
}

// stateReach finds how far the state has come.
func (i *inspection) stateReach(l *memberLine) error {
	e, err := i.openState()
	if err != nil {
		return err
	}
	defer e.Close()
	l.State = e.Dir()
	l.StateBytes, _ = e.DiskUsage()
	for _, m := range [][]byte{engine.MetaApplied(), engine.MetaRevision(), engine.MetaCompact()} {
		value, found, err := e.Get(m)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		row, err := metaRow(m, value)
		if err != nil {
			return err
		}
		switch {
		case row.Number == nil:
			l.Applied, l.AppliedTerm = row.Index, row.Term
		case row.Name == string(engine.MetaRevision()[1:]):
			l.Revision = *row.Number
		default:
			l.CompactRevision = *row.Number
		}
	}
	return nil
}

// logReach finds the log's first and last living entry and its newest hard state.
func (i *inspection) logReach(l *memberLine) error {
	return raftlog.Read(i.fs, i.dir.Log(), func(r raftlog.Record) error {
		l.CleanStop = r.Kind == raftlog.KindClosed
		switch r.Kind {
		case raftlog.KindEntry:
			if l.LogFirst == 0 || r.Index < l.LogFirst {
				l.LogFirst = r.Index
			}
			l.LogLast = r.Index
		case raftlog.KindTruncate:
			l.LogLast = r.Position.Index
		case raftlog.KindReset:
			l.LogFirst, l.LogLast = 0, r.Position.Index
		case raftlog.KindTorn:
			l.LogTorn = true
		}
		if h := r.HardState; h != nil {
			l.Term, l.Vote, l.Commit = h.GetTerm(), id(h.GetVote()), h.GetCommit()
		}
		return nil
	})
}
