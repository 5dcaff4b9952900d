package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagError says what is wrong with a flag of a command: its name, the value that was given, and what may be written.
func flagError(cmd *cobra.Command, err error) error {
	if bad := (*pflag.InvalidValueError)(nil); errors.As(err, &bad) {
		want := ""
		switch bad.GetFlag().Value.Type() {
		case "int", "int64":
			want = "not a whole number that fits; write it in digits, without a unit"
		case "uint", "uint32", "uint64":
			want = "not a whole number from 0 that fits; write it in digits, without a sign or a unit"
		case "duration":
			want = "not a duration; write it with a unit, such as 10m, 30s or 250ms"
		case "bool":
			want = "not a truth value; write true or false"
		default:
			want = bad.Unwrap().Error()
		}
		err = fmt.Errorf("--%s=%s: %s", bad.GetFlag().Name, bad.GetValue(), want)
	}
	return fmt.Errorf("%w; %s --help lists the flags", err, cmd.CommandPath())
}

// clusterSize is a flag that says how many members a cluster has; 0 while it is not given.
type clusterSize int

func (n *clusterSize) String() string {
	if *n == 0 {
		return ""
	}
	return fmt.Sprint(int(*n))
}

func (n *clusterSize) Type() string { return "number" }

func (n *clusterSize) Set(s string) error {
	switch s {
	case "1", "3", "5", "7":
		*n = clusterSize(s[0] - '0')
		return nil
	}
	return errors.New("a cluster has an odd number of members, so that one half can outvote the other; write 1, 3, 5 or 7")
}
