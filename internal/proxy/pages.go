package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy"
)

// pages are what a proxy shows over HTTP. own are its measurements beside those that etcd's packages keep for the process.
func (s *Server) pages(own prometheus.Gatherer) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/", http.NotFound)
	mux.HandleFunc("/metrics", s.memberMetrics(s.memberClient()))
	mux.Handle("/proxy/metrics", promhttp.HandlerFor(prometheus.Gatherers{prometheus.DefaultGatherer, own}, promhttp.HandlerOpts{}))
	grpcproxy.HandleHealth(s.o.Zap, mux, answering(s.client))
	if s.self == nil {
		grpcproxy.HandleProxyHealth(s.o.Zap, mux, nil)
	} else {
		grpcproxy.HandleProxyHealth(s.o.Zap, mux, answering(s.self))
	}
	return mux
}

// answering is a client whose reads are good if a member has answered them, also with the wish for another user: the
// health pages ask without a user.
func answering(c *clientv3.Client) *clientv3.Client {
	a := clientv3.NewCtxClient(c.Ctx())
	a.KV, a.Watcher = answeringKV{c.KV}, c.Watcher
	return a
}

type answeringKV struct{ clientv3.KV }

func (kv answeringKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	a, err := kv.KV.Get(ctx, key, opts...)
	if errors.Is(err, rpctypes.ErrUserEmpty) {
		return &clientv3.GetResponse{}, nil
	}
	return a, err
}

// memberClient asks members for pages. It shows and trusts what the gRPC connections do.
func (s *Server) memberClient() *http.Client {
	t := &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute}
	if s.o.DialTLS != nil {
		t.TLSClientConfig = s.o.DialTLS.Clone()
	}
	return &http.Client{Transport: t, Timeout: 10 * time.Second}
}

// memberMetrics shows the metrics of one of the members, another one each time; of those that do not answer, the next.
func (s *Server) memberMetrics(c *http.Client) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		members := s.client.Endpoints()
		rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		var failed []string
		for _, m := range members {
			if !strings.Contains(m, "://") {
				m = map[bool]string{false: "http://", true: "https://"}[s.o.DialTLS != nil] + m
			}
			if err := copyPage(r.Context(), c, m+"/metrics", w); err != nil {
				failed = append(failed, err.Error())
				continue
			}
			return
		}
		http.Error(w, "no member shows its metrics: "+strings.Join(failed, "; "), http.StatusBadGateway)
	}
}

// copyPage gets a page and, if it is there, writes it.
func copyPage(ctx context.Context, c *http.Client, url string, w http.ResponseWriter) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	a, err := c.Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, a.Status)
	}
	w.Header().Set("Content-Type", a.Header.Get("Content-Type"))
	_, _ = io.Copy(w, a.Body) // a client that has gone needs no error
	return nil
}
