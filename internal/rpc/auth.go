package rpc

import (
	"context"
	"encoding/base64"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/token"
)

// header is that of an answer which tells the store's revision as it is now.
func (s *Services) header() *pb.ResponseHeader { return headerPB(s.b.Header(), s.b.Store().Revision()) }

// changeAuth puts a change of users and roles through the log.
func (s *Services) changeAuth(ctx context.Context, kind string, a *command.Auth) (*pb.ResponseHeader, error) {
	res, err := s.propose(ctx, kind, &command.Command{Auth: a})
	if err != nil {
		return nil, err
	}
	return headerPB(s.b.Header(), res.Revision), nil
}

// AuthEnable answers Auth.AuthEnable.
func (s *Services) AuthEnable(ctx context.Context, _ *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	h, err := s.changeAuth(ctx, "AuthEnable", &command.Auth{Op: command.AuthEnable})
	return &pb.AuthEnableResponse{Header: h}, err
}

// AuthDisable answers Auth.AuthDisable.
func (s *Services) AuthDisable(ctx context.Context, _ *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	h, err := s.changeAuth(ctx, "AuthDisable", &command.Auth{Op: command.AuthDisable})
	return &pb.AuthDisableResponse{Header: h}, err
}

// current makes sure that what is read of users and roles is not stale, and tells who asks. As in etcd, where such
// questions go through the log, a wrong token is refused and no token is not. It is counted as a request of kind.
func (s *Services) current(ctx context.Context, kind string) (auth.Who, error) {
	begin := time.Now()
	who, waited, err := s.catchUp(ctx)
	if waited {
		s.took(kind, err, begin)
	}
	return who, toStatus(err)
}

// catchUp tells who asks, waits until what this member knows of users and roles is not stale, and whether it waited.
func (s *Services) catchUp(ctx context.Context) (who auth.Who, waited bool, err error) {
	if who, _, err = s.identify(ctx, true); err != nil {
		return who, false, err
	}
	return who, true, s.b.ReadBarrier(ctx)
}

// beforeChange refuses who may not change users and roles. It counts nothing but a wait that failed, because a command of
// that kind follows, which is counted.
func (s *Services) beforeChange(ctx context.Context, kind string) error {
	begin := time.Now()
	who, waited, err := s.catchUp(ctx)
	if err != nil {
		if waited {
			s.took(kind, err, begin)
		}
		return toStatus(err)
	}
	return toStatus(s.b.Auth().Published().Admin(who))
}

// AuthStatus answers Auth.AuthStatus. Everybody may ask.
func (s *Services) AuthStatus(ctx context.Context, _ *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	if _, err := s.current(ctx, "AuthStatus"); err != nil {
		return nil, err
	}
	now := s.b.Auth().Published().Settings()
	return &pb.AuthStatusResponse{Header: s.header(), Enabled: now.Enabled, AuthRevision: now.Revision}, nil
}

// maxComparisons is how often a password is compared again because users changed meanwhile.
const maxComparisons = 8

// Authenticate answers Auth.Authenticate: a token for who knows a password. The password is compared here, beside the log
// and few at a time; the log only confirms that it still is the password.
func (s *Services) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	password := r.Password
	r.Password = "" // what holds on to the request does not hold on to the password (CVE-2021-28235)
	if err := s.b.ReadBarrier(ctx); err != nil {
		return nil, toStatus(err)
	}
	for attempt := 1; ; attempt++ {
		who, err := s.compare(ctx, r.Name, password)
		if err != nil {
			if !errors.Is(err, kv.ErrAuthNotEnabled) {
				s.log.Warn("invalid authentication was requested", "user", r.Name, "error", Text(err))
			}
			return nil, toStatus(err)
		}
		text, err := s.tokenFor(ctx, who)
		if errors.Is(err, kv.ErrAuthOldRevision) && attempt < maxComparisons {
			continue
		}
		if err != nil {
			return nil, toStatus(err)
		}
		return &pb.AuthenticateResponse{Header: s.header(), Token: text}, nil
	}
}

