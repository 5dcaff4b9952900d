// Package compat makes the same calls of etcd 3.7.3 and of Trivet, both as three members that are processes on loopback,
// and wants every answer equal: every field, every error code and text, every event of every watcher. It is a
// module of its own, beside the one that builds etcd (bench/etcd), so that a plain test of Trivet does not wait for all
// this; it holds nothing but tests.
//
// A script is a list of calls, one a line, as in testdata/cases; package docs of its form are at parseOp. The cases are
// written by hand; the random driver (TestRandom) makes scripts from a seed, in episodes that each begin with an emptied
// store, and when the two differ it shortens the episode to a few lines and prints them. Such lines run again with
//
//	go test -run TestScript -script FILE
//
// What is forgiven is in normal_test.go, and nowhere else: ids of members, clusters and leases are mapped to small
// numbers, terms and times left to numbers that must make sense, and what docs/compat.md lists.
//
// Revisions in a script count from where it begins, so that an episode can run again on a store that is not fresh.
package compat
