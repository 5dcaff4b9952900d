package config

import (
	"fmt"
	"io"
	"strings"
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

// WriteTable writes all flags as Markdown, a table for each section, for docs/flags.md.
func WriteTable(w io.Writer) {
	section := "\x00"
	for _, f := range table {
		if f.Section != section {
			section = f.Section
			title := section
			if title == "" {
				title = "Taken and ignored by etcd too"
			}
			fmt.Fprintf(w, "\n## %s\n\n| flag | type | default | variable | in the file | here | what it does |\n|---|---|---|---|---|---|---|\n", title)
		}
		what := f.Help
		switch {
		case what == "":
			what = f.Why
		case f.Why != "":
			what += " **Here:** " + f.Why + "."
		}
		fmt.Fprintf(w, "| `--%s` | %s | %s | `%s` | %s | %s | %s |\n",
			f.Name, f.Kind, code(f.Default), envName(f.Name), code(strings.TrimPrefix(f.fileKey(), noKey)), f.Support, what)
	}
	fmt.Fprint(w, "\n## Keys of the file that no flag sets\n\n| in the file | type | default | here | what it does |\n|---|---|---|---|---|\n")
	for _, f := range fileOnly {
		fmt.Fprintf(w, "| `%s` | %s | %s | %s | %s |\n", f.Name, f.Kind, code(f.Default), f.Support, f.Help)
	}
	fmt.Fprintln(w)
}

// code is text in the type of code; nothing for no text.
func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}
