package fsm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// everybody waits for everything.
type everybody struct{}

func (everybody) Wants(_, _ uint64) bool { return true }

func openState(t testing.TB, fsys vfs.FS) *State {
	t.Helper()
	e, err := engine.Open(engine.Options{FS: fsys, Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := ReadPosition(e)
	if err != nil {
		t.Fatal(err)
	}
	if p.Index == 0 {
		members := []member.Member{{ID: 1, Name: "a", PeerURLs: []string{"http://a"}}}
		if err := Bootstrap(e, members, []byte("conf")); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(e, mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func entry(s *State, commands ...*command.Command) command.Entry {
	var encoded [][]byte
	for i, c := range commands {
		c.ID = uint64(i + 1)
		encoded = append(encoded, c.Append(nil))
	}
	return command.Entry{Index: s.Applied.Index + 1, Term: 5, Data: command.AppendBatch(nil, 1, encoded)}
}

// The scenarios under testdata: each "apply" is one log entry with a command per line; the answer is the result of each
// command and the events that came of them. "reopen" closes the state and opens it again from its rows.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		fsys := vfs.NewMem()
		s := openState(t, fsys)
		defer func() { s.Engine.Close() }()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "apply":
				return apply(t, s, d.Input)
			case "dump":
				return dump(t, s)
			case "reopen":
				if err := s.Engine.Flush(); err != nil {
					t.Fatal(err)
				}
				if err := s.Engine.Close(); err != nil {
					t.Fatal(err)
				}
				s = openState(t, fsys)
				return dump(t, s)
			}
			t.Fatalf("unknown command %s", d.Cmd)
			return ""
		})
	})
}

