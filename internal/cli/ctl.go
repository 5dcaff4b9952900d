package cli

import (
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
)

func ctlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "ctl",
		Short:              "etcdctl, as etcd's users know it",
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return ctl(args) },
	}
}

// ctl hands over to etcd's own command tree, which reads the process's arguments and ends the process by itself when
// something goes wrong, with etcdctl's exit status.
func ctl(args []string) error {
	os.Args = append([]string{"etcdctl"}, args...)
	ctlv3.MustStart()
	return nil
}