// compare compares a password, and returns the user with the auth revision under which it was right.
func (s *Services) compare(ctx context.Context, name, password string) (auth.Who, error) {
	v := s.b.Auth().Published()
	now := v.Settings() // before the user: what is found was so at this revision or later
	if !now.Enabled {
		return auth.Who{}, kv.ErrAuthNotEnabled
	}
	u, ok := v.User(name)
	if ok && u.NoPassword {
		return auth.Who{}, kv.ErrNoPasswordUser
	}
	// Without a user there is no hash, which takes as long as a wrong password.
	if err := s.o.Passwords.Compare(ctx, u.Hash, password); err != nil {
		return auth.Who{}, err
	}
	return auth.Who{User: name, Revision: max(now.Revision, u.Since)}, nil
}

// tokenFor makes a token for who has shown a password. kv.ErrAuthOldRevision if that must be done again.
func (s *Services) tokenFor(ctx context.Context, who auth.Who) (string, error) {
	switch s.o.Tokens.Kind() {
	case token.None:
		return "", kv.ErrAuthFailed
	case token.Signed:
		return s.o.Tokens.Sign(who)
	}
	begin := time.Now()
	res, err := s.b.Propose(ctx, &command.Command{
		AuthRevision: who.Revision, Auth: &command.Auth{Op: command.AuthAuthenticate, Name: who.User, Nonce: token.Nonce()},
	})
	s.took("Authenticate", err, begin)
	if err == nil {
		err = res.Err
	}
	return res.Token, err
}

// currentAdmin is current, for administrators only.
func (s *Services) currentAdmin(ctx context.Context, kind string) error {
	who, err := s.current(ctx, kind)
	if err != nil {
		return err
	}
	return toStatus(s.b.Auth().Published().Admin(who))
}

// UserAdd answers Auth.UserAdd. What enters the log is the hash of the password.
func (s *Services) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	password := r.Password
	r.Password = ""
	a := &command.Auth{Op: command.AuthUserAdd, Name: r.Name, NoPassword: r.GetOptions().GetNoPassword()}
	if !a.NoPassword {
		var err error
		if a.Hash, err = s.hash(ctx, "AuthUserAdd", password); err != nil {
			return nil, err
		}
	}
	h, err := s.changeAuth(ctx, "AuthUserAdd", a)
	return &pb.AuthUserAddResponse{Header: h}, err
}

func (s *Services) hash(ctx context.Context, kind, password string) ([]byte, error) {
	if err := s.beforeChange(ctx, kind); err != nil {
		return nil, err
	}
	h, err := s.o.Passwords.Hash(ctx, password)
	return h, toStatus(err)
}

// UserChangePassword answers Auth.UserChangePassword. Instead of a password a hash of bcrypt may be given, in base64.
func (s *Services) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	password := r.Password
	r.Password = ""
	a := &command.Auth{Op: command.AuthUserPassword, Name: r.Name}
	var err error
	if password != "" {
		if a.Hash, err = s.hash(ctx, "AuthUserChangePassword", password); err != nil {
			return nil, err
		}
	} else if a.Hash, err = base64.StdEncoding.DecodeString(r.HashedPassword); err != nil {
		a.Hash, a.BadHash = nil, true
	}
	h, err := s.changeAuth(ctx, "AuthUserChangePassword", a)
	return &pb.AuthUserChangePasswordResponse{Header: h}, err
}

// UserDelete answers Auth.UserDelete.
func (s *Services) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	h, err := s.changeAuth(ctx, "AuthUserDelete", &command.Auth{Op: command.AuthUserDelete, Name: r.Name})
	return &pb.AuthUserDeleteResponse{Header: h}, err
}

// UserGrantRole answers Auth.UserGrantRole.
func (s *Services) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	h, err := s.changeAuth(ctx, "AuthUserGrantRole", &command.Auth{Op: command.AuthUserGrant, Name: r.User, Role: r.Role})
	return &pb.AuthUserGrantRoleResponse{Header: h}, err
}

// UserRevokeRole answers Auth.UserRevokeRole.
func (s *Services) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	h, err := s.changeAuth(ctx, "AuthUserRevokeRole", &command.Auth{Op: command.AuthUserRevoke, Name: r.Name, Role: r.Role})
	return &pb.AuthUserRevokeRoleResponse{Header: h}, err
}

