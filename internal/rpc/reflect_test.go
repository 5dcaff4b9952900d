package rpc_test

import (
	"context"
	"maps"
	"slices"
	"testing"

	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// TestReflection learns each service from the server alone, as tools without files do: the file that has it, then by name
// those that it imports; all of them must be there and fit together. Then it makes a call with what it learned.
func TestReflection(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	conn := s.dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		a, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e := a.GetErrorResponse(); e != nil {
			t.Fatalf("%v: %s", r, e.ErrorMessage)
		}
		return a
	}
	files := map[string]*descriptorpb.FileDescriptorProto{}
	take := func(a *reflectionpb.ServerReflectionResponse) {
		for _, raw := range a.GetFileDescriptorResponse().GetFileDescriptorProto() {
			f := new(descriptorpb.FileDescriptorProto)
			if err := proto.Unmarshal(raw, f); err != nil {
				t.Fatal(err)
			}
			files[f.GetName()] = f
		}
	}
	services := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService()
	for _, one := range services {
		take(ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: one.Name}}))
	}
	for missing := true; missing; {
		missing = false
		for _, f := range slices.Collect(maps.Values(files)) {
			for _, name := range f.Dependency {
				if files[name] == nil {
					missing = true
					take(ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileByFilename{FileByFilename: name}}))
					if files[name] == nil {
						t.Fatalf("asked for %s, and got another file", name)
					}
				}
			}
		}
	}
	whole, err := protodesc.NewFiles(&descriptorpb.FileDescriptorSet{File: slices.Collect(maps.Values(files))})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range services {
		if _, err := whole.FindDescriptorByName(protoreflect.FullName(one.Name)); err != nil {
			t.Errorf("%s: %v", one.Name, err)
		}
	}

	kv, err := whole.FindDescriptorByName("etcdserverpb.KV")
	if err != nil {
		t.Fatal(err)
	}
	call := func(method protoreflect.Name, in string) *dynamicpb.Message {
		t.Helper()
		m := kv.(protoreflect.ServiceDescriptor).Methods().ByName(method)
		q, a := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
		if err := protojson.Unmarshal([]byte(in), q); err != nil {
			t.Fatal(err)
		}
		if err := conn.Invoke(ctx, "/etcdserverpb.KV/"+string(method), q, a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	call("Put", `{"key":"YQ==","value":"Yg=="}`)
	got := call("Range", `{"key":"YQ=="}`)
	kvs := got.Get(got.Descriptor().Fields().ByName("kvs")).List()
	if kvs.Len() != 1 {
		t.Fatalf("got %v", got)
	}
	if v := kvs.Get(0).Message(); string(v.Get(v.Descriptor().Fields().ByName("value")).Bytes()) != "b" {
		t.Errorf("got %v", got)
	}
}
