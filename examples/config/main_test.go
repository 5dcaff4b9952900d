package main

import (
	"path/filepath"
	"reflect"
	"testing"
)

func TestDifference(t *testing.T) {
	got := difference(
		map[string]string{"a": "1", "b": "2", "c": "3"},
		map[string]string{"a": "1", "b": "x=y", "d": ""})
	want := []string{"set b=x=y", "unset c", "set d="}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("difference is %q, want %q", got, want)
	}
}

func TestCache(t *testing.T) {
	file := filepath.Join(t.TempDir(), "app.json")
	if s, err := read(file); err != nil || s.Revision != 0 || s.Values == nil {
		t.Fatalf("no file yet: %+v, %v", s, err)
	}
	want := Settings{Revision: 7, Values: map[string]string{"a": "1"}}
	if err := write(file, want); err != nil {
		t.Fatal(err)
	}
	if got, err := read(file); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("read back %+v, %v", got, err)
	}
}
