//go:build !linux

package engine

// giveWay does nothing: elsewhere than on Linux niceness is the whole process's.
func giveWay() {}
