package cli

import (
	"fmt"
	"reflect"
	"strings"
	"unicode"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/raftlog"
)

type logLine struct {
	Segment  uint64 `json:"segment"`
	Offset   int64  `json:"offset"`
	Kind     string `json:"kind"`
	Index    uint64 `json:"index,omitempty"`
	Term     uint64 `json:"term,omitempty"`
	Bytes    int64  `json:"bytes"`
	Vote     id     `json:"vote,omitempty"`
	Commit   uint64 `json:"commit,omitempty"`
	Origin   id     `json:"origin,omitempty"` // of the batch: the start of the member that packed it
	Commands []any  `json:"commands,omitempty"`
	Data     string `json:"data,omitempty"`  // hexadecimal, of an entry of raft's own
	Error    string `json:"error,omitempty"` // the entry cannot be decoded
}

// log shows every record, dead ones too: a truncation says which.
func (i *inspection) log() error {
	return raftlog.Read(i.fs, i.dir.Log(), func(r raftlog.Record) error {
		if r.Kind == raftlog.KindEntry && r.Index < i.from {
			return nil
		}
		l := logLine{Segment: r.Segment, Offset: r.Offset, Kind: r.Kind.String(), Bytes: r.Bytes, Index: r.Index, Term: r.Term}
		switch {
		case r.HardState != nil:
			l.Term, l.Vote, l.Commit = r.HardState.GetTerm(), id(r.HardState.GetVote()), r.HardState.GetCommit()
		case r.Kind == raftlog.KindEntry:
			i.entry(&l, r)
		default:
			l.Index, l.Term = r.Position.Index, r.Position.Term
		}
		return i.line(l)
	})
}

// entry decodes what an entry carries. Only the state machine's own entries hold commands; the others are raft's.
func (i *inspection) entry(l *logLine, r raftlog.Record) {
	if t := r.Type.String(); t != "EntryNormal" {
		l.Kind, l.Data = t, fmt.Sprintf("%x", r.Data)
		return
	}
	err := command.Batch(r.Data, func(origin uint64, encoded []byte) error {
		l.Origin = id(origin)
		var c command.Command
		if err := c.Decode(encoded); err != nil {
			return err
		}
		l.Commands = append(l.Commands, i.plain(reflect.ValueOf(c)))
		return nil
	})
	if err != nil {
		l.Error = err.Error()
	}
}

// notShown stands for a secret.
const notShown = "(not shown)"

// plain turns a value of package command into what JSON shows well: names in etcd's style, zero values left out, bytes as
// text.
func (i *inspection) plain(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer:
		return i.plain(v.Elem())
	case reflect.Struct:
		m := map[string]any{}
		for n := range v.NumField() {
			f := v.Type().Field(n)
			if !f.IsExported() || v.Field(n).IsZero() || i.keysOnly && f.Name == "Value" {
				continue
			}
			if f.Name == "Hash" || f.Name == "Nonce" { // of a password, and what a token is made of
				m[snake(f.Name)] = notShown
				continue
			}
			p := i.plain(v.Field(n))
			if number, ok := p.(uint64); ok && f.Name == "ID" && v.Type() != reflect.TypeFor[command.Command]() {
				p = id(number) // of a member; a command's own is only a counter
			}
			if inner, ok := p.(map[string]any); ok && f.Anonymous {
				for k, x := range inner {
					m[k] = x
				}
				continue
			}
			m[snake(f.Name)] = p
		}
		return m
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return text(v.Bytes())
		}
		list := make([]any, v.Len())
		for n := range list {
			list[n] = i.plain(v.Index(n))
		}
		return list
	}
	if lease, ok := v.Interface().(kv.LeaseID); ok {
		return id(lease)
	}
	return v.Interface()
}

// snake is put_range of PutRange, and id of ID.
func snake(name string) string {
	var b strings.Builder
	runes := []rune(strings.ReplaceAll(name, "URLs", "Urls"))
	for n, r := range runes {
		if n > 0 && unicode.IsUpper(r) && (unicode.IsLower(runes[n-1]) || n+1 < len(runes) && unicode.IsLower(runes[n+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
