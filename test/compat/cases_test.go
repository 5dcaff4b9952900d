package compat

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestCases runs the scripts that are written by hand. In them each line says whether an error is wanted.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/cases/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runFile(t, file) })
	}
}

// TestScript runs the script that -script names, such as a shortened one that TestRandom has printed.
func TestScript(t *testing.T) {
	if *scriptFlag == "" {
		t.Skip("no -script")
	}
	runFile(t, *scriptFlag)
}

func runFile(t *testing.T, file string) {
	ops := script(t, file)
	err := systems.run(ops, false)
	for range 2 {
		if !systems.void(err) {
			break
		}
		t.Logf("the machine stood still, once more: %v", err)
		err = systems.run(ops, true)
	}
	if err != nil {
		defer systems.bury()
		t.Fatalf("%s\nafter %d lines: %v\n%v", file, len(systems.done), err, systems.crashed())
	}
	for i, o := range ops {
		if got := systems.done[i]; got.fails != o.fails && !o.either {
			t.Errorf("%s: both fail: %v, where the script says %v", o, got.fails, o.fails)
		}
	}
}
