// Package transport carries messages, checkpoints and small requests between the members of one cluster: over TCP
// (Transport) and, for simulation, in memory (Network), with the same interface.
//
// It promises little, and raft needs no more: a message arrives at most once and unharmed (frames carry a checksum), or
// not at all. It never promises order across the two streams that a pair of members keeps. Sending never blocks: each
// peer has bounded queues, and what does not fit is dropped and reported.
//
// It never looks into what entries carry.
package transport
