// Config shows configuration with live reload: every key under a prefix is a setting, and the program follows changes
// as they happen. What it knows, and the revision up to which it knows it, is kept in a file: the program starts with
// its last settings even when the cluster cannot be reached, and then asks for what it missed only. If the history it
// missed has been compacted meanwhile, it loads all settings anew and reports the difference.
//
//	config --prefix app/ --cache app.json
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"sort"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Settings is the configuration as it was at a revision; revision 0 knows nothing.
type Settings struct {
	Revision int64             `json:"revision"`
	Values   map[string]string `json:"values"`
}

func main() {
	log.SetFlags(0)
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "client URLs of the cluster, separated by commas")
	prefix := flag.String("prefix", "app/", "what the keys of all settings begin with")
	cache := flag.String("cache", "", "file that keeps the settings between runs")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	client, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ","), DialTimeout: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	settings, err := read(*cache)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("start at revision %d with %d settings\n", settings.Revision, len(settings.Values))
	changed := func(s Settings, changes []string) error {
		for _, change := range changes {
			fmt.Println(change)
		}
		return write(*cache, s)
	}
	if err := run(ctx, client, *prefix, settings, changed); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

// run brings s up to date and keeps it so until ctx ends. It calls changed after every change, with the settings as
// they are now and what was done to them.
func run(ctx context.Context, client *clientv3.Client, prefix string, s Settings, changed func(Settings, []string) error) error {
	for {
		if s.Revision == 0 {
			answer, err := client.Get(ctx, prefix, clientv3.WithPrefix())
			if err != nil {
				return err
			}
			loaded := Settings{Revision: answer.Header.Revision, Values: map[string]string{}}
			for _, kv := range answer.Kvs {
				loaded.Values[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
			}
			changes := difference(s.Values, loaded.Values)
			s = loaded
			fmt.Println("loaded at revision", s.Revision)
			if err := changed(s, changes); err != nil {
				return err
			}
		}
		err := follow(ctx, client, prefix, &s, changed)
		if !errors.Is(err, rpctypes.ErrCompacted) {
			return err
		}
		fmt.Printf("history after revision %d is compacted\n", s.Revision)
		s.Revision = 0 // keep the values, to tell what changed
	}
}

// follow applies the changes after s.Revision as they come, until ctx ends or the history it needs is gone.
func follow(ctx context.Context, client *clientv3.Client, prefix string, s *Settings, changed func(Settings, []string) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for answer := range client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(s.Revision+1)) {
		if err := answer.Err(); err != nil {
			return err
		}
		// All events of one transaction come in one answer, so the settings are never seen half changed.
		before := clone(s.Values)
		for _, event := range answer.Events {
			s.Revision = event.Kv.ModRevision
			name := strings.TrimPrefix(string(event.Kv.Key), prefix)
			if event.Type == clientv3.EventTypeDelete {
				delete(s.Values, name)
			} else {
				s.Values[name] = string(event.Kv.Value)
			}
		}
		if err := changed(*s, difference(before, s.Values)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func clone(values map[string]string) map[string]string {
	c := make(map[string]string, len(values))
	for name, value := range values {
		c[name] = value
	}
	return c
}

// difference tells what turns before into now: "set name=value" and "unset name", in order of the names.
func difference(before, now map[string]string) []string {
	names := clone(before)
	for name, value := range now {
		names[name] = value
	}
	var changes []string
	for name := range names {
		was, had := before[name]
		value, has := now[name]
		switch {
		case !has:
			changes = append(changes, "unset "+name)
		case !had || was != value:
			changes = append(changes, "set "+name+"="+value)
		}
	}
	sort.Slice(changes, func(i, j int) bool { return nameOf(changes[i]) < nameOf(changes[j]) })
	return changes
}

func nameOf(change string) string {
	_, name, _ := strings.Cut(change, " ")
	name, _, _ = strings.Cut(name, "=")
	return name
}

func read(file string) (Settings, error) {
	s := Settings{Values: map[string]string{}}
	if file == "" {
		return s, nil
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	return s, err
}

// write replaces the file in one step, so that a crash leaves the old one or the new one.
func write(file string, s Settings) error {
	if file == "" {
		return nil
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
