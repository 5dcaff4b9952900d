package config

import (
	"fmt"
	"strings"
	"time"
)

// oldNames are those that settings of etcd had up to 3.6, and what they are called now: a flag or a feature gate.
var oldNames = []struct{ old, flag, gate string }{
	{old: "experimental-initial-corrupt-check", gate: "InitialCorruptCheck"},
	{old: "experimental-corrupt-check-time", flag: "corrupt-check-time"},
	{old: "experimental-compact-hash-check-enabled", gate: "CompactHashCheck"},
	{old: "experimental-compact-hash-check-time", flag: "compact-hash-check-time"},
}

// setOldNames takes what was given under an old name. As in etcd 3.6, a gate and its old name do not go together.
func (c *Config) setOldNames(given map[string]setting) error {
	for _, n := range oldNames {
		s, ok := given[n.old]
		if !ok {
			continue
		}
		now := "--" + n.flag
		_, both := given[n.flag]
		if n.gate != "" {
			now, both = "--feature-gates="+n.gate+"="+s.value, named(given["feature-gates"], n.gate)
		}
		f, _ := find(n.old)
		if both && f.isDefault(s.value) {
			continue
		}
		if both {
			return fmt.Errorf("%s: it is the old name of %s, which is given too; write %s alone", s.shown, now, now)
		}
		if n.gate != "" {
			c.Gates[n.gate] = s.value == "true"
			continue
		}
		f, _ = find(n.flag)
		d, err := time.ParseDuration(s.value)
		if err != nil {
			return fmt.Errorf("%s: %w; write a duration, as 10m", s.shown, err)
		}
		*f.bind(c).(*time.Duration) = d
	}
	return nil
}

// named reports whether a list of gates names one.
func named(gates setting, gate string) bool {
	for pair := range strings.SplitSeq(gates.value, ",") {
		if name, _, _ := strings.Cut(pair, "="); strings.TrimSpace(name) == gate {
			return true
		}
	}
	return false
}

// goneFlags are those of older versions of etcd that 3.7 has not, with what to do about them.
var goneFlags = map[string]string{
	"discovery":       "discovery by a URL is gone; use --discovery-token and --discovery-endpoints, or --discovery-srv",
	"discovery-proxy": "discovery by a URL is gone; use --discovery-token and --discovery-endpoints, or --discovery-srv",
	"enable-v2":       "the v2 API is gone; leave the flag out",
	"proxy":           "the v2 proxy is gone; grpc-proxy start is the one of v3",
	"debug":           "use --log-level=debug",

	"experimental-enable-v2v3": "the v2 API is gone; leave the flag out",
	"log-package-levels":       "levels of single packages are gone; use --log-level",
}
