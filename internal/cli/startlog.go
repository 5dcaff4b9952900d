package cli

import (
	"log/slog"
	"runtime"

	"go.etcd.io/etcd/api/v3/version"

	"github.com/trivet-kv/trivet/internal/config"
	"github.com/trivet-kv/trivet/internal/gateway"
)

// The lines of a start and a stop have etcd's words and fields: scripts and dashboards look for them.

const (
	msgStarting = "starting an etcd server"
	msgServing  = "now serving peer/client/metrics"
	msgReady    = "ready to serve client requests"
	msgSecure   = "serving client traffic securely"
	msgInsecure = "serving client traffic insecurely; this is strongly discouraged!"
	msgSignal   = "received signal; shutting down"
	msgClosing  = "closing etcd server"
	msgClosed   = "closed etcd server"
)

func logStarting(log *slog.Logger, c *config.Config) {
	localAddr := ""
	if c.LocalAddr.IsValid() {
		localAddr = c.LocalAddr.String()
	}
	log.Info(msgStarting, "etcd-version", version.Version, "trivet-version", Version, "git-sha", revision(),
		"go-version", runtime.Version(), "go-os", runtime.GOOS, "go-arch", runtime.GOARCH,
		"max-cpu-set", runtime.GOMAXPROCS(0), "max-cpu-available", runtime.NumCPU(),
		"name", c.Name, "data-dir", c.DataDir, "wal-dir", c.WALDir, "force-new-cluster", c.ForceNewCluster,
		"heartbeat-interval", c.Heartbeat.String(), "election-timeout", c.ElectionTimeout.String(),
		"initial-advertise-peer-urls", config.Strings(c.AdvertisePeerURLs), "listen-peer-urls", config.Strings(c.ListenPeerURLs),
		"advertise-client-urls", config.Strings(c.AdvertiseClientURLs), "listen-client-urls", config.Strings(c.ListenClientURLs),
		"listen-metrics-urls", config.Strings(c.ListenMetricsURLs), "local-address", localAddr,
		"initial-cluster-state", c.InitialClusterState, "initial-cluster-token", c.InitialClusterToken,
		"quota-backend-bytes", c.QuotaBackendBytes, "max-request-bytes", c.MaxRequestBytes,
		"max-concurrent-streams", c.MaxConcurrentStreams, "settings", c.Given)
}

func logServing(log *slog.Logger, c *config.Config, id uint64) {
	log.Info(msgServing, "local-member-id", hexID(id),
		"initial-advertise-peer-urls", config.Strings(c.AdvertisePeerURLs), "listen-peer-urls", config.Strings(c.ListenPeerURLs),
		"advertise-client-urls", config.Strings(c.AdvertiseClientURLs), "listen-client-urls", config.Strings(c.ListenClientURLs),
		"listen-metrics-urls", config.Strings(c.ListenMetricsURLs))
}

// logReady says that requests are answered, and at each address what is served and how.
func logReady(log *slog.Logger, c *config.Config, d *doors, id uint64) {
	log.Info(msgReady, "member", hexID(id), "client-urls", config.Strings(c.AdvertiseClientURLs))
	traffic := "grpc+http"
	if len(d.http) > 0 {
		traffic = "grpc"
	}
	say := func(doors []gateway.Door, traffic string) {
		for _, one := range doors {
			address := one.Listener.Addr().String()
			if one.Plain {
				log.Info(msgInsecure, "traffic", traffic, "address", address)
			}
			if one.TLS != nil {
				log.Info(msgSecure, "traffic", traffic, "address", address)
			}
		}
	}
	say(d.clients, traffic)
	say(d.http, "http")
}
