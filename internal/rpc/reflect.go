package rpc

import (
	"fmt"
	"path"
	"sync"

	"google.golang.org/grpc/reflection"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	alphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// registerReflection lets a server tell about its services.
func registerReflection(s reflection.GRPCServer) {
	o := reflection.ServerOptions{Services: s, DescriptorResolver: described{}}
	reflectionpb.RegisterServerReflectionServer(s, reflection.NewServerV1(o))
	alphapb.RegisterServerReflectionServer(s, reflection.NewServer(o))
}

// described finds descriptions of what is linked in, under names that agree with each other. It makes them when the first
// client asks.
type described struct{}

func (described) FindFileByPath(path string) (protoreflect.FileDescriptor, error) {
	files, err := descriptions()
	if err != nil {
		return nil, err
	}
	return files.FindFileByPath(path)
}

func (described) FindDescriptorByName(name protoreflect.FullName) (protoreflect.Descriptor, error) {
	files, err := descriptions()
	if err != nil {
		return nil, err
	}
	return files.FindDescriptorByName(name)
}

// descriptions are all files of the global registry, with the imports of etcd's put right: those files are registered
// under their last name (kv.proto) and import each other by the whole (etcd/api/mvccpb/kv.proto), so that a client that
// asks for what a file imports would be told that there is no such file.
var descriptions = sync.OnceValues(func() (*protoregistry.Files, error) {
	whole := map[string]string{} // the name that a file is registered under: the one that it is imported by
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Imports().Len() {
			if at := f.Imports().Get(i); at.IsPlaceholder() {
				whole[path.Base(at.Path())] = at.Path()
			}
		}
		return true
	})
	named := func(name string) string {
		if to, ok := whole[name]; ok {
			return to
		}
		return name
	}
	files := new(protoregistry.Files)
	var failed error
	var add func(f protoreflect.FileDescriptor) // with what it imports, which must be there first
	add = func(f protoreflect.FileDescriptor) {
		if _, err := files.FindFileByPath(named(f.Path())); err == nil || failed != nil {
			return
		}
		d := protodesc.ToFileDescriptorProto(f)
		d.Name = new(named(d.GetName()))
		for i, at := range d.Dependency {
			if in, err := protoregistry.GlobalFiles.FindFileByPath(at); err == nil {
				add(in)
			} else if in, err := protoregistry.GlobalFiles.FindFileByPath(path.Base(at)); err == nil {
				add(in)
			}
			d.Dependency[i] = named(at)
		}
		if failed != nil {
			return
		}
		made, err := protodesc.FileOptions{AllowUnresolvable: true}.New(d, files)
		if err == nil {
			err = files.RegisterFile(made)
		}
		if err != nil {
			failed = fmt.Errorf("rpc: describe %s: %w", f.Path(), err)
		}
	}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		add(f)
		return failed == nil
	})
	return files, failed
})
