package transport

import (
	"context"
	"fmt"
)

// Call asks a peer and waits for its answer. Errors of the peer's handler come back as a *RemoteError; ErrUnreachable,
// at once, while there is no connection or when it breaks: then the peer may or may not have served the call.
func (t *Transport) Call(ctx context.Context, to uint64, kind byte, body []byte) ([]byte, error) {
	p := t.peer(to)
	if p == nil {
		return nil, fmt.Errorf("%w: %x", ErrUnknownPeer, to)
	}
	if len(body) > t.c.MaxFrameBytes-9 {
		return nil, fmt.Errorf("transport: a call of %d bytes where at most %d are sent", len(body), t.c.MaxFrameBytes-9)
	}
	id, ch, err := p.register()
	if err != nil {
		return nil, err
	}
	defer p.unregister(id)
	if !p.small.enqueueCall(call{id, kind, body}) {
		return nil, ErrUnreachable
	}
	select {
	case a := <-ch:
		return a.body, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.ctx.Done():
		return nil, ErrClosed
	}
}

func (p *peer) register() (uint64, chan answer, error) {
	p.callMu.Lock()
	defer p.callMu.Unlock()
	if len(p.calls) >= p.t.c.MaxCalls {
		return 0, nil, fmt.Errorf("%w: %d to member %x", ErrBusy, len(p.calls), p.id)
	}
	p.callID++
	ch := make(chan answer, 1)
	p.calls[p.callID] = ch
	return p.callID, ch, nil
}

func (p *peer) unregister(id uint64) {
	p.callMu.Lock()
	defer p.callMu.Unlock()
	delete(p.calls, id)
}

func (p *peer) answered(id uint64, verdict byte, body []byte) {
	p.callMu.Lock()
	defer p.callMu.Unlock()
	ch := p.calls[id]
	if ch == nil {
		return // the caller has given up
	}
	delete(p.calls, id)
	if verdict != 0 {
		ch <- answer{err: &RemoteError{string(body)}}
		return
	}
	ch <- answer{body: body}
}

// failCalls fails all that wait: their connection is gone, and with it the answers.
func (p *peer) failCalls(err error) {
	p.callMu.Lock()
	defer p.callMu.Unlock()
	for id, ch := range p.calls {
		delete(p.calls, id)
		ch <- answer{err: err}
	}
}

func (s *stream) enqueueCall(c call) bool {
	s.mu.Lock()
	ok := s.up
	if ok {
		s.calls = append(s.calls, c)
	}
	s.mu.Unlock()
	if ok {
		s.nudge()
	}
	return ok
}
