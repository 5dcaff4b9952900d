package member

import (
	"crypto/sha1"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
)

// ID is the id that etcd gives a founding member: the first eight bytes, big endian, of the SHA-1 of its peer URLs, sorted
// and joined without a separator, followed by the cluster token. Two members with the same peer URLs therefore have the
// same id, which is why a cluster may not list a URL twice, and why a member keeps its id as long as its URLs and its
// token stay the same. The URLs are taken as they are written: http://localhost:2380 and http://127.0.0.1:2380 differ.
func ID(peerURLs []string, token string) uint64 {
	return hashID(strings.Join(slices.Sorted(slices.Values(peerURLs)), "") + token)
}

// AddedID is the id that etcd gives a member added to a running cluster at unixSeconds, so that a member that comes back
// under the same URLs is a new one.
func AddedID(peerURLs []string, token string, unixSeconds int64) uint64 {
	return hashID(strings.Join(slices.Sorted(slices.Values(peerURLs)), "") + token + strconv.FormatInt(unixSeconds, 10))
}

// ClusterID is the id of the cluster that members with these ids found: the first eight bytes of the SHA-1 of the ids,
// ascending, eight bytes big endian each. It never changes afterwards, whoever joins or leaves.
func ClusterID(members []uint64) uint64 {
	b := make([]byte, 0, 8*len(members))
	for _, id := range slices.Sorted(slices.Values(members)) {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	sum := sha1.Sum(b)
	return binary.BigEndian.Uint64(sum[:8])
}

func hashID(s string) uint64 {
	sum := sha1.Sum([]byte(s))
	return binary.BigEndian.Uint64(sum[:8])
}
