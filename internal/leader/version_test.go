package leader

import "testing"

func TestNextVersion(t *testing.T) {
	for _, c := range []struct {
		what      string
		cluster   string
		downgrade bool
		target    string
		members   []string
		insist    bool
		want      string
		fails     bool
	}{
		{what: "first", members: []string{"3.7.3", "3.7.0"}, want: "3.7.0"},
		{what: "first, the lowest", members: []string{"3.7.3", "3.6.9"}, want: "3.6.0"},
		{what: "first, one is silent", members: []string{"3.7.3", ""}},
		{what: "first, one is silent for long", members: []string{"3.7.3", ""}, insist: true, want: "3.0.0"},
		{what: "stays", cluster: "3.7.0", members: []string{"3.7.3"}},
		{what: "goes up with the last", cluster: "3.6.0", members: []string{"3.7.3", "3.7.1"}, want: "3.7.0"},
		{what: "waits for the last", cluster: "3.6.0", members: []string{"3.7.3", "3.6.1"}},
		{what: "waits for one that is silent", cluster: "3.6.0", members: []string{"3.7.3", ""}, insist: true},
		{what: "never goes down by itself", cluster: "3.7.0", members: []string{"3.6.3"}},
		{what: "not to another major version", cluster: "3.7.0", members: []string{"4.0.0"}},
		{what: "downgrade", cluster: "3.7.0", downgrade: true, target: "3.6.0", members: []string{"3.7.3", "3.7.3"}, want: "3.6.0"},
		{what: "downgrade waits for one that is silent", cluster: "3.7.0", downgrade: true, target: "3.6.0", members: []string{"3.7.3", ""}},
		{what: "downgrade that is done, old binaries or not", cluster: "3.6.0", downgrade: true, target: "3.6.0", members: []string{"3.7.3", "3.6.1"}},
		{what: "downgrade by two", cluster: "3.7.0", downgrade: true, target: "3.5.0", members: []string{"3.7.3"}, fails: true},
		{what: "downgrade to what is above", cluster: "3.7.0", downgrade: true, target: "3.8.0", members: []string{"3.7.3"}, fails: true},
		{what: "a cluster's version that is none", cluster: "x", members: []string{"3.7.3"}, fails: true},
		{what: "a target that is none", cluster: "3.7.0", downgrade: true, target: "x", members: []string{"3.7.3"}, fails: true},
		{what: "a member's version that is none", cluster: "3.6.0", members: []string{"3.7.3", "x"}, fails: true},
	} {
		got, err := NextVersion(c.cluster, c.downgrade, c.target, c.members, c.insist)
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%s: %q, %v; want %q, fails: %t", c.what, got, err, c.want, c.fails)
		}
	}
}

func TestAllAt(t *testing.T) {
	for _, c := range []struct {
		version string
		members []string
		want    bool
	}{
		{"3.6.0", []string{"3.6.1", "3.6.9"}, true},
		{"3.6.0", []string{"3.6.1", "3.7.0"}, false},
		{"3.6.0", []string{"3.6.1", ""}, false},
		{"", []string{"3.6.1"}, false},
	} {
		if got := AllAt(c.version, c.members); got != c.want {
			t.Errorf("AllAt(%q, %q) = %t", c.version, c.members, got)
		}
	}
}
