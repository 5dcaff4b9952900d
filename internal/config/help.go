package config

import (
	"fmt"
	"io"
	"strings"
)

// WriteHelp writes all flags with their defaults, by section.
func WriteHelp(w io.Writer) {
	section := ""
	var later, meaningless []string
	for _, f := range table {
		switch {
		case f.Section == "":
			continue
		case f.Support == Later:
			later = append(later, f.Name)
			continue
		case f.Support == Meaningless:
			meaningless = append(meaningless, f.Name)
			continue
		}
		if f.Section != section {
			section = f.Section
			fmt.Fprintf(w, "\n%s:\n", section)
		}
		fmt.Fprintf(w, "  --%s '%s'\n    %s\n", f.Name, f.Default, f.Help)
		if f.Why != "" {
			fmt.Fprintf(w, "    Here: %s.\n", f.Why)
		}
	}
	fmt.Fprintf(w, "\nNot supported yet (refused unless left at the default):\n%s", wrap(later))
	fmt.Fprintf(w, "\nWithout meaning here (accepted, noted once in the log):\n%s", wrap(meaningless))
	fmt.Fprintln(w, `
Flags take one dash or two, and =VALUE or a space. Every flag can be set by a variable: ETCD_DATA_DIR for --data-dir.
A flag wins over its variable; a configuration file alone wins over both.`)
}

// wrap sets names in lines.
func wrap(names []string) string {
	var b strings.Builder
	line := " "
	for _, n := range names {
		if len(line)+len(n) > 110 {
			b.WriteString(line + "\n")
			line = " "
		}
		line += " --" + n
	}
	return b.String() + line + "\n"
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
