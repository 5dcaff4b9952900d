package main

import (
	"reflect"
	"testing"
)

func TestCompare(t *testing.T) {
	var got []string
	compare(
		map[string]string{"a": "1", "b": "2", "c": "3"},
		map[string]string{"a": "1", "b": "9", "d": "4"},
		func(sign, id, address string) { got = append(got, sign+id+" "+address) })
	want := []string{"+b 9", "-c 3", "+d 4"}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("compare told %q, want %q", got, want)
	}
}
