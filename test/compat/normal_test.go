package compat

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// firstNamed is where the ids begin that stand in scripts for leases whose id the server chose.
const firstNamed = 1 << 40

// verbatim is where revisions in a script stop to be relative.
const verbatim = 1 << 50

// names maps what each system calls differently to what a script calls it.
type names struct {
	base    int64 // the revision that a script calls 1
	cluster uint64
	members map[uint64]uint64 // ids of members to 1, 2, 3; those added later to 4, 5 and so on
	lenient int64             // seconds that leases may have too much: a new leader of etcd gives them some
	peers   []string          // peer URLs of members 1, 2, 3
	leases  map[int64]int64   // ids that the server chose to firstNamed, firstNamed+1, ...
	real    map[int64]int64   // the other way
}

// relative are the fields that hold revisions in requests.
var relative = map[protoreflect.Name]bool{
	"revision": true, "start_revision": true, "min_mod_revision": true, "max_mod_revision": true,
	"min_create_revision": true, "max_create_revision": true, "create_revision": true, "mod_revision": true,
}

// request is a script's request as one system is to get it.
func (n *names) request(m proto.Message) proto.Message {
	m = proto.Clone(m)
	n.memberRequest(m)
	visit(m.ProtoReflect(), func(m protoreflect.Message, f protoreflect.FieldDescriptor, v protoreflect.Value) {
		if f.Kind() != protoreflect.Int64Kind {
			return
		}
		i := v.Int()
		switch {
		case relative[f.Name()] && 0 < i && i < verbatim:
			i += n.base - 1
		case leaseField(m, f) && n.real[i] != 0:
			i = n.real[i]
		}
		m.Set(f, protoreflect.ValueOfInt64(i))
	})
	return m
}

// memberRequest puts the id of a member for its number in a script, up to 99, and the peer URL of the member n for PEERn.
func (n *names) memberRequest(m proto.Message) {
	id := func(i *uint64) {
		for real, name := range n.members {
			if name == *i {
				*i = real
				return
			}
		}
	}
	urls := func(all []string) {
		for i, u := range all {
			if number, ok := strings.CutPrefix(u, "PEER"); ok {
				all[i] = n.peers[number[0]-'1']
			}
		}
	}
	switch m := m.(type) {
	case *pb.MemberAddRequest:
		urls(m.PeerURLs)
	case *pb.MemberUpdateRequest:
		id(&m.ID)
		urls(m.PeerURLs)
	case *pb.MemberRemoveRequest:
		id(&m.ID)
	case *pb.MemberPromoteRequest:
		id(&m.ID)
	case *pb.MoveLeaderRequest:
		id(&m.TargetID)
	}
}

func leaseField(m protoreflect.Message, f protoreflect.FieldDescriptor) bool {
	return f.Name() == "lease" || f.Name() == "ID" && bytes.HasPrefix([]byte(m.Descriptor().Name()), []byte("Lease"))
}

