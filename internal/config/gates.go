package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
)

// stage is how far a feature of etcd has come.
type stage uint8

const (
	alpha stage = iota
	beta
)

// gate is one feature gate of etcd 3.7.
type gate struct {
	name  string
	stage stage
	on    bool // the default
	// Support is as for a flag: it works when turned on, or it has no meaning, for the reason in Why.
	support Support
	why     string
}

// gates is never written to.
var gates = []gate{
	{"CompactHashCheck", alpha, false, Works, "the leader compares the members' data after a compaction"},
	{"FastLeaseKeepAlive", beta, true, Meaningless, "a renewal never waits for entries to be applied"},
	{"InitialCorruptCheck", alpha, false, Works, "a member compares its data with its peers' before it serves"},
	{"LeaseCheckpoint", alpha, false, Meaningless, "a lease's time always goes on after a change of leader"},
	{"LeaseCheckpointPersist", alpha, false, Meaningless, "a lease's time always goes on after a restart"},
	{"PriorityRequest", alpha, false, Meaningless, "the queue of proposals has one bound for all"},
	{"SetMemberLocalAddr", alpha, false, Works, "other members are dialled from the first of this member's advertised addresses"},
	{"StopGRPCServiceOnDefrag", alpha, false, Meaningless, "there is nothing to defragment"},
	{"TxnModeWriteWithSharedBuffer", beta, true, Meaningless, noBbolt},
}

// The names that turn on or off all gates of a stage that are not given by their own.
var gateGroups = map[string]stage{"AllAlpha": alpha, "AllBeta": beta}

func (s stage) String() string {
	if s == beta {
		return "BETA"
	}
	return "ALPHA"
}

// EachGate calls f with every feature gate and every group of them, its stage as etcd writes it, and whether it is on.
func (c *Config) EachGate(f func(name, stage string, on bool)) {
	for name, of := range gateGroups {
		f(name, of.String(), c.Gates[name])
	}
	for _, g := range gates {
		f(g.name, g.stage.String(), c.Gates[g.name])
	}
}

func gatesWhy() string {
	var works, none []string
	for _, g := range gates {
		if g.support == Works {
			works = append(works, g.name)
		} else {
			none = append(none, g.name)
		}
	}
	var parts []string
	for _, p := range []struct {
		names []string
		what  string
	}{{works, "can be turned on"}, {none, "have no meaning"}} {
		if len(p.names) > 0 {
			parts = append(parts, strings.Join(p.names, ", ")+" "+p.what)
		}
	}
	return strings.Join(parts, "; ") + "; AllAlpha and AllBeta stand for all of a stage"
}

// setGates reads NAME=true,NAME=false as etcd does: the last of a name wins, a group reaches those not named themselves.
func (c *Config) setGates(s setting) error {
	given := map[string]bool{}
	for _, pair := range strings.Split(s.value, ",") {
		if pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		on, err := Bool.parse(strings.TrimSpace(value))
		if !ok || err != nil {
			return fmt.Errorf("%s: %q does not say on or off; write NAME=true or NAME=false", s.shown, pair)
		}
		_, group := gateGroups[name]
		if !group && !slices.ContainsFunc(gates, func(g gate) bool { return g.name == name }) {
			return fmt.Errorf("%s: %q is not a feature gate of etcd 3.7; leave it out", s.shown, name)
		}
		given[name] = on == "true"
	}
	c.Gates = make(map[string]bool, len(gates)+len(gateGroups))
	for name := range gateGroups {
		c.Gates[name] = given[name]
	}
	for _, g := range gates {
		on, named := given[g.name]
		for group, stage := range gateGroups {
			if of, ok := given[group]; ok && !named && stage == g.stage {
				on, named = of, true
			}
		}
		if !named {
			on = g.on
		}
		c.Gates[g.name] = on
	}
	for _, g := range gates {
		if c.Gates[g.name] != g.on && g.support == Meaningless {
			c.note(slog.LevelWarn, "feature gate has no meaning here and is ignored", "gate", g.name, "reason", g.why)
		}
	}
	if c.Gates["LeaseCheckpointPersist"] && !c.Gates["LeaseCheckpoint"] {
		return fmt.Errorf("%s: LeaseCheckpointPersist needs LeaseCheckpoint; give both or none", s.shown)
	}
	if c.Gates["SetMemberLocalAddr"] {
		c.setLocalAddr()
	}
	return nil
}

// setLocalAddr takes the first advertised address that is not of this machine alone.
func (c *Config) setLocalAddr() {
	for _, u := range c.AdvertisePeerURLs {
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			c.LocalAddr = a
			c.note(slog.LevelInfo, "setting member local address", "LocalAddr", a.String())
			return
		}
	}
	c.note(slog.LevelWarn, "unable to set a member local address due to lack of suitable local addresses",
		"advertise-peer-urls", Strings(c.AdvertisePeerURLs))
}
