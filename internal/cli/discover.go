package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/srv"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trivet-kv/trivet/internal/config"
	"github.com/trivet-kv/trivet/internal/member"
)

// discover finds the founding members as the settings say and puts them into c. Without such settings it does nothing.
func discover(c *config.Config, log *slog.Logger) error {
	var text, flag string
	var err error
	switch {
	case len(c.Discovery.Endpoints) > 0:
		flag = "discovery-endpoints=" + strings.Join(c.Discovery.Endpoints, ",")
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		text, err = meet(ctx, c, log)
		stop()
	case c.DiscoverySRV != "":
		flag = "discovery-srv=" + c.DiscoverySRV
		text, err = membersByDNS(c)
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("--%s: %w", flag, err)
	}
	if c.InitialCluster, err = config.ParseInitialCluster(text); err != nil {
		return fmt.Errorf("--%s found %q: %w", flag, text, err)
	}
	log.Info("discovered the founding members", "initial-cluster", text)
	return nil
}

// membersByDNS asks for the services etcd-server-ssl and etcd-server of the domain. Who has this member's address has its
// name; the others are numbered.
func membersByDNS(c *config.Config) (string, error) {
	suffix := ""
	if c.DiscoverySRVName != "" {
		suffix = "-" + c.DiscoverySRVName
	}
	secure, errSecure := srv.GetCluster("https", "etcd-server-ssl"+suffix, c.Name, c.DiscoverySRV, types.URLs(c.AdvertisePeerURLs))
	plain, errPlain := srv.GetCluster("http", "etcd-server"+suffix, c.Name, c.DiscoverySRV, types.URLs(c.AdvertisePeerURLs))
	if errSecure != nil && errPlain != nil {
		return "", fmt.Errorf("%w; name a domain with SRV records of the members", errors.Join(errSecure, errPlain))
	}
	return strings.Join(append(secure, plain...), ","), nil
}

// registry is where the members of one founding cluster meet, in the keys of a discovery service: DIR/_config/size says
// how many they are, and each puts NAME=URL,NAME=URL at DIR/members/ID.
type registry struct {
	dir    string
	client *clientv3.Client
	wait   time.Duration // for one answer
	log    *slog.Logger
	size   int

	// failed is the last error of a call as the connection saw it: etcd's client only says that time is over.
	failed atomic.Pointer[status.Status]
}

// registered is one member at the discovery service.
type registered struct{ key, value string }

// meet registers this member and waits until all are there, as long as it takes. What it returns has the form of
// --initial-cluster.
func meet(ctx context.Context, c *config.Config, log *slog.Logger) (string, error) {
	d := c.Discovery
	cfg, err := clientv3.NewClientConfig(&clientv3.ConfigSpec{
		Endpoints: d.Endpoints, DialTimeout: d.DialTimeout, RequestTimeout: d.RequestTimeout,
		KeepAliveTime: d.KeepAliveTime, KeepAliveTimeout: d.KeepAliveTimeout,
		MaxCallSendMsgSize: int(d.MaxSendBytes), MaxCallRecvMsgSize: int(d.MaxRecvBytes),
		Secure: &clientv3.SecureConfig{
			InsecureTransport: d.InsecureTransport, InsecureSkipVerify: d.InsecureSkipVerify,
			Cert: d.CertFile, Key: d.KeyFile, Cacert: d.CAFile, ServerName: d.ServerName,
		},
		Auth: discoveryUser(d),
	}, zap.NewNop())
	if err != nil {
		return "", err
	}
	cfg.Logger = zap.NewNop()
	r := &registry{dir: "/_etcd/registry/" + d.Token, wait: d.RequestTimeout, log: log}
	cfg.DialOptions = append(cfg.DialOptions, grpc.WithChainUnaryInterceptor(r.remember))
	// With a user this asks for a token.
	err = r.patiently(ctx, func(context.Context) (err error) {
		r.client, err = clientv3.New(*cfg)
		var answer rpctypes.EtcdError
		switch {
		case errors.Is(err, rpctypes.ErrAuthFailed):
			return settled{fmt.Errorf("%w; correct --discovery-user and --discovery-password", err)}
		case err == nil, errors.As(err, &answer), errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.Unavailable:
			return err
		}
		return settled{err}
	})
	if err != nil {
		return "", err
	}
	defer r.client.Close()
	own := config.Strings(c.AdvertisePeerURLs)
	key := fmt.Sprintf("%s/members/%x", r.dir, member.ID(own, c.InitialClusterToken))
	var pairs []string
	for _, u := range own {
		pairs = append(pairs, c.Name+"="+u)
	}
	return r.join(ctx, key, strings.Join(pairs, ","))
}

// remember keeps why a call failed.
func (r *registry) remember(ctx context.Context, method string, q, a any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, q, a, conn, opts...)
	r.failed.Store(status.Convert(err)) // nil for nil
	return err
}