// answer puts an answer into the form in which both must be equal, and says what makes no sense in it.
func (n *names) answer(member int, req, m proto.Message) error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	n.nameLease(req, m)
	visit(m.ProtoReflect(), func(m protoreflect.Message, f protoreflect.FieldDescriptor, v protoreflect.Value) {
		if f.Kind() == protoreflect.Int64Kind && leaseField(m, f) && n.leases[v.Int()] != 0 {
			m.Set(f, protoreflect.ValueOfInt64(n.leases[v.Int()]))
		}
	})
	headers(m.ProtoReflect(), func(h *pb.ResponseHeader) { n.header(member, h, wrong) })
	switch m := m.(type) {
	case *pb.LeaseTimeToLiveResponse:
		if m.TTL > m.GrantedTTL+n.lenient || m.TTL < -1 {
			wrong("%d s left of %d", m.TTL, m.GrantedTTL)
		}
		if m.TTL > 0 {
			m.TTL = m.GrantedTTL
		}
		slices.SortFunc(m.Keys, bytes.Compare)
	case *pb.LeaseLeasesResponse:
		slices.SortFunc(m.Leases, func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
	case *pb.StatusResponse:
		n.status(m, wrong)
	case interface{ GetMembers() []*pb.Member }: // every answer of the service Cluster
		n.memberList(m.GetMembers())
		if added, ok := m.(*pb.MemberAddResponse); ok {
			n.memberList([]*pb.Member{added.Member})
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%v", errs)
	}
	return nil
}

// nameLease remembers the id that a server chose.
func (n *names) nameLease(req, m proto.Message) {
	granted, ok := m.(*pb.LeaseGrantResponse)
	if !ok || granted.ID == 0 || req.(*pb.LeaseGrantRequest).ID != 0 {
		return
	}
	name := int64(firstNamed + len(n.leases))
	n.leases[granted.ID], n.real[name] = name, granted.ID
}

func (n *names) header(member int, h *pb.ResponseHeader, wrong func(string, ...any)) {
	switch {
	case h.ClusterId == 0 && h.MemberId == 0 && h.RaftTerm == 0:
		return // some answers have a header without names: then both must
	case h.ClusterId != n.cluster:
		wrong("cluster id %x, was %x", h.ClusterId, n.cluster)
	case n.members[h.MemberId] != uint64(member+1):
		wrong("member id %x, which is not that of member %d", h.MemberId, member+1)
	case h.RaftTerm == 0:
		wrong("no raft term")
	}
	h.ClusterId, h.MemberId, h.RaftTerm = 1, n.members[h.MemberId], 1
}

// status leaves of what differs by right whether it is there.
func (n *names) status(m *pb.StatusResponse, wrong func(string, ...any)) {
	if n.members[m.Leader] == 0 {
		wrong("leader %x is no member", m.Leader)
	}
	if m.RaftAppliedIndex > m.RaftIndex {
		wrong("applied %d of %d", m.RaftAppliedIndex, m.RaftIndex)
	}
	if m.DbSizeInUse > m.DbSize {
		wrong("%d bytes in use of %d", m.DbSizeInUse, m.DbSize)
	}
	for i, e := range m.Errors { // protobuf's printer for Go puts a second space in at whim
		m.Errors[i] = strings.ReplaceAll(e, "  ", " ")
	}
	m.Leader = min(m.Leader, 1)
	m.RaftIndex, m.RaftAppliedIndex, m.RaftTerm = min(m.RaftIndex, 1), min(m.RaftAppliedIndex, 1), min(m.RaftTerm, 1)
	m.DbSize, m.DbSizeInUse = min(m.DbSize, 1), min(m.DbSizeInUse, 1)
}

// memberList names members that are new 4, 5, and so on: they are added one at a time.
func (n *names) memberList(members []*pb.Member) {
	for _, one := range members {
		if n.members[one.ID] == 0 {
			n.members[one.ID] = uint64(len(n.members) + 1)
		}
		one.ID = n.members[one.ID]
		// Ports are what the kernel had free; that the addresses are those of the flags, the harness relies on.
		one.PeerURLs, one.ClientURLs = scheme(one.PeerURLs), scheme(one.ClientURLs)
	}
	slices.SortFunc(members, func(a, b *pb.Member) int { return cmp.Compare(a.ID, b.ID) })
}

func scheme(urls []string) []string {
	for i, u := range urls {
		urls[i] = u[:strings.LastIndexByte(u, ':')]
	}
	return urls
}

// visit calls f for every field that is set, at every depth, each message after what it holds.
func visit(m protoreflect.Message, f func(protoreflect.Message, protoreflect.FieldDescriptor, protoreflect.Value)) {
	m.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case d.IsMap():
		case d.IsList() && d.Message() != nil:
			for i := range v.List().Len() {
				visit(v.List().Get(i).Message(), f)
			}
		case d.IsList():
		case d.Message() != nil:
			visit(v.Message(), f)
		default:
			f(m, d, v)
		}
		return true
	})
}

// headers calls f for every header in a message; those inside of a transaction's answer are mostly without names.
func headers(m protoreflect.Message, f func(*pb.ResponseHeader)) {
	if h, ok := m.Interface().(*pb.ResponseHeader); ok {
		f(h)
		return
	}
	m.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case d.IsMap() || d.Message() == nil:
		case d.IsList():
			for i := range v.List().Len() {
				headers(v.List().Get(i).Message(), f)
			}
		default:
			headers(v.Message(), f)
		}
		return true
	})
}
