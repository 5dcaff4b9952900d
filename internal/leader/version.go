package leader

import (
	"fmt"

	"github.com/coreos/go-semver/semver"
)

// firstVersion is what a cluster serves while not all of its members are known, as in etcd.
const firstVersion = "3.0.0"

// NextVersion is the version X.Y.0 that the cluster is to serve from now on, empty if it is to stay: the lowest of its
// members', or the target of a downgrade. Members are the versions X.Y.Z of all members, empty for those that did not say;
// without all of them nothing is decided, but for a cluster that has no version yet if insist is set.
func NextVersion(cluster string, downgrade bool, target string, members []string, insist bool) (string, error) {
	lowest, err := lowestVersion(members)
	if err != nil {
		return "", err
	}
	if cluster == "" {
		switch {
		case lowest != nil:
			return lowest.String(), nil
		case insist:
			return firstVersion, nil
		}
		return "", nil
	}
	if lowest == nil {
		return "", nil
	}
	now, err := minor(cluster)
	if err != nil {
		return "", err
	}
	if !downgrade {
		if now.Major == lowest.Major && now.LessThan(*lowest) {
			return lowest.String(), nil
		}
		return "", nil
	}
	to, err := minor(target)
	switch {
	case err != nil:
		return "", err
	case to.Equal(*now):
		return "", nil
	case !oneBelow(to, now) || !oneBelow(to, lowest):
		return "", fmt.Errorf("the cluster is to be downgraded to %s, which is not one minor version below its version %s and its members' lowest, %s: cancel the downgrade", to, now, lowest)
	}
	return to.String(), nil
}

// AllAt reports whether all members said that they are of a version, whatever its patch.
func AllAt(version string, members []string) bool {
	want, err := minor(version)
	if err != nil {
		return false
	}
	for _, m := range members {
		if got, err := minor(m); err != nil || !got.Equal(*want) {
			return false
		}
	}
	return true
}

// TooOld reports whether a binary of version X.Y.Z does not serve all of what a cluster at a version may rely on.
func TooOld(binary, cluster string) bool {
	own, err := minor(binary)
	if err != nil {
		return false
	}
	agreed, err := minor(cluster)
	return err == nil && own.LessThan(*agreed)
}

func oneBelow(a, b *semver.Version) bool { return a.Major == b.Major && a.Minor == b.Minor-1 }

// lowestVersion is nil if a member did not say its version.
func lowestVersion(members []string) (*semver.Version, error) {
	var lowest *semver.Version
	for _, m := range members {
		if m == "" {
			return nil, nil
		}
		v, err := minor(m)
		if err != nil {
			return nil, fmt.Errorf("a member says that its version is %q: %w", m, err)
		}
		if lowest == nil || v.LessThan(*lowest) {
			lowest = v
		}
	}
	return lowest, nil
}

// minor reads X.Y.Z and leaves Z out.
func minor(text string) (*semver.Version, error) {
	v, err := semver.NewVersion(text)
	if err != nil {
		return nil, err
	}
	return &semver.Version{Major: v.Major, Minor: v.Minor}, nil
}
