package config

import (
	"fmt"
	"io"
)

// WriteHelp writes all flags with their defaults, by section.
func WriteHelp(w io.Writer) {
	section := ""
	for _, f := range table {
		if f.Section == "" {
			continue
		}
		if f.Section != section {
			section = f.Section
			fmt.Fprintf(w, "\n%s:\n", section)
		}
		fmt.Fprintf(w, "  --%s '%s'\n    %s\n", f.Name, f.Default, f.Help)
		switch {
		case f.Support == Later:
			fmt.Fprintf(w, "    Not supported yet, and refused unless left at the default: %s.\n", f.Why)
		case f.Support == Meaningless:
			fmt.Fprintf(w, "    Without meaning here, and noted once in the log: %s.\n", f.Why)
		case f.Why != "":
			fmt.Fprintf(w, "    Here: %s.\n", f.Why)
		}
	}
	fmt.Fprintln(w, `
Flags take one dash or two, and =VALUE or a space. Every flag can be set by a variable: ETCD_DATA_DIR for --data-dir.
A flag wins over its variable; a configuration file alone wins over both.`)
}

// WriteTable writes the table as Markdown, for docs/compat.md.
func WriteTable(w io.Writer) {
	fmt.Fprintln(w, "| flag | default | here | why |\n|---|---|---|---|")
	for _, f := range table {
		def := f.Default
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(w, "| `--%s` | %s | %s | %s |\n", f.Name, def, f.Support, f.Why)
	}
}
