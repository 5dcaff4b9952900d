package cli

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the tables of the subcommands' flags into docs/flags.md")

// docs/flags.md holds the flags of the subcommands of etcd's binary between two marks; go test ./internal/cli -run
// SubcommandFlagsDoc -update writes them.
func TestSubcommandFlagsDoc(t *testing.T) {
	const name = "../../docs/flags.md"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := []byte("<!-- subcommands: begin -->\n"), []byte("<!-- subcommands: end -->")
	from, to := bytes.Index(text, begin), bytes.Index(text, end)
	if from < 0 || to < from {
		t.Fatalf("%s has no place for them: write %s%s where they belong", name, begin, end)
	}
	from += len(begin)
	var tables bytes.Buffer
	var term terminal
	kinds := map[string]string{
		"string": "text", "stringSlice": "list", "bool": "true or false", "duration": "duration", "int": "whole number", "uint": "whole number from 0", "uint32": "whole number from 0",
	}
	for _, cmd := range []*cobra.Command{term.gatewayCommand(), term.grpcProxyCommand()} {
		fmt.Fprintf(&tables, "\n## %s start\n\n| flag | type | default | what it does |\n|---|---|---|---|\n", cmd.Name())
		start, _, err := cmd.Find([]string{"start"})
		if err != nil {
			t.Fatal(err)
		}
		start.Flags().VisitAll(func(f *pflag.Flag) {
			def := f.DefValue
			if def != "" {
				def = "`" + def + "`"
			}
			fmt.Fprintf(&tables, "| `--%s` | %s | %s | %s |\n", f.Name, kinds[f.Value.Type()], def, f.Usage)
		})
	}
	fmt.Fprintln(&tables)
	if bytes.Equal(text[from:to], tables.Bytes()) {
		return
	}
	if !*update {
		t.Fatalf("the flags in %s are not those of the commands: go test ./internal/cli -run SubcommandFlagsDoc -update", name)
	}
	text = append(append(bytes.Clone(text[:from]), tables.Bytes()...), text[to:]...)
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
