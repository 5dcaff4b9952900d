package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/trivet-kv/trivet/internal/certs"
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
				return server.Joined{}, fmt.Errorf("--initial-cluster-state=existing: PeerURLs: no match found for existing member (%x, %s) of the running cluster %x, which --initial-cluster does not have; list the members as member add printed them",
					known.ID, known.PeerURLs, joined.ClusterID)
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
			joined, err := joinOnce(ctx, c, log, d, request)
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
					peers, _ := peersOf(ctx, c, d, []string{endpoint}) // nor is why
					peers = slices.DeleteFunc(peers, func(u string) bool { return slices.Contains(self, u) })
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
func joinOnce(ctx context.Context, c *config.Config, log *slog.Logger, d *doors, request []byte) (server.Joined, error) {
	known, at, err := askAny(ctx, log, d, c.Join)
	if err != nil {
		// They may be client URLs; whoever answers there knows the peer URLs.
		peers, asked := peersOf(ctx, c, d, c.Join)
		if len(peers) == 0 {
			return server.Joined{}, noCluster(err, asked)
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

// noCluster says why nobody took this member, from what came of the endpoints as peer URLs and as client URLs.
func noCluster(asPeers, asClients error) error {
	if errors.Is(asClients, errAskUser) {
		return asClients
	}
	advice := ""
	if strings.Contains(asClients.Error(), "x509: ") {
		advice = "; a certificate is held against --trusted-ca-file and --peer-trusted-ca-file, without these against the system's"
	}
	for _, sign := range []string{"certificate required", "broken pipe", "connection reset"} { // the first may be lost on its way
		if strings.Contains(asClients.Error(), sign) {
			advice += "; where members run with --client-cert-auth, this one shows its --cert-file and --key-file"
			break
		}
	}
	return fmt.Errorf("no cluster answers there (asked as a member: %w; as a client: %w); give peer or client URLs of members that run%s", asPeers, asClients, advice)
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

// peersOf asks the members at the endpoints, one after the other, as a client for the peer URLs of all. Its error tells of each
// that does not say.
func peersOf(ctx context.Context, c *config.Config, d *doors, endpoints []string) (urls []string, err error) {
	ways, err := d.clientWays(c)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, endpoint := range endpoints {
		members, err := membersAt(ctx, endpoint, ways)
		if err == nil {
			for _, m := range members {
				urls = append(urls, m.PeerURLs...)
			}
			return urls, nil
		}
		failed = append(failed, fmt.Errorf("%s: %w", endpoint, err))
	}
	return nil, inOneLine(failed)
}

// clientWays are the ways to meet a member's client port over TLS: as this member meets its own clients, and as it meets other
// members. The last of them trusts what the system trusts, if nothing else was given.
func (d *doors) clientWays(c *config.Config) ([]*certs.Set, error) {
	clients := d.clientTLS
	if t := &c.ClientTLS; clients == nil && !t.Auto && (t.TrustedCAFile != "" || t.CertFile != "") { // it has no https URL itself
		var err error
		if clients, err = newSet(c, slog.New(slog.DiscardHandler), "client", t, nil, nil, false); err != nil {
			return nil, fmt.Errorf("client certificates: %w", err)
		}
	}
	if clients == nil {
		return []*certs.Set{d.peerTLS}, nil
	}
	return []*certs.Set{clients, d.peerTLS}, nil
}

// membersAt asks for the list of members at a client URL, or at a host and port with TLS and without.
func membersAt(ctx context.Context, endpoint string, ways []*certs.Set) ([]*pb.Member, error) {
	plain, secure := true, true
	if strings.Contains(endpoint, ":/") {
		u, err := url.Parse(endpoint)
		if err != nil {
			return nil, err
		}
		secure = config.Secure(*u)
		plain, endpoint = !secure, config.Address(*u)
		if config.Unix(*u) {
			endpoint = "unix:" + endpoint
		}
	}
	var tries []credentials.TransportCredentials
	if secure {
		for _, set := range ways {
			tries = append(tries, credentials.NewTLS(set.ClientConfig()))
		}
	}
	if plain {
		tries = append(tries, insecure.NewCredentials())
	}
	var failed []error // one for each way
	for _, creds := range tries {
		members, err := listMembers(ctx, endpoint, creds)
		if err == nil {
			return members, nil
		}
		failed = append(failed, err)
		if errors.Is(err, errAskUser) {
			break // a member has answered; it would say the same otherwise
		}
	}
	return nil, inOneLine(failed)
}

// inOneLine is what was said of several ways, or that a cluster wants a user, if one does.
func inOneLine(failed []error) error {
	var texts []string
	for _, err := range failed {
		if errors.Is(err, errAskUser) {
			return err
		}
		texts = append(texts, err.Error())
	}
	return errors.New(strings.Join(texts, "; "))
}

// errAskUser is of a cluster that tells only its users who is in it.
var errAskUser = errors.New("authentication is on, and this member asks at a client URL without a user; give peer URLs of members, or where they run with --client-cert-auth a certificate (--cert-file, --key-file) that names a user")

func listMembers(ctx context.Context, target string, creds credentials.TransportCredentials) ([]*pb.Member, error) {
	conn, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(creds))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout/2)
	defer cancel()
	list, err := pb.NewClusterClient(conn).MemberList(ctx, &pb.MemberListRequest{}) // not linearizable: it needs no majority
	switch status.Code(err) {
	case codes.OK:
		return list.Members, nil
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated:
		return nil, fmt.Errorf("%w (%s)", errAskUser, status.Convert(err).Message())
	}
	return nil, errors.New(status.Convert(err).Message())
}
