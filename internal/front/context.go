package front

import (
	"context"
	"time"
)

// A call is the context of its handler. This spares a chain of contexts for each call, and the channel of Done where nobody
// waits for it. It ends when its client has got the whole answer or cancelled, at its deadline, and with the connection.

// Deadline implements context.Context.
func (k *call) Deadline() (time.Time, bool) { return k.deadline, !k.deadline.IsZero() }

// Done implements context.Context.
func (k *call) Done() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.done == nil {
		k.done = make(chan struct{})
		if k.err != nil {
			close(k.done)
		}
	}
	return k.done
}

// Err implements context.Context.
func (k *call) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// Value implements context.Context.
func (k *call) Value(key any) any {
	switch key {
	case metadataKey:
		return k.head.md // which nobody changes: grpc-go hands out copies
	case peerKey:
		return k.c.peer
	case streamKey:
		return k
	}
	return k.c.base.Value(key)
}

// hook is a function that waits for the end.
type hook struct{ f func() }

// AfterFunc lets contexts that are made of this one end with it without a goroutine each: see context.AfterFunc.
func (k *call) AfterFunc(f func()) (stop func() bool) {
	h := &hook{f}
	k.mu.Lock()
	ended := k.err != nil
	if !ended {
		k.after = append(k.after, h)
	}
	k.mu.Unlock()
	if ended {
		go f()
		return func() bool { return false }
	}
	return func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		for i, other := range k.after {
			if other == h {
				last := len(k.after) - 1
				k.after[i], k.after[last] = k.after[last], nil
				k.after = k.after[:last]
				return true
			}
		}
		return false
	}
}

// end ends the context and wakes whoever receives. Only the first time counts. c.mu must not be held.
func (k *call) end(err error) {
	k.mu.Lock()
	if k.err != nil {
		k.mu.Unlock()
		return
	}
	k.err = err
	if k.done != nil {
		close(k.done)
	}
	after, timer, unread := k.after, k.timer, k.unread
	k.after, k.timer, k.unread = nil, nil, 0
	k.messages, k.taken = nil, 0
	k.arrived.Broadcast()
	k.mu.Unlock()
	k.c.unread.Add(-int64(unread))
	if timer != nil {
		timer.Stop()
	}
	for _, h := range after {
		go h.f()
	}
}

// keyOf learns the key by which f looks for something in a context.
func keyOf(f func(context.Context)) any {
	s := &spy{Context: context.Background()}
	f(s)
	if s.key == nil {
		panic("front: a function of grpc-go looks for nothing in a context")
	}
	return s.key
}

type spy struct {
	context.Context
	key any
}

func (s *spy) Value(key any) any {
	s.key = key
	return nil
}
