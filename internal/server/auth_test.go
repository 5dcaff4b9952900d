package server

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
)

// Users and roles reach every member: through the log, with a checkpoint that takes the place of the state, and over
// restarts (E#14355). Each member hears of every token that the log makes, and of every change.
func TestAuthOnEveryMember(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		var tokens [3]atomic.Int32
		options := c.options
		start := func(i int) *Member {
			o := options(i)
			o.OnToken = func(fsm.Token) { tokens[i].Add(1) }
			o.CatchupEntries = 100
			m, err := Start(o)
			if err != nil {
				t.Fatal(err)
			}
			c.members[i] = m
			return m
		}
		for i := range 3 {
			start(i)
		}
		root := auth.Who{}
		do := func(m *Member, want error, cmd *command.Command) {
			t.Helper()
			cmd.User, cmd.AuthRevision = root.User, root.Revision
			if r, err := m.Propose(t.Context(), cmd); err != nil || !errors.Is(r.Err, want) {
				t.Fatalf("%s: %v %v, want %v", cmd.Name(), err, r.Err, want)
			}
		}
		change := func(a command.Auth) *command.Command { return &command.Command{Auth: &a} }
		away := c.members[2]
		changed := away.AuthChanged()
		do(c.members[0], nil, change(command.Auth{Op: command.AuthUserAdd, Name: "root"}))
		do(c.members[1], nil, change(command.Auth{Op: command.AuthUserGrant, Name: "root", Role: "root"}))
		if err := away.ReadBarrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
		default:
			t.Error("the third member was not told that users changed")
		}
		c.network.Partition([]uint64{away.identity.MemberID})
		do(c.members[0], nil, change(command.Auth{Op: command.AuthUserAdd, Name: "u"}))
		do(c.members[0], nil, change(command.Auth{Op: command.AuthEnable}))
		do(c.members[1], kv.ErrUserEmpty, &command.Command{Put: &command.Put{Key: []byte("k")}})
		root = auth.Who{User: "root", Revision: c.members[0].Auth().Published().Settings().Revision}
		do(c.members[1], nil, change(command.Auth{Op: command.AuthAuthenticate, Name: "u", Nonce: "n"}))
		for i := range 3000 {
			do(c.members[0], nil, &command.Command{Put: &command.Put{Key: fmt.Appendf(nil, "k%d", i%100), Value: []byte(strings.Repeat("x", 100))}})
		}
		time.Sleep(2 * flushEvery) // so that the log is cut
		changed = away.AuthChanged()
		before := away.Auth()
		c.network.Heal()
		if err := away.ReadBarrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-changed
		if away.Auth() == before {
			t.Fatal("no checkpoint was installed")
		}
		check := func(m *Member) {
			t.Helper()
			v := m.Auth().Published()
			_, ok := v.User("u")
			if want := c.members[0].Auth().Published().Settings(); !ok || v.Settings() != want || !v.Enabled() {
				t.Errorf("%+v, want %+v; has u: %v", v.Settings(), want, ok)
			}
		}
		check(away)
		root.User = "u"
		do(away, kv.ErrPermissionDenied, &command.Command{Put: &command.Put{Key: []byte("k")}})
		for i := range 3 {
			c.stop(i)
			check(start(i))
		}
		if tokens[0].Load() == 0 || tokens[1].Load() == 0 {
			t.Error("a member was not told of a token")
		}
		c.stopAll()
	})
}
