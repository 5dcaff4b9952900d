package leader

import "time"

// order is which of an entry's times a queue goes by.
type order uint8

const (
	byDeadline order = iota
	byCheckpoint
	orders
)

// queue is a binary heap of entries, the earliest first. An entry knows its place in it, so that it can be taken out.
type queue struct {
	order   order
	entries []*entry
}

func (q *queue) at(i int) time.Duration { return q.entries[i].at[q.order] }

// put adds e at a time, or moves it there.
func (q *queue) put(e *entry, at time.Duration) {
	e.at[q.order] = at
	i := e.place[q.order] - 1
	if i < 0 {
		i = len(q.entries)
		q.entries = append(q.entries, e)
		e.place[q.order] = i + 1
	}
	q.fix(i)
}

// remove takes e out, if it is in.
func (q *queue) remove(e *entry) {
	i := e.place[q.order] - 1
	if i < 0 {
		return
	}
	last := len(q.entries) - 1
	q.swap(i, last)
	q.entries[last] = nil
	q.entries = q.entries[:last]
	e.place[q.order] = 0
	if i < last {
		q.fix(i)
	}
}

// due takes out and returns the earliest entry if its time is not after now; nil if there is none.
func (q *queue) due(now time.Duration) *entry {
	if len(q.entries) == 0 || q.at(0) > now {
		return nil
	}
	e := q.entries[0]
	q.remove(e)
	return e
}

// next is the earliest time, or never.
func (q *queue) next() time.Duration {
	if len(q.entries) == 0 {
		return never
	}
	return q.at(0)
}

func (q *queue) swap(i, j int) {
	q.entries[i], q.entries[j] = q.entries[j], q.entries[i]
	q.entries[i].place[q.order] = i + 1
	q.entries[j].place[q.order] = j + 1
}

func (q *queue) fix(i int) {
	for i > 0 && q.at(i) < q.at((i-1)/2) {
		q.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(q.entries); c++ {
			if q.at(c) < q.at(least) {
				least = c
			}
		}
		if least == i {
			return
		}
		q.swap(i, least)
		i = least
	}
}
