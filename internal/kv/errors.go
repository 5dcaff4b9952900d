package kv

import "errors"

// The sentinel errors. Packages wrap them with %w and context; package rpc has the one table that maps them to etcd's
// gRPC codes and texts.
var (
	ErrEmptyKey        = errors.New("key is not provided")
	ErrKeyNotFound     = errors.New("key not found")
	ErrValueProvided   = errors.New("value is provided")
	ErrLeaseProvided   = errors.New("lease is provided")
	ErrCompacted       = errors.New("required revision has been compacted")
	ErrFutureRevision  = errors.New("required revision is a future revision")
	ErrLeaseNotFound   = errors.New("requested lease not found")
	ErrLeaseExists     = errors.New("lease already exists")
	ErrLeaseTTLTooLong = errors.New("too large lease TTL")
	ErrNoSpace         = errors.New("database space exceeded")
	ErrCorrupt         = errors.New("corrupt cluster")

	ErrTooManyRequests = errors.New("too many requests")
	ErrRequestTooLarge = errors.New("request is too large")
	ErrStopped         = errors.New("server stopped")
	ErrTimeout         = errors.New("request timed out")
	// ErrTimeoutLeaderFail and ErrTimeoutLostConnection tell why a request timed out.
	ErrTimeoutLeaderFail     = errors.New("request timed out, possibly due to previous leader failure")
	ErrTimeoutLostConnection = errors.New("request timed out, possibly due to connection lost")
	ErrTimeoutApply          = errors.New("request timed out, waiting for the applied index took too long")
	ErrDiskHangs             = errors.New("the disk of this member does not answer; ask another member")
	ErrNoLeader              = errors.New("no leader")
	ErrNotLeader             = errors.New("not leader")
	ErrLeaderChanged         = errors.New("leader changed")
	ErrLeaderTransferTimeout = errors.New("request timed out, leader transfer took too long")
	ErrBadLeaderTransferee   = errors.New("bad leader transferee")
	ErrMemberNotFound        = errors.New("member not found")

	// Changes of the members.
	ErrMemberRemoved    = errors.New("member was removed")
	ErrMemberExists     = errors.New("member ID already exists")
	ErrPeerURLExists    = errors.New("peer URLs already exist")
	ErrMemberNotLearner = errors.New("member is no learner")
	ErrLearnerNotReady  = errors.New("learner is not in sync with the leader")
	ErrTooManyLearners  = errors.New("too many learners")
	ErrNotEnoughStarted = errors.New("not enough started members")
	ErrUnhealthy        = errors.New("unhealthy cluster")
	ErrBadMemberChange  = errors.New("a change of the members that raft cannot make")

	// The cluster's version.
	ErrNoClusterVersion   = errors.New("the cluster's version is not decided")
	ErrBadVersion         = errors.New("wrong format of a version")
	ErrBadDowngradeTarget = errors.New("invalid target of a downgrade")
	ErrDowngrading        = errors.New("a downgrade is under way")
	ErrNoDowngrade        = errors.New("no downgrade is under way")
)

// Users, roles and permissions.
var (
	ErrRootUserNotExist     = errors.New("root user does not exist")
	ErrRootRoleNotExist     = errors.New("root user does not have root role")
	ErrUserExists           = errors.New("user name already exists")
	ErrUserEmpty            = errors.New("user name is empty")
	ErrUserNotFound         = errors.New("user name not found")
	ErrRoleExists           = errors.New("role name already exists")
	ErrRoleNotFound         = errors.New("role name not found")
	ErrRoleEmpty            = errors.New("role name is empty")
	ErrAuthFailed           = errors.New("authentication failed, invalid user ID or password")
	ErrNoPasswordUser       = errors.New("authentication failed, password was given for no password user")
	ErrPermissionNotGiven   = errors.New("permission not given")
	ErrPermissionDenied     = errors.New("permission denied")
	ErrRoleNotGranted       = errors.New("role is not granted to the user")
	ErrPermissionNotGranted = errors.New("permission is not granted to the role")
	ErrAuthNotEnabled       = errors.New("authentication is not enabled")
	ErrAuthOldRevision      = errors.New("revision of auth store is old")
	ErrInvalidAuthToken     = errors.New("invalid auth token")
	ErrInvalidAuthMgmt      = errors.New("invalid auth management")
)
