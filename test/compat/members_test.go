package compat

import (
	"slices"
	"testing"
	"time"
)

// steady is how long etcd wants members to have been connected before it takes them to be running.
const steady = 5500 * time.Millisecond

// TestMembers changes the members, with good and bad input, and takes one away in the end.
func TestMembers(t *testing.T) {
	ops := script(t, "testdata/members/change.txt")
	systems.lastly(t, false, func(step func(op) error) error {
		time.Sleep(time.Until(systems.etcd.since.Add(steady)))
		return stepwise(t, ops, true, step)
	})
}

// TestDowngrade asks for older versions, good and bad ones. How soon the cluster follows is made to be late.
func TestDowngrade(t *testing.T) {
	ops := script(t, "testdata/members/downgrade.txt")
	defer systems.with("--downgrade-check-time=1h")()
	systems.lastly(t, true, func(step func(op) error) error { return stepwise(t, ops, true, step) })
}

// with gives both systems more flags, for what starts fresh ones, and returns how to take them back.
func (p *pair) with(flags ...string) (back func()) {
	etcd, trivet := p.etcd.extra, p.trivet.extra
	p.etcd.extra, p.trivet.extra = slices.Concat(etcd, flags), slices.Concat(trivet, flags)
	return func() { p.etcd.extra, p.trivet.extra = etcd, trivet }
}
