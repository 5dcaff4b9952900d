package rpc

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/trivet-kv/trivet/internal/kv"
)

// statusTable maps the sentinels to what goes on the wire. It is the only place that knows both.
var statusTable = []struct {
	sentinel error
	wire     error
}{
	{kv.ErrEmptyKey, rpctypes.ErrGRPCEmptyKey},
	{kv.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
	{kv.ErrValueProvided, rpctypes.ErrGRPCValueProvided},
	{kv.ErrLeaseProvided, rpctypes.ErrGRPCLeaseProvided},
	{kv.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{kv.ErrFutureRevision, rpctypes.ErrGRPCFutureRev},
	{kv.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{kv.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
	{kv.ErrLeaseTTLTooLong, rpctypes.ErrGRPCLeaseTTLTooLarge},
	{kv.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
	{kv.ErrCorrupt, rpctypes.ErrGRPCCorrupt},
	// etcd answers its client's error value here, which carries no status, so that the code on the wire is Unknown.
	{kv.ErrTooManyRequests, status.Error(codes.Unknown, "etcdserver: too many requests")},
	{kv.ErrRequestTooLarge, rpctypes.ErrGRPCRequestTooLarge},
	{kv.ErrStopped, rpctypes.ErrGRPCStopped},
	{kv.ErrTimeoutLeaderFail, rpctypes.ErrGRPCTimeoutDueToLeaderFail},
	{kv.ErrTimeoutLostConnection, rpctypes.ErrGRPCTimeoutDueToConnectionLost},
	{kv.ErrTimeoutApply, rpctypes.ErrGRPCTimeoutWaitAppliedIndex},
	{kv.ErrTimeout, rpctypes.ErrGRPCTimeout},
	// Ours: etcd has the request wait for the disk.
	{kv.ErrDiskHangs, status.Error(codes.Unavailable, "etcdserver: the disk of this member does not answer; ask another member")},
	{kv.ErrNoLeader, rpctypes.ErrGRPCNoLeader},
	{kv.ErrNotLeader, rpctypes.ErrGRPCNotLeader},
	{kv.ErrLeaderChanged, rpctypes.ErrGRPCLeaderChanged},
	// Not in etcd's own table, so that its text arrives with the code Unknown.
	{kv.ErrLeaderTransferTimeout, status.Error(codes.Unknown, "etcdserver: request timed out, leader transfer took too long")},
	{kv.ErrBadLeaderTransferee, rpctypes.ErrGRPCBadLeaderTransferee},
	{kv.ErrRootUserNotExist, rpctypes.ErrGRPCRootUserNotExist},
	{kv.ErrRootRoleNotExist, rpctypes.ErrGRPCRootRoleNotExist},
	{kv.ErrUserExists, rpctypes.ErrGRPCUserAlreadyExist},
	{kv.ErrUserEmpty, rpctypes.ErrGRPCUserEmpty},
	{kv.ErrUserNotFound, rpctypes.ErrGRPCUserNotFound},
	{kv.ErrRoleExists, rpctypes.ErrGRPCRoleAlreadyExist},
	{kv.ErrRoleNotFound, rpctypes.ErrGRPCRoleNotFound},
	{kv.ErrRoleEmpty, rpctypes.ErrGRPCRoleEmpty},
	{kv.ErrAuthFailed, rpctypes.ErrGRPCAuthFailed},
	// Not in etcd's own table either, and with the text of its store.
	{kv.ErrNoPasswordUser, status.Error(codes.Unknown, "auth: authentication failed, password was given for no password user")},
	{kv.ErrPermissionNotGiven, rpctypes.ErrGRPCPermissionNotGiven},
	{kv.ErrPermissionDenied, rpctypes.ErrGRPCPermissionDenied},
	{kv.ErrRoleNotGranted, rpctypes.ErrGRPCRoleNotGranted},
	{kv.ErrPermissionNotGranted, rpctypes.ErrGRPCPermissionNotGranted},
	{kv.ErrAuthNotEnabled, rpctypes.ErrGRPCAuthNotEnabled},
	{kv.ErrAuthOldRevision, rpctypes.ErrGRPCAuthOldRevision},
	{kv.ErrInvalidAuthToken, rpctypes.ErrGRPCInvalidAuthToken},
	{kv.ErrInvalidAuthMgmt, rpctypes.ErrGRPCInvalidAuthMgmt},
	{kv.ErrMemberNotFound, rpctypes.ErrGRPCMemberNotFound},
	{kv.ErrMemberRemoved, rpctypes.ErrGRPCMemberNotFound},
	{kv.ErrMemberExists, rpctypes.ErrGRPCMemberExist},
	{kv.ErrPeerURLExists, rpctypes.ErrGRPCPeerURLExist},
	{kv.ErrMemberNotLearner, rpctypes.ErrGRPCMemberNotLearner},
	{kv.ErrLearnerNotReady, rpctypes.ErrGRPCLearnerNotReady},
	{kv.ErrTooManyLearners, rpctypes.ErrGRPCTooManyLearners},
	// Again the client's error value in etcd, so that the code is Unknown.
	{kv.ErrNotEnoughStarted, status.Error(codes.Unknown, "etcdserver: re-configuration failed due to not enough started members")},
	{kv.ErrBadMemberChange, status.Error(codes.Unknown, "etcdserver: the members cannot be changed like that")},
	{kv.ErrUnhealthy, rpctypes.ErrGRPCUnhealthy},
	{kv.ErrNoClusterVersion, rpctypes.ErrGRPCClusterVersionUnavailable},
	{kv.ErrBadVersion, rpctypes.ErrGRPCWrongDowngradeVersionFormat},
	{kv.ErrBadDowngradeTarget, rpctypes.ErrGRPCInvalidDowngradeTargetVersion},
	{kv.ErrDowngrading, rpctypes.ErrGRPCDowngradeInProcess},
	{kv.ErrNoDowngrade, rpctypes.ErrGRPCNoInflightDowngrade},
}

// toStatus returns what the client is to see of err: a status error made here passes through, a sentinel becomes its
// line of the table, the end of a context becomes what gRPC itself says of it, and the rest is Unknown with its text.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	for _, l := range statusTable {
		if errors.Is(err, l.sentinel) {
			return l.wire
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

// Text is what a client reads of err: etcd's text for it.
func Text(err error) string { return status.Convert(toStatus(err)).Message() }
