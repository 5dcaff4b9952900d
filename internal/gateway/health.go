package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/rpc"
)

// check is one named look at the member's health.
type check struct {
	name string
	run  func(context.Context) error
}

// healthPages are /health, /livez and /readyz.
type healthPages struct {
	b       rpc.Backend
	timeout time.Duration // of one look
	record  func(kind, name string, ok bool)
	success func()
	failure func()

	leaderless func() bool // for longer than an election takes
}

func (p *healthPages) register(mux *http.ServeMux) {
	mux.HandleFunc("/health", p.health)
	p.group(mux, "livez", []check{{"serializable_read", p.serializableRead}})
	p.group(mux, "readyz", []check{
		{"data_corruption", p.notCorrupt},
		{"serializable_read", p.serializableRead},
		{"linearizable_read", p.linearizableRead},
		{"non_learner", p.notLearner},
	})
}

func (p *healthPages) serializableRead(context.Context) error {
	// The value does not matter, only that the store answers.
	_, _, err := p.b.Store().Range(kv.RangeOptions{Range: kv.Range{Key: []byte{0}}, KeysOnly: true, Limit: 1})
	return err
}

func (p *healthPages) linearizableRead(ctx context.Context) error {
	err := p.b.ReadBarrier(ctx)
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(context.Cause(ctx), kv.ErrTimeout) {
		return kv.ErrTimeout // this page's own bound
	}
	if err != nil {
		return err
	}
	return p.serializableRead(ctx)
}

// concerns reports whether an alarm says something of this member. The alarm CORRUPT that another member raised about itself
// does not: that one rebuilds itself, and this one serves.
func (p *healthPages) concerns(a kv.Alarm) bool {
	return a.Type != kv.AlarmCorrupt || !a.Own || a.MemberID == p.b.Header().MemberID
}

func (p *healthPages) notCorrupt(context.Context) error {
	for _, a := range p.b.Alarms() {
		if a.Type == kv.AlarmCorrupt && p.concerns(a) {
			return errors.New("alarm activated: CORRUPT")
		}
	}
	return nil
}

func (p *healthPages) notLearner(context.Context) error {
	if p.b.Learner() {
		return errors.New("not supported for learner")
	}
	return nil
}

// group installs a page that runs all checks and one page for each.
func (p *healthPages) group(mux *http.ServeMux, kind string, checks []check) {
	mux.HandleFunc("/"+kind, func(w http.ResponseWriter, r *http.Request) {
		exclude := r.URL.Query()["exclude"]
		p.answer(w, r, kind, checks, exclude)
	})
	for _, c := range checks {
		mux.HandleFunc("/"+kind+"/"+c.name, func(w http.ResponseWriter, r *http.Request) {
			p.answer(w, r, kind, []check{c}, nil)
		})
	}
}

func (p *healthPages) answer(w http.ResponseWriter, r *http.Request, kind string, checks []check, exclude []string) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), p.timeout, kv.ErrTimeout)
	defer cancel()
	var text strings.Builder
	ok := true
next:
	for _, c := range checks {
		for _, e := range exclude {
			if e == c.name {
				continue next
			}
		}
		err := c.run(ctx)
		p.record(kind, c.name, err == nil)
		if err != nil {
			ok = false
			fmt.Fprintf(&text, "[-]%s failed: %s\n", c.name, rpc.Text(err))
			continue
		}
		fmt.Fprintf(&text, "[+]%s ok\n", c.name)
	}
	if !ok {
		http.Error(w, text.String(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Query().Has("verbose") {
		_, _ = w.Write([]byte(text.String()))
	}
	_, _ = w.Write([]byte("ok\n"))
}

// health is etcd's older page: one JSON object, whose reason says what is wrong.
func (p *healthPages) health(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	q := r.URL.Query()
	reason := p.illness(r.Context(), q["exclude"], q.Get("serializable") == "true")
	verdict := struct {
		Health string `json:"health"`
		Reason string `json:"reason"`
	}{"true", reason}
	if reason != "" {
		verdict.Health = "false"
	}
	body, err := json.Marshal(verdict)
	if err != nil {
		panic(fmt.Sprintf("gateway: two strings do not marshal: %v", err))
	}
	if reason != "" {
		p.failure()
		http.Error(w, string(body), http.StatusServiceUnavailable)
		return
	}
	p.success()
	_, _ = w.Write(body)
}

// illness returns what is wrong with the member, empty if nothing is.
func (p *healthPages) illness(ctx context.Context, exclude []string, serializable bool) string {
next:
	for _, a := range p.b.Alarms() {
		if !p.concerns(a) {
			continue
		}
		name := a.Type.String()
		for _, e := range exclude {
			if e == name {
				continue next
			}
		}
		switch a.Type {
		case kv.AlarmNoSpace, kv.AlarmCorrupt:
			return "ALARM " + name
		default:
			return "ALARM UNKNOWN"
		}
	}
	if !serializable && p.leaderless() { // one that was just lost is waited for: the next is there in a moment
		return "RAFT NO LEADER"
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, kv.ErrTimeout)
	defer cancel()
	look := p.linearizableRead
	if serializable {
		look = p.serializableRead
	}
	if err := look(ctx); err != nil {
		return "RANGE ERROR:" + rpc.Text(err)
	}
	return ""
}

// allow answers any other method as etcd does.
func allow(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method == method {
		return true
	}
	w.Header().Set("Allow", method)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}
