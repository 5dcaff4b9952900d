package cli

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/version"
)

// Version is Trivet's own version. Clients are told the version of etcd whose API is spoken; see writeEtcdVersion.
const Version = "0.1.0"

// writeEtcdVersion writes the four lines that etcd --version writes, which scripts read, and a fifth.
func writeEtcdVersion(w io.Writer) {
	fmt.Fprintf(w, "etcd Version: %s\n", version.Version)
	fmt.Fprintf(w, "Git SHA: %s\n", revision())
	fmt.Fprintf(w, "Go Version: %s\n", runtime.Version())
	fmt.Fprintf(w, "Go OS/Arch: %s/%s\n", runtime.GOOS, runtime.GOARCH)
	fmt.Fprintf(w, "Trivet Version: %s\n", Version)
}

// revision is the commit that the binary was built from, as the Go tool stamped it.
func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 7 {
				return s.Value[:7]
			}
		}
	}
	return "unknown"
}

func (t terminal) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of Trivet and of the API it speaks",
		Args:  cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			fmt.Fprintf(t.out, "trivet %s (%s, %s %s/%s), speaks the API of etcd %s\n",
				Version, revision(), runtime.Version(), runtime.GOOS, runtime.GOARCH, version.Version)
		},
	}
}