// RoleAdd answers Auth.RoleAdd.
func (s *Services) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	h, err := s.changeAuth(ctx, "AuthRoleAdd", &command.Auth{Op: command.AuthRoleAdd, Role: r.Name})
	return &pb.AuthRoleAddResponse{Header: h}, err
}

// RoleDelete answers Auth.RoleDelete.
func (s *Services) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	h, err := s.changeAuth(ctx, "AuthRoleDelete", &command.Auth{Op: command.AuthRoleDelete, Role: r.Role})
	return &pb.AuthRoleDeleteResponse{Header: h}, err
}

// RoleGrantPermission answers Auth.RoleGrantPermission.
func (s *Services) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	a := &command.Auth{Op: command.AuthRoleGrant, Role: r.Name}
	if p := r.Perm; p != nil {
		a.Permission = kv.Permission{Range: kv.Range{Key: p.Key, End: p.RangeEnd}, Access: kv.Access(p.PermType)}
	} else if err := s.currentAdmin(ctx, "AuthRoleGrantPermission"); err != nil {
		return nil, err
	} else {
		return nil, toStatus(kv.ErrPermissionNotGiven)
	}
	h, err := s.changeAuth(ctx, "AuthRoleGrantPermission", a)
	return &pb.AuthRoleGrantPermissionResponse{Header: h}, err
}

// RoleRevokePermission answers Auth.RoleRevokePermission.
func (s *Services) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	p := kv.Permission{Range: kv.Range{Key: r.Key, End: r.RangeEnd}}
	h, err := s.changeAuth(ctx, "AuthRoleRevokePermission", &command.Auth{Op: command.AuthRoleRevoke, Role: r.Role, Permission: p})
	return &pb.AuthRoleRevokePermissionResponse{Header: h}, err
}

// UserGet answers Auth.UserGet, to an administrator or to the user itself.
func (s *Services) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	who, err := s.current(ctx, "AuthUserGet")
	if err != nil {
		return nil, err
	}
	v := s.b.Auth().Published()
	if err := v.Admin(who); err != nil && r.Name != who.User {
		return nil, toStatus(err)
	}
	u, ok := v.User(r.Name)
	if !ok {
		return nil, toStatus(kv.ErrUserNotFound)
	}
	return &pb.AuthUserGetResponse{Header: s.header(), Roles: u.Roles}, nil
}

// RoleGet answers Auth.RoleGet, to an administrator or a user that has the role.
func (s *Services) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	who, err := s.current(ctx, "AuthRoleGet")
	if err != nil {
		return nil, err
	}
	v := s.b.Auth().Published()
	if err := v.Admin(who); err != nil && !v.HasRole(who.User, r.Role) {
		return nil, toStatus(err)
	}
	role, ok := v.Role(r.Role)
	if !ok {
		return nil, toStatus(kv.ErrRoleNotFound)
	}
	out := &pb.AuthRoleGetResponse{Header: s.header()}
	if r.Role == auth.Root {
		// Whatever it was given, it may do everything.
		out.Perm = append(out.Perm, &authpb.Permission{PermType: authpb.Permission_READWRITE, RangeEnd: []byte{0}})
		return out, nil
	}
	for _, p := range role.Permissions {
		out.Perm = append(out.Perm, &authpb.Permission{PermType: authpb.Permission_Type(p.Access), Key: p.Key, RangeEnd: p.End})
	}
	return out, nil
}

// UserList answers Auth.UserList.
func (s *Services) UserList(ctx context.Context, _ *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	if err := s.currentAdmin(ctx, "AuthUserList"); err != nil {
		return nil, err
	}
	return &pb.AuthUserListResponse{Header: s.header(), Users: s.b.Auth().Published().Users()}, nil
}

// RoleList answers Auth.RoleList.
func (s *Services) RoleList(ctx context.Context, _ *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	if err := s.currentAdmin(ctx, "AuthRoleList"); err != nil {
		return nil, err
	}
	return &pb.AuthRoleListResponse{Header: s.header(), Roles: s.b.Auth().Published().Roles()}, nil
}
