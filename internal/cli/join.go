package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/version"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/trivet-kv/trivet/internal/config"
	"github.com/trivet-kv/trivet/internal/server"
	"github.com/trivet-kv/trivet/internal/transport"
)

// How a member without data comes to a cluster that runs: etcd's way, where somebody has added it before and says so with
// --initial-cluster-state=existing, and --join, where it asks for itself.

// askTimeout bounds one question to one member, and joinPatience how long a cluster may be unable to take a member.
const (
	askTimeout   = 10 * time.Second
	joinPatience = 2 * time.Minute
)

// joinExisting finds the member that was added in the cluster of the others in --initial-cluster.
func joinExisting(c *config.Config, log *slog.Logger, d *doors) func(context.Context) (server.Joined, error) {
	return func(ctx context.Context) (server.Joined, error) {
		var others, own []string
		for _, m := range c.InitialCluster {
			if m.Name == c.Name {
				own = m.PeerURLs
			} else {
				others = append(others, m.PeerURLs...)
			}
		}
		joined, _, err := askAny(ctx, log, d, others)
		if err != nil {
			return server.Joined{}, fmt.Errorf("--initial-cluster-state=existing: no other member of --initial-cluster tells who is in the cluster: %w", err)
		}
		if a, b := len(joined.Members), len(c.InitialCluster); a != b {
			return server.Joined{}, fmt.Errorf("--initial-cluster-state=existing: member count is unequal: --initial-cluster has %d members and the running cluster %x has %d; add this member to the cluster first, and list those that member add printed", b, joined.ClusterID, a)
		}
		joined.MemberID = 0
		for _, known := range joined.Members {
			if !slices.ContainsFunc(c.InitialCluster, func(m config.InitialMember) bool { return sameURLs(ctx, m.PeerURLs, known.PeerURLs) }) {
				return server.Joined{}, fmt.Errorf("--initial-cluster-state=existing: the running cluster %x has a member %q with the peer URLs %s, which --initial-cluster does not have; list the members as member add printed them",
					joined.ClusterID, known.Name, strings.Join(known.PeerURLs, ","))
			}
			if sameURLs(ctx, own, known.PeerURLs) {
				joined.MemberID = known.ID
			}
		}
		if joined.MemberID == 0 {
			return server.Joined{}, fmt.Errorf("--initial-cluster-state=existing: the running cluster %x has no member with the peer URLs %s; add it first", joined.ClusterID, strings.Join(own, ","))
		}
		return joined, nil
	}
}

// sameURLs compares peer URLs as written, or by the addresses of their hosts.
func sameURLs(ctx context.Context, a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	if slices.Equal(a, b) {
		return true
	}
	x, errX := config.ResolveURLs(ctx, net.DefaultResolver.LookupHost, a)
	y, errY := config.ResolveURLs(ctx, net.DefaultResolver.LookupHost, b)
	return errX == nil && errY == nil && slices.Equal(x, y)
}

// joinEndpoints asks the cluster at the endpoints of --join to take this member.
func joinEndpoints(c *config.Config, log *slog.Logger, d *doors) func(context.Context) (server.Joined, error) {
	return func(ctx context.Context) (server.Joined, error) {
		given := "--join=" + strings.Join(c.Join, ",")
		request, err := json.Marshal(server.JoinRequest{Name: c.Name, PeerURLs: config.Strings(c.AdvertisePeerURLs), Version: version.Version})
		if err != nil {
			return server.Joined{}, err
		}
		for began := time.Now(); ; {
			joined, err := joinOnce(ctx, log, d, c.Join, request)
			switch {
			case err == nil:
				log.Info("the cluster has taken this member as a learner", "cluster", fmt.Sprintf("%x", joined.ClusterID), "member", fmt.Sprintf("%x", joined.MemberID))
				return joined, nil
			case !errors.Is(err, server.ErrTryLater) || time.Since(began) > joinPatience:
				return server.Joined{}, fmt.Errorf("%s: %w", given, err)
			}
			log.Warn("the cluster cannot take this member yet; asking again", "error", err)
			select {
			case <-ctx.Done():
				return server.Joined{}, ctx.Err()
			case <-time.After(time.Second):
			}
		}
	}
}