// discoveryUser splits NAME:PASSWORD if the password is not given apart.
func discoveryUser(d config.Discovery) *clientv3.AuthConfig {
	name, password := d.User, d.Password
	if before, after, ok := strings.Cut(name, ":"); ok && password == "" {
		name, password = before, after
	}
	return &clientv3.AuthConfig{Username: name, Password: password, Token: d.AuthToken}
}

func (r *registry) join(ctx context.Context, key, value string) (string, error) {
	members, _, err := r.members(ctx)
	if err != nil {
		return "", err
	}
	if !r.hasRoom(members, key) {
		return "", fmt.Errorf("the cluster of this token has its %d members already; use a new token for a new cluster", r.size)
	}
	err = r.patiently(ctx, func(ctx context.Context) error {
		_, err := r.client.Put(ctx, key, value)
		return err
	})
	if err != nil {
		return "", err
	}
	for {
		members, rev, err := r.members(ctx)
		if err != nil {
			return "", err
		}
		if !r.hasRoom(members, key) {
			return "", fmt.Errorf("others came first, and the cluster of this token has its %d members; use a new token for a new cluster", r.size)
		}
		if len(members) >= r.size {
			var all []string
			for _, m := range members[:r.size] {
				all = append(all, m.value)
			}
			return strings.Join(all, ","), nil
		}
		r.log.Info("waiting for the other founding members", "found", len(members), "want", r.size)
		r.change(ctx, rev+1)
		if ctx.Err() != nil {
			return "", errStopped
		}
	}
}

// hasRoom tells whether the key is among the founding members, who came first, or may still come to be.
func (r *registry) hasRoom(members []registered, key string) bool {
	i := slices.IndexFunc(members, func(m registered) bool { return m.key == key })
	return i >= 0 && i < r.size || i < 0 && len(members) < r.size
}

// members are those that have registered, in the order in which they did, and the revision of the answer.
func (r *registry) members(ctx context.Context) (found []registered, rev int64, err error) {
	err = r.patiently(ctx, func(ctx context.Context) error {
		size, err := r.client.Get(ctx, r.dir+"/_config/size")
		if err != nil {
			return err
		}
		if len(size.Kvs) == 0 {
			return settled{fmt.Errorf("the discovery service does not know this token; put the number of members at %s/_config/size", r.dir)}
		}
		if r.size, err = strconv.Atoi(string(size.Kvs[0].Value)); err != nil || r.size <= 0 {
			return settled{fmt.Errorf("%s/_config/size holds %q; put the number of members there", r.dir, size.Kvs[0].Value)}
		}
		all, err := r.client.Get(ctx, r.dir+"/members/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
		if err != nil {
			return err
		}
		found, rev = nil, all.Header.Revision
		for _, m := range all.Kvs {
			if v := strings.TrimSpace(string(m.Value)); strings.Contains(v, "=") { // others are no members, as in etcd
				found = append(found, registered{string(m.Key), v})
			}
		}
		return nil
	})
	return found, rev, err
}

// change waits until somebody registers at rev or later, or the watch ends.
func (r *registry) change(ctx context.Context, rev int64) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	<-r.client.Watch(ctx, r.dir+"/members/", clientv3.WithPrefix(), clientv3.WithRev(rev))
}

// settled is an answer that asking again would not change.
type settled struct{ error }

// errStopped is what becomes of a member that a signal ends before there is a cluster.
var errStopped = errors.New("told to stop while the other founding members were waited for")

// longestPause is the longest time between two tries, as in etcd.
const longestPause = 256 * time.Second

// patiently asks until there is an answer: a discovery service may come up after those that wait for it.
func (r *registry) patiently(ctx context.Context, ask func(context.Context) error) error {
	for pause := 2 * time.Second; ; pause = min(2*pause, longestPause) {
		once, cancel := context.WithTimeout(ctx, r.wait)
		err := ask(once)
		cancel()
		var s settled
		if err == nil {
			return nil
		}
		if errors.As(err, &s) {
			return s.error
		}
		if ctx.Err() != nil {
			return errStopped
		}
		var refusal rpctypes.EtcdError
		switch cause := r.failed.Load(); {
		case errors.As(err, &refusal) && refusal.Code() != codes.Unavailable:
			r.log.Warn("the discovery service refuses; check --discovery-user; trying again", "error", err, "retry-in", pause)
		case cause != nil && cause.Message() != "":
			r.log.Warn("the discovery service does not answer; trying again", "error", err, "cause", cause.Message(), "retry-in", pause)
		default:
			r.log.Warn("the discovery service does not answer; trying again", "error", err, "retry-in", pause)
		}
		select {
		case <-ctx.Done():
			return errStopped
		case <-time.After(pause):
		}
	}
}
