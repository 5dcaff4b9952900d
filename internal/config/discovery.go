package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// checkDiscovery checks the settings for finding the founding members, and tells whether there are any. listed tells that
// --initial-cluster was given.
func (c *Config) checkDiscovery(listed bool) (bool, error) {
	if slices.Equal(c.Discovery.Endpoints, []string{""}) {
		c.Discovery.Endpoints = nil // what an empty flag leaves
	}
	byService, byDNS := len(c.Discovery.Endpoints) > 0, c.DiscoverySRV != ""
	switch {
	case byService && byDNS, (byService || byDNS) && listed:
		return false, errors.New("--initial-cluster, --discovery-endpoints and --discovery-srv exclude one another; give one of them")
	case byService != (c.Discovery.Token != ""):
		return false, errors.New("--discovery-token and --discovery-endpoints go together; give both, or neither")
	case byService && slices.Contains(c.Discovery.Endpoints, ""):
		return false, fmt.Errorf("--discovery-endpoints=%s: an endpoint is empty; write HOST:PORT,HOST:PORT", strings.Join(c.Discovery.Endpoints, ","))
	}
	if byService {
		if err := c.Discovery.check(); err != nil {
			return false, err
		}
		c.InitialClusterToken = c.Discovery.Token // as in etcd, so that all founders agree on their ids
	}
	return byService || byDNS, nil
}

// check holds those settings against one another that say how to talk to the service.
func (d *Discovery) check() error {
	switch {
	case (d.CertFile == "") != (d.KeyFile == ""):
		return errors.New("--discovery-cert, --discovery-key: a certificate and its key belong together; give both")
	case d.User != "" && !strings.Contains(d.User, ":") && d.Password == "":
		return errors.New("--discovery-user has no password; write it as NAME:PASSWORD, or give --discovery-password")
	case d.User == "" && d.Password != "":
		return errors.New("--discovery-password is given without a user; give --discovery-user too")
	case d.User != "" && d.AuthToken != "":
		return errors.New("--discovery-user and the key discovery-config.client.auth.token exclude one another; give one of them")
	}
	return nil
}

// ParseInitialCluster reads NAME=URL,NAME=URL, as --initial-cluster and what discovery gives; sorted.
func ParseInitialCluster(s string) ([]InitialMember, error) { return parseInitialCluster(s) }
