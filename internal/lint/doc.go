// Package lint holds the rules of the house as tests: who may import whom and why, that every package says what it is,
// that files and functions stay of a size one can read, that the packages that hold state use no clock, no chance and no
// goroutine, and that nothing in the tree depends on the machine it was written on.
//
// It reads source and never runs it. A rule that stands in the way is changed here, with its reason, or the code is.
package lint