func apply(t *testing.T, s *State, input string) string {
	t.Helper()
	p := &parser{t: t, lines: strings.Split(strings.TrimSpace(input), "\n"), revision: s.Auth.Published().Settings().Revision}
	var commands []*command.Command
	for len(p.lines) > 0 {
		commands = append(commands, p.command())
	}
	out, err := s.Apply([]command.Entry{entry(s, commands...)}, everybody{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, a := range out.Results {
		fmt.Fprintf(&b, "%s: %s\n", commands[a.ID-1].Name(), result(a.Result))
	}
	for _, e := range out.Events {
		kind := "put"
		if e.Type == kv.Delete {
			kind = "delete"
		}
		fmt.Fprintf(&b, "event %v %s %s", e.Revision, kind, pair(e.KV))
		if !e.Superseded.IsZero() {
			fmt.Fprintf(&b, " over %v", e.Superseded)
		}
		b.WriteByte('\n')
	}
	for _, l := range out.Leases {
		fmt.Fprintf(&b, "lease %+v\n", l)
	}
	for _, token := range out.Tokens {
		fmt.Fprintf(&b, "token %+v\n", token)
	}
	return b.String()
}

func dump(t *testing.T, s *State) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "revision %d compacted %d applied %+v\n", s.Store.Revision(), s.Store.CompactRevision(), s.Applied)
	r, _, err := s.Store.Range(kv.RangeOptions{Range: kv.Range{Key: []byte{0}, End: []byte{0}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.KVs {
		fmt.Fprintf(&b, "%s\n", pair(p))
	}
	for _, id := range s.Leases.IDs() {
		l, _ := s.Leases.Lookup(id)
		keys, err := s.Leases.Keys(s.Engine, id)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "lease %d ttl %d remaining %d keys %q\n", id, l.TTL, l.Remaining, keys)
	}
	for _, a := range s.Alarms.All() {
		fmt.Fprintf(&b, "alarm %+v\n", a)
	}
	b.WriteString(dumpAuth(s))
	for _, m := range s.Members.All() {
		fmt.Fprintf(&b, "member %+v\n", m)
	}
	return b.String()
}

func pair(p kv.KeyValue) string {
	s := fmt.Sprintf("%s=%s create %d mod %d version %d", p.Key, p.Value, p.CreateRevision, p.ModRevision, p.Version)
	if p.Lease != 0 {
		s += fmt.Sprintf(" lease %d", p.Lease)
	}
	return s
}

func result(r command.Result) string {
	if r.Err != nil {
		return fmt.Sprintf("revision %d refused: %v", r.Revision, r.Err)
	}
	s := fmt.Sprintf("revision %d", r.Revision)
	if r.Prev != nil {
		s += " prev " + pair(*r.Prev)
	}
	if r.DeleteRange != nil {
		s += deleted(r.DeleteRange)
	}
	if r.Token != "" {
		s += " token " + r.Token
	}
	if r.Txn != nil {
		s += txnResult(r.Txn)
	}
	for _, a := range r.Alarms {
		s += fmt.Sprintf(" %+v", a)
	}
	return s
}

func deleted(d *command.DeleteResult) string {
	s := fmt.Sprintf(" deleted %d", d.Deleted)
	for _, p := range d.Prev {
		s += " [" + pair(p) + "]"
	}
	return s
}

func txnResult(t *command.TxnResult) string {
	s := fmt.Sprintf(" succeeded %v {", t.Succeeded)
	for i, op := range t.Ops {
		if i > 0 {
			s += ";"
		}
		s += fmt.Sprintf(" @%d", op.Revision)
		switch {
		case op.Put != nil && op.Put.Prev != nil:
			s += " put prev " + pair(*op.Put.Prev)
		case op.Put != nil:
			s += " put"
		case op.DeleteRange != nil:
			s += deleted(op.DeleteRange)
		case op.Txn != nil:
			s += txnResult(op.Txn)
		case op.Range != nil:
			s += fmt.Sprintf(" count %d", op.Range.Count)
			for _, p := range op.Range.KVs {
				s += " [" + pair(p) + "]"
			}
		}
	}
	return s + " }"
}

// parser reads commands, one per line. A transaction spans lines, from "txn" to "end":
//
//	txn
//	if KEY[..END] version|create|mod|lease|value =|!=|<|> WANT
//	then
//	OP...
//	else
//	OP...
//	end
//
// Before a command, @NAME says in whose name it is made, and @NAME:REVISION also under which auth revision.
type parser struct {
	t        *testing.T
	lines    []string
	revision uint64 // of users and roles, for those who name none
}

func (p *parser) next() []string {
	if len(p.lines) == 0 {
		p.t.Fatal("the input ended in the middle")
	}
	f := strings.Fields(p.lines[0])
	p.lines = p.lines[1:]
	return f
}

func (p *parser) number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

func (p *parser) command() *command.Command {
	f := p.next()
	if who, ok := strings.CutPrefix(f[0], "@"); ok {
		name, revision, given := strings.Cut(who, ":")
		c := p.commandOf(f[1:])
		if c.User, c.AuthRevision = name, p.revision; given {
			c.AuthRevision = uint64(p.number(revision))
		}
		return c
	}
	return p.commandOf(f)
}

func (p *parser) commandOf(f []string) *command.Command {
	switch f[0] {
	case "auth":
		return &command.Command{Auth: p.auth(f[1:])}
	case "grant":
		return &command.Command{LeaseGrant: &command.LeaseGrant{ID: kv.LeaseID(p.number(f[1])), TTL: p.number(f[2])}}
	case "revoke":
		r := &command.LeaseRevoke{ID: kv.LeaseID(p.number(f[1]))}
		for _, opt := range f[2:] {
			switch name, value, _ := strings.Cut(opt, "="); name {
			case "term":
				r.Term = uint64(p.number(value))
			case "granted":
				r.Granted = uint64(p.number(value))
			}
		}
		return &command.Command{LeaseRevoke: r}
	case "checkpoint":
		l, c := kv.Lease{ID: kv.LeaseID(p.number(f[1])), Remaining: p.number(f[2])}, &command.LeaseCheckpoint{}
		for _, opt := range f[3:] {
			switch name, value, _ := strings.Cut(opt, "="); name {
			case "term":
				c.Term = uint64(p.number(value))
			case "granted":
				l.Granted = uint64(p.number(value))
			}
		}
		c.Leases = []kv.Lease{l}
		return &command.Command{LeaseCheckpoint: c}
	case "compact":
		return &command.Command{Compact: &command.Compact{Revision: p.number(f[1])}}
	case "raise", "clear":
		types := map[string]kv.AlarmType{"none": kv.AlarmNone, "nospace": kv.AlarmNoSpace, "corrupt": kv.AlarmCorrupt}
		return &command.Command{Alarm: &command.Alarm{Raise: f[0] == "raise", Alarm: kv.Alarm{
			Type: types[f[1]], MemberID: uint64(p.number(f[2])), Own: slices.Contains(f[3:], "own"),
		}, Found: slices.Contains(f[3:], "found")}}
	case "publish":
		return &command.Command{MemberPublish: &command.MemberPublish{ID: uint64(p.number(f[1])), Name: f[2], ClientURLs: f[3:]}}
	}
	op := p.op(f)
	return &command.Command{Put: op.Put, DeleteRange: op.DeleteRange, Txn: op.Txn}
}

func (p *parser) op(f []string) command.Op {
	switch f[0] {
	case "put":
		put := &command.Put{Key: []byte(f[1]), Value: []byte(f[2])}
		for _, opt := range f[3:] {
			switch name, value, _ := strings.Cut(opt, "="); name {
			case "lease":
				put.Lease = kv.LeaseID(p.number(value))
			case "prev":
				put.PrevKV = true
			case "ignore_value":
				put.IgnoreValue, put.Value = true, nil
			case "ignore_lease":
				put.IgnoreLease = true
			}
		}
		return command.Op{Put: put}
	case "delete":
		return command.Op{DeleteRange: &command.DeleteRange{Range: p.keys(f[1]), PrevKV: len(f) > 2}}
	case "get":
		o := &kv.RangeOptions{Range: p.keys(f[1])}
		if len(f) > 2 {
			o.Revision = p.number(f[2])
		}
		return command.Op{Range: o}
	case "txn":
		return command.Op{Txn: p.txn()}
	}
	p.t.Fatalf("unknown operation %q", f)
	return command.Op{}
}

func (p *parser) keys(s string) kv.Range {
	key, end, isRange := strings.Cut(s, "..")
	if !isRange {
		return kv.Range{Key: []byte(key)}
	}
	if end == "" {
		end = "\x00"
	}
	return kv.Range{Key: []byte(key), End: []byte(end)}
}

func (p *parser) txn() *command.Txn {
	t := &command.Txn{}
	into := &t.Success
	for {
		switch f := p.next(); f[0] {
		case "if":
			t.Compare = append(t.Compare, p.compare(f))
		case "then":
			into = &t.Success
		case "else":
			into = &t.Failure
		case "end":
			return t
		default:
			*into = append(*into, p.op(f))
		}
	}
}

func (p *parser) compare(f []string) command.Compare {
	targets := map[string]command.CompareTarget{
		"version": command.CompareVersion, "create": command.CompareCreate, "mod": command.CompareMod,
		"value": command.CompareValue, "lease": command.CompareLease,
	}
	relations := map[string]command.CompareResult{
		"=": command.Equal, "!=": command.NotEqual, "<": command.Less, ">": command.Greater,
	}
	c := command.Compare{Range: p.keys(f[1]), Target: targets[f[2]], Result: relations[f[3]]}
	if c.Target == command.CompareValue {
		c.Value = []byte(f[4])
	} else {
		c.Int = p.number(f[4])
	}
	return c
}
