package tracing

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// A collector that is away for hours makes a line a minute, which counts the others.
func TestComplaints(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c := &complaints{log: slog.New(slog.NewTextHandler(&log, nil))}
		for range 10 {
			c.Handle(errors.New("away"))
		}
		time.Sleep(quiet)
		c.Handle(errors.New("still away"))
		c.Handle(errors.New("still away"))
		if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), `error="still away" "failures not logged"=9`) {
			t.Errorf("%d lines:\n%s", n, log.String())
		}
	})
}
