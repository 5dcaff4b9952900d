package command

import (
	"encoding/binary"

	"github.com/trivet-kv/trivet/internal/kv"
)

// AuthOp is what an Auth command does. The numbers are the kinds of command in the log.
type AuthOp uint8

// The operations on users and roles. The comments say which fields they read.
const (
	AuthEnable          AuthOp = 20
	AuthDisable         AuthOp = 21
	AuthUserAdd         AuthOp = 22 // Name, Hash, NoPassword
	AuthUserDelete      AuthOp = 23 // Name
	AuthUserPassword    AuthOp = 24 // Name, Hash, BadHash
	AuthUserGrant       AuthOp = 25 // Name, Role
	AuthUserRevoke      AuthOp = 26 // Name, Role
	AuthRoleAdd         AuthOp = 27 // Role
	AuthRoleDelete      AuthOp = 28 // Role
	AuthRoleGrant       AuthOp = 29 // Role, Permission
	AuthRoleRevoke      AuthOp = 30 // Role, Permission's range
	AuthAuthenticate    AuthOp = 31 // Name, Nonce; Command.AuthRevision is that under which the password was compared
	firstAuth, lastAuth        = AuthEnable, AuthAuthenticate
	flagNoPassword             = 1
	flagBadHash                = 2
)

// Auth changes users and roles, or makes a token for a user. A password is never in it.
type Auth struct {
	Op         AuthOp
	Name       string // of the user
	Role       string
	Hash       []byte // bcrypt's, of the password; empty: no password matches
	NoPassword bool
	BadHash    bool // a hash was given that could not be read
	Permission kv.Permission
	Nonce      string // what makes the token hard to guess
}

// authNames are the names of commands for logs and inspection.
var authNames = [...]string{
	AuthEnable: "auth_enable", AuthDisable: "auth_disable", AuthUserAdd: "auth_user_add", AuthUserDelete: "auth_user_delete",
	AuthUserPassword: "auth_user_change_password", AuthUserGrant: "auth_user_grant_role", AuthUserRevoke: "auth_user_revoke_role",
	AuthRoleAdd: "auth_role_add", AuthRoleDelete: "auth_role_delete", AuthRoleGrant: "auth_role_grant_permission",
	AuthRoleRevoke: "auth_role_revoke_permission", AuthAuthenticate: "authenticate",
}

// String is the operation's name.
func (o AuthOp) String() string { return authNames[o] }

func (a *Auth) append(dst []byte) []byte {
	dst = append(dst, flags(a.NoPassword, flagNoPassword)|flags(a.BadHash, flagBadHash))
	dst = appendBytes(dst, []byte(a.Name))
	dst = appendBytes(dst, []byte(a.Role))
	dst = appendBytes(dst, a.Hash)
	dst = appendBytes(dst, []byte(a.Nonce))
	dst = binary.AppendVarint(dst, int64(a.Permission.Access))
	return appendRange(dst, a.Permission.Range)
}

func (d *decoder) auth(op AuthOp) *Auth {
	f := d.Byte()
	a := &Auth{
		Op: op, NoPassword: f&flagNoPassword != 0, BadHash: f&flagBadHash != 0,
		Name: string(d.Bytes()), Role: string(d.Bytes()), Hash: d.Bytes(), Nonce: string(d.Bytes()),
	}
	access := d.Varint()
	a.Permission = kv.Permission{Access: kv.Access(access), Range: d.keyRange()}
	if access != int64(a.Permission.Access) {
		d.Fail()
	}
	return a
}
