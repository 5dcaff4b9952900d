package fsm

import (
	"fmt"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// allowed checks, against the users and roles as they are at this place of the log, whether c's user may have it done. The
// member that took the request cannot know what is in the log before it, so every member checks again, and all alike.
//
// What only a leader or a member itself proposes is not checked: those commands have no user, and no client can make them.
func (a *applier) allowed(c *command.Command) error {
	return a.mayDo(a.Auth.Working(), a.batch, c)
}

// Allowed checks the same against the users and roles as they are now, for a member that refuses c without the log: who
// may not have it done is to hear that first. It may be called from any goroutine.
func (s *State) Allowed(c *command.Command) error {
	return s.mayDo(s.Auth.Published(), s.Engine, c)
}

// mayDo checks whether c's user may have it done, by the users and roles of v and the leases' keys in r.
func (s *State) mayDo(v auth.View, r engine.Reader, c *command.Command) error {
	if !v.Enabled() {
		return nil
	}
	who := auth.Who{User: c.User, Revision: c.AuthRevision}
	switch {
	case c.Put != nil, c.DeleteRange != nil, c.Txn != nil:
		p := v.Permissions(who)
		if p.All() {
			return nil
		}
		return s.permitted(r, &p).command(c)
	case c.LeaseRevoke != nil && c.LeaseRevoke.Term == 0: // else its time is over, and the leader revokes it
		p := v.Permissions(who)
		if p.All() {
			return nil
		}
		return s.permitted(r, &p).lease(c.LeaseRevoke.ID)
	case c.Auth != nil && c.Auth.Op != command.AuthAuthenticate:
		return v.Admin(who)
	case c.Alarm != nil && !c.Alarm.Own && !c.Alarm.Found:
		return v.Admin(who)
	}
	return nil
}

func (s *State) permitted(r engine.Reader, p *auth.Permissions) permitted {
	return permitted{p, func(id kv.LeaseID) error {
		return s.Leases.Skim(r, id, func(key []byte) ([]byte, error) { return p.Reach(kv.Write, key) })
	}}
}

// permitted asks of somebody's permissions what a request needs: to write what it puts and deletes, also for the keys
// that hang on a lease already when another is to hang there, since who may not write them cannot revoke the lease; and
// to read what it compares, ranges over, or wants to see the previous pairs of. Both branches of a transaction count,
// whichever will be taken.
type permitted struct {
	*auth.Permissions
	lease func(kv.LeaseID) error // whether all keys of a lease may be written
}

func (p permitted) command(c *command.Command) error {
	switch {
	case c.Put != nil:
		return p.put(c.Put)
	case c.DeleteRange != nil:
		return p.delete(c.DeleteRange)
	}
	return p.txn(c.Txn)
}

func (p permitted) put(put *command.Put) error {
	key := kv.Range{Key: put.Key}
	if err := p.Write(key); err != nil {
		return err
	}
	if put.Lease != 0 {
		if err := p.lease(put.Lease); err != nil {
			return err
		}
	}
	if put.PrevKV {
		return p.Read(key)
	}
	return nil
}

func (p permitted) delete(d *command.DeleteRange) error {
	if err := p.Write(d.Range); err != nil {
		return err
	}
	if d.PrevKV {
		return p.Read(d.Range)
	}
	return nil
}

func (p permitted) txn(t *command.Txn) error {
	for i := range t.Compare {
		if err := p.Read(t.Compare[i].Range); err != nil {
			return err
		}
	}
	for _, ops := range [][]command.Op{t.Success, t.Failure} {
		for i := range ops {
			if err := p.op(&ops[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p permitted) op(op *command.Op) error {
	switch {
	case op.Range != nil:
		return p.Read(op.Range.Range)
	case op.Put != nil:
		return p.put(op.Put)
	case op.DeleteRange != nil:
		return p.delete(op.DeleteRange)
	}
	return p.txn(op.Txn)
}

// AllowReadTxn returns nil if p allows a transaction for which ReadOnly holds.
func AllowReadTxn(p *auth.Permissions, t *command.Txn) error {
	return permitted{Permissions: p}.txn(t)
}

// auth changes users and roles.
func (a *applier) auth(c *command.Command, r *command.Result) error {
	r.Revision = a.writer.Revision()
	refused, err := refusal(a.changeAuth(c, r))
	r.Err = refused
	return err
}

func (a *applier) changeAuth(c *command.Command, r *command.Result) error {
	u, b, o := a.Auth, a.batch, c.Auth
	switch o.Op {
	case command.AuthEnable:
		return u.Enable(b)
	case command.AuthDisable:
		return u.Disable(b)
	case command.AuthUserAdd:
		return u.AddUser(b, o.Name, o.Hash, o.NoPassword)
	case command.AuthUserDelete:
		return u.DeleteUser(b, o.Name)
	case command.AuthUserPassword:
		return u.ChangePassword(b, o.Name, o.Hash, o.BadHash)
	case command.AuthUserGrant:
		return u.GrantRole(b, o.Name, o.Role)
	case command.AuthUserRevoke:
		return u.RevokeRole(b, o.Name, o.Role)
	case command.AuthRoleAdd:
		return u.AddRole(b, o.Role)
	case command.AuthRoleDelete:
		return u.DeleteRole(b, o.Role)
	case command.AuthRoleGrant:
		return u.Grant(b, o.Role, o.Permission)
	case command.AuthRoleRevoke:
		return u.Revoke(b, o.Role, o.Permission.Range)
	case command.AuthAuthenticate:
		revision, err := u.Authenticate(o.Name, c.AuthRevision)
		if err != nil {
			return err
		}
		// As in etcd the token names the entry that made it: a member that does not know it can tell whether it should.
		r.Token = fmt.Sprintf("%s.%d", o.Nonce, a.entry.Index)
		a.outcome.Tokens = append(a.outcome.Tokens, Token{r.Token, auth.Who{User: o.Name, Revision: revision}})
		return nil
	}
	panic(fmt.Sprintf("fsm: auth operation %d", o.Op))
}
