// Package cli is what people type: a file per command. It turns arguments into calls of the packages that do the work,
// and what comes back into text and an exit status: 0, or 1 with one sentence on standard error.
//
// It never holds state of a member and never reads or writes a data directory but through the packages that own its
// files; command dev owns only the few files that it adds beside its members' directories.
//
// Scripts in testdata run the commands as their readers would; cli_test.go holds them.
package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// terminal is where a command reads and writes.
type terminal struct {
	in       *os.File
	out, err io.Writer
	name     string // how the program was called
}

// Main runs the program and returns its exit status. args[0] is the name it was called by.
func Main(args []string, stdin *os.File, stdout, stderr io.Writer) int {
	t := terminal{in: stdin, out: stdout, err: stderr, name: args[0]}
	err := t.run(strings.TrimSuffix(filepath.Base(args[0]), ".exe"), args[1:])
	if err != nil {
		fmt.Fprintf(stderr, "trivet: %s\n", sentence(err))
		return 1
	}
	return 0
}

// sentence is an error on one line. Errors that were joined stand on a line each, and Pebble's for damaged blocks carry a
// second one, which says nothing.
func sentence(err error) string {
	return strings.ReplaceAll(strings.ReplaceAll(err.Error(), "\n<corruption detail carrier>", ""), "\n", "; ")
}

func (t terminal) run(name string, args []string) error {
	switch name {
	case "etcd":
		return t.etcd(args)
	case "etcdctl":
		return ctl(args)
	case "etcdutl":
		return t.etcdutl(args)
	}
	root := t.root()
	root.SetArgs(args)
	return root.Execute()
}

func (t terminal) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "trivet",
		Short: "A highly available key-value store that speaks etcd's API",
		Long: `Trivet is a highly available key-value store for the most critical data of a distributed system.
Every client and tool of etcd 3.7 works with it.

  trivet dev        three members on this machine, ready in a second
  trivet server     one member of a cluster, with etcd's flags
  trivet ctl        etcdctl`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if v, _ := cmd.Flags().GetBool("version"); v {
				writeEtcdVersion(t.out)
				return nil
			}
			if len(args) > 0 {
				return fmt.Errorf("%q is not a command; trivet help lists them", args[0])
			}
			return cmd.Help()
		},
	}
	root.Flags().Bool("version", false, "print the version, as etcd does")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetIn(t.in)
	root.SetOut(t.out)
	root.SetErr(t.err)
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(t.serverCommand(), t.devCommand(), ctlCommand(), t.inspectCommand(), t.gatewayCommand(), t.grpcProxyCommand(), t.utlCommand("utl"), t.versionCommand())
	return root
}

// etcd is the program under etcd's name: the member, but for the names of etcd's subcommands.
func (t terminal) etcd(args []string) error {
	if len(args) == 0 || args[0] != "gateway" && args[0] != "grpc-proxy" {
		return t.server(args)
	}
	root := &cobra.Command{Use: "etcd", SilenceUsage: true, SilenceErrors: true}
	root.SetOut(t.out)
	root.SetErr(t.err)
	root.AddCommand(t.gatewayCommand(), t.grpcProxyCommand())
	root.SetArgs(args)
	return root.Execute()
}
