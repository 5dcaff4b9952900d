package config

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// CheckBootstrap checks the settings that found a cluster. They matter only while the data directory is empty; afterwards
// the member knows its cluster and etcd, like Trivet, ignores them. lookup resolves a host name (net.DefaultResolver's
// LookupHost); it is asked only if the advertised URLs are not those of the initial cluster as written.
func (c *Config) CheckBootstrap(ctx context.Context, lookup func(ctx context.Context, host string) ([]string, error)) error {
	if len(c.Join) > 0 {
		return nil // the running cluster knows its members
	}
	if len(c.InitialCluster) == 0 {
		return fmt.Errorf("--initial-cluster is empty; list the founding members as NAME=http://HOST:PORT")
	}
	owner := map[string]string{}
	for _, m := range c.InitialCluster {
		for _, u := range m.PeerURLs {
			if other, ok := owner[u]; ok {
				return fmt.Errorf("--initial-cluster=%s: %q is there twice, for %q and %q; give each member URLs of its own", c.clusterText(), u, other, m.Name)
			}
			owner[u] = m.Name
		}
	}
	i := slices.IndexFunc(c.InitialCluster, func(m InitialMember) bool { return m.Name == c.Name })
	if i < 0 {
		return fmt.Errorf("--name=%s: the name is not in --initial-cluster=%s; use one of its names, or add this member to it", c.Name, c.clusterText())
	}
	if c.InitialClusterState == "existing" {
		return nil // as in etcd, the URLs that count are those that the member was added with
	}
	own := c.InitialCluster[i].PeerURLs
	advertised := Strings(c.AdvertisePeerURLs)
	if slices.Equal(own, advertised) {
		return nil
	}
	a, errA := ResolveURLs(ctx, lookup, own)
	b, errB := ResolveURLs(ctx, lookup, advertised)
	if errA == nil && errB == nil && slices.Equal(a, b) {
		return nil
	}
	return fmt.Errorf("--initial-advertise-peer-urls=%s: --initial-cluster has %s for %q; give both the same URLs",
		strings.Join(advertised, ","), strings.Join(own, ","), c.Name)
}

func (c *Config) clusterText() string {
	var pairs []string
	for _, m := range c.InitialCluster {
		for _, u := range m.PeerURLs {
			pairs = append(pairs, m.Name+"="+u)
		}
	}
	return strings.Join(pairs, ",")
}

// ResolveURLs replaces host names by their first address; sorted.
func ResolveURLs(ctx context.Context, lookup func(context.Context, string) ([]string, error), urls []string) ([]string, error) {
	var all []string
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil {
			return nil, err
		}
		if !Unix(*u) && net.ParseIP(u.Hostname()) == nil {
			addrs, err := lookup(ctx, u.Hostname())
			if err != nil || len(addrs) == 0 {
				return nil, fmt.Errorf("host %q has no address: %w", u.Hostname(), err)
			}
			slices.SortFunc(addrs, func(a, b string) int { return strings.Count(a, ":") - strings.Count(b, ":") }) // IPv4 before IPv6
			u.Host = net.JoinHostPort(addrs[0], u.Port())
		}
		all = append(all, u.String())
	}
	slices.Sort(all)
	return all, nil
}
