// Command trivet is the whole of Trivet in one binary: the server, a cluster for trying things out, the client and the
// tools. Called by the name etcd, etcdctl or etcdutl (through a link), it is that tool.
package main

import (
	"os"

	"github.com/trivet-kv/trivet/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args, os.Stdin, os.Stdout, os.Stderr)) }