// answers asks all endpoints of --join at once who is there. What leads back to this member is left out: its sockets are open
// already, and nobody answers there.
func answers(c *config.Config, d *doors) func(context.Context) <-chan server.Joined {
	self := slices.Concat(config.Strings(c.AdvertisePeerURLs), config.Strings(c.ListenPeerURLs), config.Strings(c.AdvertiseClientURLs), config.Strings(c.ListenClientURLs))
	return func(ctx context.Context) <-chan server.Joined {
		found := make(chan server.Joined, len(c.Join)) // an answer for each endpoint at most
		var asking sync.WaitGroup
		for _, endpoint := range c.Join {
			if slices.ContainsFunc(self, func(u string) bool { return u == endpoint || strings.HasSuffix(u, "://"+endpoint) }) {
				continue
			}
			asking.Go(func() {
				quiet := slog.New(slog.DiscardHandler) // who does not answer is no news
				joined, _, err := askAny(ctx, quiet, d, []string{endpoint})
				if err != nil {
					peers := slices.DeleteFunc(peersOf(ctx, d, []string{endpoint}), func(u string) bool { return slices.Contains(self, u) })
					joined, _, err = askAny(ctx, quiet, d, peers)
				}
				if err == nil {
					found <- joined
				}
			})
		}
		go func() {
			asking.Wait()
			close(found)
		}()
		return found
	}
}

// joinOnce finds a member of the cluster and asks it.
func joinOnce(ctx context.Context, log *slog.Logger, d *doors, endpoints []string, request []byte) (server.Joined, error) {
	known, at, err := askAny(ctx, log, d, endpoints)
	if err != nil {
		// They may be client URLs; whoever answers there knows the peer URLs.
		peers := peersOf(ctx, d, endpoints)
		if len(peers) == 0 {
			return server.Joined{}, fmt.Errorf("no cluster answers there (%w); give peer or client URLs of members that run", err)
		}
		if known, at, err = askAny(ctx, log, d, peers); err != nil {
			return server.Joined{}, fmt.Errorf("its members cannot be reached at their peer URLs %s, or are not Trivet's: %w", strings.Join(peers, ","), err)
		}
	}
	answer, err := ask(ctx, d, at, server.CallJoin, request)
	if err != nil {
		return server.Joined{}, fmt.Errorf("%w: member %x: %w", server.ErrTryLater, known.MemberID, err)
	}
	return server.DecodeJoined(answer)
}

// askAny asks one URL after the other who is in the cluster, and tells who answered first.
func askAny(ctx context.Context, log *slog.Logger, d *doors, urls []string) (server.Joined, string, error) {
	err := errors.New("no URL was given")
	for _, text := range urls {
		b, e := ask(ctx, d, text, server.CallMembers, nil)
		if e == nil {
			var joined server.Joined
			if joined, e = server.DecodeJoined(b); e == nil {
				return joined, text, nil
			}
		}
		log.Warn("a member could not be asked for the members of its cluster", "url", text, "error", e)
		err = fmt.Errorf("%s: %w", text, e)
	}
	return server.Joined{}, "", err
}

func ask(ctx context.Context, d *doors, text string, kind byte, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return transport.Ask(ctx, d.dialPeer, text, kind, body)
}

// peersOf asks the cluster as a client for the peer URLs of its members; none if nobody answers.
func peersOf(ctx context.Context, d *doors, endpoints []string) []string {
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 3 * time.Second, Logger: zap.NewNop(), TLS: d.clientConfig()})
	if err != nil {
		return nil
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout/2)
	defer cancel()
	list, err := client.MemberList(ctx, clientv3.WithSerializable()) // which needs no majority
	if err != nil {
		return nil
	}
	var urls []string
	for _, m := range list.Members {
		urls = append(urls, m.PeerURLs...)
	}
	return urls
}
