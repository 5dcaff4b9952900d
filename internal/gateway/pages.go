package gateway

import (
	"encoding/json"
	"expvar"
	"fmt"
	"net/http"
	"net/http/pprof"

	"go.etcd.io/etcd/api/v3/version"

	"github.com/trivet-kv/trivet/internal/rpc"
)

// serveVersion is /version. The versions are etcd's, because tools parse and compare them; our own is elsewhere.
func serveVersion(b rpc.Backend, w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	cluster, _ := b.ClusterVersion()
	v := version.Versions{Server: version.Version, Cluster: cluster, Storage: rpc.StorageVersion(cluster)}
	if v.Cluster == "" {
		v.Cluster = "not_decided"
	}
	if v.Storage == "" {
		v.Storage = "unknown"
	}
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("gateway: three strings do not marshal: %v", err))
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

// serveVars is /debug/vars, in expvar's form.
func serveVars(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	sep := "{\n"
	expvar.Do(func(v expvar.KeyValue) {
		_, _ = fmt.Fprintf(w, "%s%q: %s", sep, v.Key, v.Value)
		sep = ",\n"
	})
	_, _ = fmt.Fprint(w, "\n}\n")
}

// RegisterPprof adds the pages of net/http/pprof, as --enable-pprof asks for.
func RegisterPprof(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}
