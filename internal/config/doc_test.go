package config

import (
	"bytes"
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write the table of flags into docs/flags.md")

// docs/flags.md holds the table between two marks; go test ./internal/config -run FlagsDoc -update writes it.
func TestFlagsDoc(t *testing.T) {
	const name = "../../docs/flags.md"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := []byte("<!-- flags: begin -->\n"), []byte("<!-- flags: end -->")
	from, to := bytes.Index(text, begin), bytes.Index(text, end)
	if from < 0 || to < from {
		t.Fatalf("%s has no place for the flags: write %s%s where the table belongs", name, begin, end)
	}
	from += len(begin)
	var table bytes.Buffer
	WriteTable(&table)
	if bytes.Equal(text[from:to], table.Bytes()) {
		return
	}
	if !*update {
		t.Fatalf("the flags in %s are not those of the table: go test ./internal/config -run FlagsDoc -update", name)
	}
	text = append(append(bytes.Clone(text[:from]), table.Bytes()...), text[to:]...)
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
