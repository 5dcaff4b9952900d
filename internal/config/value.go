package config

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind is the form of a flag's value.
type Kind uint8

// The kinds. Numbers may be written in any base that Go's prefixes name (0x, 0o, 0b), as for etcd.
const (
	String Kind = iota
	Bool
	Int
	Int64
	Uint
	Uint32
	Uint64
	Millis   // a whole number of milliseconds, above zero
	Duration // 1h30m, 250ms
	URLs     // comma separated
	List     // comma separated
	Gates    // NAME=true,NAME=false
	Ignored  // takes any value or none
)

// String is the word for documents.
func (k Kind) String() string {
	return [...]string{
		"text", "true or false", "whole number", "whole number", "whole number from 0", "whole number from 0 (32 bits)",
		"whole number from 0", "milliseconds", "duration", "URLs", "list", "list of NAME=true or false", "anything",
	}[k]
}

// noValue reports whether the flag may stand without a value.
func (k Kind) noValue() bool { return k == Bool || k == Ignored }

// parse checks a value and returns it in the one form in which equal values are equal strings. The error says what is
// wrong and what to do, without naming the flag.
func (k Kind) parse(s string) (string, error) {
	switch k {
	case Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return "", fmt.Errorf("not a truth value; write true or false")
		}
		return strconv.FormatBool(b), nil
	case Int, Int64:
		n, err := strconv.ParseInt(s, 0, 64)
		if err != nil {
			return "", fmt.Errorf("not a whole number that fits in 64 bits; write it in digits, without a unit")
		}
		return strconv.FormatInt(n, 10), nil
	case Uint, Uint32, Uint64:
		bits := 64
		if k == Uint32 {
			bits = 32
		}
		n, err := strconv.ParseUint(s, 0, bits)
		if err != nil {
			return "", fmt.Errorf("not a whole number from 0 that fits in %d bits; write it in digits, without a sign or a unit", bits)
		}
		return strconv.FormatUint(n, 10), nil
	case Millis:
		n, err := strconv.ParseUint(s, 0, 32)
		if err != nil {
			return "", fmt.Errorf("not a whole number of milliseconds; write it in digits, without a unit")
		}
		return strconv.FormatUint(n, 10), nil
	case Duration:
		d, err := time.ParseDuration(s)
		if err != nil {
			return "", fmt.Errorf("not a duration; write it with a unit, such as 10m, 30s or 250ms")
		}
		return d.String(), nil
	case URLs:
		us, err := parseURLs(s)
		return strings.Join(Strings(us), ","), err
	case List:
		return strings.Join(unique(strings.Split(s, ",")), ","), nil
	default:
		return s, nil
	}
}

// store puts a value that parse returned to where the flag's binding points.
func store(to any, v string) {
	switch p := to.(type) {
	case *string:
		*p = v
	case *bool:
		*p = v == "true"
	case *int64:
		*p, _ = strconv.ParseInt(v, 10, 64)
	case *uint:
		n, _ := strconv.ParseUint(v, 10, 64)
		*p = uint(n)
	case *uint64:
		*p, _ = strconv.ParseUint(v, 10, 64)
	case *uint32:
		n, _ := strconv.ParseUint(v, 10, 32)
		*p = uint32(n)
	case *time.Duration: // of kind Duration or Millis, which the presence of a unit tells apart
		if ms, err := strconv.ParseUint(v, 10, 32); err == nil {
			*p = time.Duration(ms) * time.Millisecond
			return
		}
		*p, _ = time.ParseDuration(v)
	case *[]url.URL:
		*p, _ = parseURLs(v)
	case *[]string:
		*p = unique(strings.Split(v, ","))
	default:
		panic(fmt.Sprintf("config: a flag is bound to a %T", to))
	}
}

// parseURLs reads comma separated URLs; sorted, without duplicates. Empty text is no URL.
func parseURLs(s string) ([]url.URL, error) {
	if s == "" {
		return nil, nil
	}
	var us []url.URL
	for _, one := range strings.Split(s, ",") {
		u, err := parseURL(strings.TrimSpace(one))
		if err != nil {
			return nil, err
		}
		us = append(us, u)
	}
	slices.SortFunc(us, func(a, b url.URL) int { return strings.Compare(a.String(), b.String()) })
	return slices.CompactFunc(us, func(a, b url.URL) bool { return a.String() == b.String() }), nil
}

// parseURL reads one URL of a member: a scheme, a host and a port, and nothing else; or a unix socket's path, of which the
// first part may stand where the host is, as in etcd.
func parseURL(s string) (url.URL, error) {
	const form = "write it as http://HOST:PORT or https://HOST:PORT"
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || !strings.Contains(s, "://") && !Unix(*u) {
		return url.URL{}, fmt.Errorf("%q is not a URL; %s", s, form)
	}
	if u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return url.URL{}, fmt.Errorf("%q has more than a scheme and an address; %s", s, form)
	}
	switch u.Scheme {
	case "http", "https":
	case "unix", "unixs":
		if Address(*u) == "" {
			return url.URL{}, fmt.Errorf("%q has no path; write it as %s:///PATH", s, u.Scheme)
		}
		return *u, nil
	default:
		return url.URL{}, fmt.Errorf("%q has the scheme %s; %s", s, u.Scheme, form)
	}
	_, port, err := net.SplitHostPort(u.Host)
	if err != nil || port == "" {
		return url.URL{}, fmt.Errorf("%q has no port; %s", s, form)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return url.URL{}, fmt.Errorf("%q has the port %s; ports go from 0 to 65535", s, port)
	} else if strconv.FormatUint(n, 10) != port {
		return url.URL{}, fmt.Errorf("%q has the port %s; write it without leading zeros", s, port)
	}
	if u.Path != "" {
		return url.URL{}, fmt.Errorf("%q has more than a host and a port; %s", s, form)
	}
	return *u, nil
}

// unique returns the strings sorted and without duplicates, the order in which etcd keeps them.
func unique(s []string) []string {
	for i := range s {
		s[i] = strings.TrimSpace(s[i])
	}
	slices.Sort(s)
	return slices.Compact(s)
}

// parseInitialCluster reads NAME=URL,NAME=URL; sorted by name, each member's URLs sorted.
func parseInitialCluster(s string) ([]InitialMember, error) {
	urls := map[string][]string{}
	for _, pair := range strings.Split(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, one, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q names no member; write it as NAME=http://HOST:PORT", pair)
		}
		u, err := parseURL(strings.TrimSpace(one))
		if err != nil {
			return nil, fmt.Errorf("member %q: %w", name, err)
		}
		urls[name] = append(urls[name], u.String())
	}
	var members []InitialMember
	for name, us := range urls {
		slices.Sort(us)
		members = append(members, InitialMember{Name: name, PeerURLs: us})
	}
	slices.SortFunc(members, func(a, b InitialMember) int { return strings.Compare(a.Name, b.Name) })
	return members, nil
}
