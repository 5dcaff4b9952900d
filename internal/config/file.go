package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// fileOnly are keys of the configuration file that etcd reads and has no flag for.
var fileOnly = []Flag{
	{Name: ctsec + "allowed-cn", Kind: List, Help: "Common names that client certificates may carry.",
		bind: func(c *Config) any { return &c.ClientTLS.AllowedCNs }},
	{Name: ctsec + "skip-client-san-verification", Kind: Bool, Default: "false", Help: "Do not check the names in client certificates on --listen-metrics-urls.",
		bind: func(c *Config) any { return &c.ClientTLS.SkipClientSANVerification }},
	{Name: dconf + "client.max-request-bytes", Kind: Int64, Default: "0", Help: "Longest request to the discovery service; 0: 2 MiB.",
		bind: func(c *Config) any { return &c.Discovery.MaxSendBytes }},
	{Name: dconf + "client.max-recv-bytes", Kind: Int64, Default: "0", Help: "Longest answer of the discovery service; 0: 2 GiB.",
		bind: func(c *Config) any { return &c.Discovery.MaxRecvBytes }},
	{Name: dconf + "client.secure.server-name", Kind: String, Help: "Name that the discovery service's certificate is for, if not its host.",
		bind: func(c *Config) any { return &c.Discovery.ServerName }},
	{Name: dconf + "client.auth.token", Kind: String, Help: "Token for the discovery service, instead of a user.", secret: true,
		bind: func(c *Config) any { return &c.Discovery.AuthToken }},
}

// readFile reads the settings of a configuration file. As in etcd, a key that is not known is not an error: files written
// for older versions must go on working. It is noted.
func (c *Config) readFile(name string, read func(string) ([]byte, error)) (map[string]setting, error) {
	text, err := read(name)
	if err != nil {
		return nil, fmt.Errorf("--config-file=%s: %w; name a file that can be read", name, err)
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		return nil, fmt.Errorf("--config-file=%s: the file is not YAML: %w; correct it", name, err)
	}
	var tree any
	d := json.NewDecoder(strings.NewReader(string(asJSON)))
	d.UseNumber() // a float64 would round large numbers
	if err := d.Decode(&tree); err != nil {
		return nil, fmt.Errorf("--config-file=%s: the file is not YAML: %w; correct it", name, err)
	}
	if tree == nil {
		return map[string]setting{}, nil // an empty file
	}
	root, ok := tree.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("--config-file=%s: the file holds no settings; write one KEY: VALUE a line", name)
	}
	values := map[string]any{}
	flatten(values, "", root)
	given := map[string]setting{}
	for _, f := range slices.Concat(table, fileOnly) {
		key := f.fileKey()
		v, ok := values[key]
		delete(values, key)
		if !ok || v == nil || f.skipEmpty(v) {
			continue
		}
		where := key + " in " + name
		s, err := f.fileValue(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		if given[f.Name], err = f.setting(where, ": ", s); err != nil {
			return nil, err
		}
	}
	for _, key := range sortedKeys(values) {
		c.note(slog.LevelWarn, "key in the configuration file is not known and is ignored", "key", key, "path", name)
	}
	return given, nil
}

// fileKey is the flag's key, lower case; a key that cannot occur if it has none.
func (f Flag) fileKey() string {
	switch f.File {
	case "":
		return f.Name
	case "-":
		return noKey
	}
	return f.File
}

// noKey is what no key of a file can be.
const noKey = "\x00"

// skipEmpty says for which settings etcd takes an empty text in the file as none.
func (f Flag) skipEmpty(v any) bool {
	switch {
	case f.Kind == URLs, f.Kind == Gates, f.Name == "initial-cluster-state", f.Name == "log-outputs":
		list, isList := v.([]any)
		return v == "" || isList && len(list) == 0
	case f.Name == "self-signed-cert-validity":
		return v == json.Number("0")
	}
	return false
}

// fileValue brings a value of the file into the form of the command line. Durations are numbers of nanoseconds in etcd's
// files; text with a unit is taken too.
func (f Flag) fileValue(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case json.Number:
		if f.Kind == Duration {
			n, err := v.Int64()
			if err != nil {
				return "", fmt.Errorf("%s is not a whole number of nanoseconds; write it in digits, or as text such as 10m", v)
			}
			return time.Duration(n).String(), nil
		}
		return v.String(), nil
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			if _, nested := v[i].([]any); nested {
				return "", fmt.Errorf("a list within a list is not a value; write one list")
			}
			var err error
			if parts[i], err = f.fileValue(v[i]); err != nil {
				return "", err
			}
		}
		return strings.Join(parts, ","), nil
	default:
		return "", fmt.Errorf("a map is not a value; write KEY: VALUE")
	}
}

// flatten puts the leaves of a tree under keys with dots, in lower case, because etcd reads them in any case.
func flatten(to map[string]any, prefix string, tree map[string]any) {
	for k, v := range tree {
		key := prefix + strings.ToLower(k)
		if sub, ok := v.(map[string]any); ok {
			flatten(to, key+".", sub)
			continue
		}
		to[key] = v
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
