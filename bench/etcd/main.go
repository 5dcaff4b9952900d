// Command etcd is etcd itself, the server of the version that Trivet is measured against, built from its Go module. It is
// a module of its own so that etcd's server stays out of Trivet's go.mod.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
