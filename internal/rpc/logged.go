package rpc

import (
	"encoding/base64"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// etcdMinTTL is the least time of a lease that etcd grants with its default election timeout.
const etcdMinTTL = 2

// Logged makes a command of a request as etcd's log holds it; nil for one that changes nothing that users see. What is in
// such a log was validated before it entered it.
func Logged(data []byte) (*command.Command, error) {
	var r pb.InternalRaftRequest
	if err := proto.Unmarshal(data, &r); err != nil {
		// etcd 3.4 keeps its members' names and its version in requests of the second API, of another shape.
		return nil, nil // they are of the cluster that is left behind
	}
	c := &command.Command{User: r.GetHeader().GetUsername(), AuthRevision: r.GetHeader().GetAuthRevision()}
	switch {
	case r.Put != nil:
		c.Put = putCommand(r.Put)
	case r.DeleteRange != nil:
		c.DeleteRange = deleteCommand(r.DeleteRange)
	case r.Txn != nil:
		if err := wholeTxn(r.Txn, 1); err != nil {
			return nil, err
		}
		c.Txn = txnCommand(r.Txn)
	case r.Compaction != nil:
		c.Compact = &command.Compact{Revision: r.Compaction.Revision}
	case r.LeaseGrant != nil:
		c.LeaseGrant = &command.LeaseGrant{ID: kv.LeaseID(r.LeaseGrant.ID), TTL: max(r.LeaseGrant.TTL, etcdMinTTL)}
	case r.LeaseRevoke != nil:
		c.LeaseRevoke = &command.LeaseRevoke{ID: kv.LeaseID(r.LeaseRevoke.ID)}
	case r.LeaseCheckpoint != nil:
		c.LeaseCheckpoint = &command.LeaseCheckpoint{}
		for _, l := range r.LeaseCheckpoint.Checkpoints {
			c.LeaseCheckpoint.Leases = append(c.LeaseCheckpoint.Leases, kv.Lease{ID: kv.LeaseID(l.ID), Remaining: l.Remaining_TTL})
		}
	case r.Alarm != nil:
		if r.Alarm.Action == pb.AlarmRequest_GET {
			return nil, nil
		}
		c.Alarm = &command.Alarm{
			Alarm: kv.Alarm{Type: kv.AlarmType(r.Alarm.Alarm), MemberID: r.Alarm.MemberID}, Raise: r.Alarm.Action == pb.AlarmRequest_ACTIVATE,
		}
	default:
		var err error
		if c.Auth, err = loggedAuth(&r); err != nil || c.Auth == nil {
			return nil, err
		}
	}
	return c, nil
}

// wholeTxn refuses a transaction with an operation of an unknown kind.
func wholeTxn(t *pb.TxnRequest, depth int) error {
	if depth > command.MaxTxnDepth {
		return fmt.Errorf("a transaction is nested more than %d deep", command.MaxTxnDepth)
	}
	for _, ops := range [][]*pb.RequestOp{t.Success, t.Failure} {
		for _, op := range ops {
			if op.GetRequest() == nil {
				return errors.New("a transaction holds an operation of an unknown kind")
			}
			if inner := op.GetRequestTxn(); inner != nil {
				if err := wholeTxn(inner, depth+1); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// loggedAuth is Logged for users and roles; nil for requests that only read.
func loggedAuth(r *pb.InternalRaftRequest) (*command.Auth, error) {
	switch {
	case r.AuthEnable != nil:
		return &command.Auth{Op: command.AuthEnable}, nil
	case r.AuthDisable != nil:
		return &command.Auth{Op: command.AuthDisable}, nil
	case r.AuthUserAdd != nil:
		q := r.AuthUserAdd
		a := &command.Auth{Op: command.AuthUserAdd, Name: q.Name, NoPassword: q.GetOptions().GetNoPassword()}
		return a, setHash(a, q.Password, q.HashedPassword)
	case r.AuthUserChangePassword != nil:
		q := r.AuthUserChangePassword
		a := &command.Auth{Op: command.AuthUserPassword, Name: q.Name}
		return a, setHash(a, q.Password, q.HashedPassword)
	case r.AuthUserDelete != nil:
		return &command.Auth{Op: command.AuthUserDelete, Name: r.AuthUserDelete.Name}, nil
	case r.AuthUserGrantRole != nil:
		return &command.Auth{Op: command.AuthUserGrant, Name: r.AuthUserGrantRole.User, Role: r.AuthUserGrantRole.Role}, nil
	case r.AuthUserRevokeRole != nil:
		return &command.Auth{Op: command.AuthUserRevoke, Name: r.AuthUserRevokeRole.Name, Role: r.AuthUserRevokeRole.Role}, nil
	case r.AuthRoleAdd != nil:
		return &command.Auth{Op: command.AuthRoleAdd, Role: r.AuthRoleAdd.Name}, nil
	case r.AuthRoleDelete != nil:
		return &command.Auth{Op: command.AuthRoleDelete, Role: r.AuthRoleDelete.Role}, nil
	case r.AuthRoleGrantPermission != nil:
		q := r.AuthRoleGrantPermission
		if q.Perm == nil {
			return nil, nil
		}
		return &command.Auth{Op: command.AuthRoleGrant, Role: q.Name, Permission: kv.Permission{
			Range: kv.Range{Key: q.Perm.Key, End: q.Perm.RangeEnd}, Access: kv.Access(q.Perm.PermType),
		}}, nil
	case r.AuthRoleRevokePermission != nil:
		q := r.AuthRoleRevokePermission
		return &command.Auth{Op: command.AuthRoleRevoke, Role: q.Role, Permission: kv.Permission{Range: kv.Range{Key: q.Key, End: q.RangeEnd}}}, nil
	}
	return nil, nil
}

// setHash sets the hash of a user's password. etcd 3.4 logs the password itself, and each of its members makes a hash of its
// own.
func setHash(a *command.Auth, password, hashed string) error {
	if password != "" && hashed == "" {
		return errors.New("it sets a password that etcd had not stored yet: start that etcd once, let it become ready, and stop it again")
	}
	var err error
	if a.Hash, err = base64.StdEncoding.DecodeString(hashed); err != nil {
		a.Hash, a.BadHash = nil, true
	}
	return nil
}
