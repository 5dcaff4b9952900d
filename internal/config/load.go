package config

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// ErrHelp and ErrVersion are what Load returns when the arguments ask for the help or the version.
var (
	ErrHelp    = errors.New("help was asked for")
	ErrVersion = errors.New("the version was asked for")
)

// setting is a flag's value and where it came from.
type setting struct {
	value   string // as Kind.parse returns it
	where   string // for people: --name, ETCD_NAME, name in conf.yml
	written string // the value as it was written, or that it is hidden
	shown   string // where and written
}

// Load makes the Config from the arguments (without the program's name), the environment (KEY=value) and, if one of them
// names a file, from that file alone, which readFile reads.
func Load(args, environ []string, readFile func(name string) ([]byte, error)) (*Config, error) {
	given, err := parseArgs(args)
	if err != nil {
		return nil, err
	}
	if given["version"].value == "true" {
		return nil, ErrVersion
	}
	env := environment(environ)
	file := given["config-file"].value
	if file == "" {
		file = env[envName("config-file")]
	}
	c := &Config{Given: map[string]string{}}
	if file != "" {
		c.note(slog.LevelInfo, "loaded the configuration file; flags and environment variables are ignored", "path", file)
		given, err = c.readFile(file, readFile)
	} else {
		err = c.addEnvironment(given, env)
	}
	if err != nil {
		return nil, err
	}
	c.take(given)
	if err := c.complete(given, file != ""); err != nil {
		return nil, err
	}
	return c, c.validate(given, file != "")
}

// find returns the flag with the given name.
func find(name string) (Flag, bool) {
	i := slices.IndexFunc(table, func(f Flag) bool { return f.Name == name })
	if i < 0 {
		return Flag{}, false
	}
	return table[i], true
}

// parseArgs reads flags as Go's flag package does: one dash or two, -flag=value or -flag value, and for those that need
// none, the flag alone. The last one wins.
func parseArgs(args []string) (map[string]setting, error) {
	given := map[string]setting{}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		name, isFlag := strings.CutPrefix(arg, "-")
		name = strings.TrimPrefix(name, "-")
		if !isFlag || name == "" {
			return nil, fmt.Errorf("%q is not a flag; flags begin with --, and trivet help server lists them", arg)
		}
		name, value, hasValue := strings.Cut(name, "=")
		if name == "h" || name == "help" {
			return nil, ErrHelp
		}
		f, ok := find(name)
		if !ok {
			return nil, unknownFlag(name)
		}
		switch {
		case hasValue:
		case f.Kind.noValue():
			value = "true"
		case len(args) > 0:
			value, args = args[0], args[1:]
		default:
			return nil, fmt.Errorf("--%s needs a value; write --%s=VALUE", name, name)
		}
		s, err := f.setting("--"+name, "=", value)
		if err != nil {
			return nil, err
		}
		given[name] = s
	}
	return given, nil
}

func (f Flag) setting(where, sep, value string) (setting, error) {
	s := setting{where: where, written: value}
	if f.secret {
		s.written = "(hidden)"
	}
	s.shown = where + sep + s.written
	v, err := f.Kind.parse(value)
	if err != nil {
		return s, fmt.Errorf("%s: %w", s.shown, err)
	}
	s.value = v
	return s, nil
}

// unknownFlag says what became of a flag that older versions of etcd had, or names the one that is spelled most alike.
func unknownFlag(name string) error {
	if advice := goneFlags[name]; advice != "" {
		return fmt.Errorf("--%s is not a flag any more, as in etcd 3.7; %s", name, advice)
	}
	if now, old := strings.CutPrefix(name, "experimental-"); old {
		if _, ok := find(now); ok {
			return fmt.Errorf("--%s is not a flag any more, as in etcd 3.7; its name is --%s now", name, now)
		}
	}
	best, distance := "", len(name)/2
	for _, f := range table {
		if d := editDistance(name, f.Name); f.Section != "" && d < distance {
			best, distance = f.Name, d
		}
	}
	if best != "" {
		return fmt.Errorf("--%s is not a flag; did you mean --%s?", name, best)
	}
	return fmt.Errorf("--%s is not a flag; trivet help server lists them", name)
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// envName is the variable of a flag: ETCD_DATA_DIR of data-dir.
func envName(flag string) string {
	return "ETCD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// environment picks etcd's variables. An empty one counts as unset, as in etcd.
func environment(environ []string) map[string]string {
	env := map[string]string{}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && v != "" && strings.HasPrefix(k, "ETCD_") {
			env[k] = v
		}
	}
	return env
}

// addEnvironment adds the variables of flags that were not given.
func (c *Config) addEnvironment(given map[string]setting, env map[string]string) error {
	for _, f := range table {
		key := envName(f.Name)
		value, ok := env[key]
		if !ok {
			continue
		}
		delete(env, key)
		if f.Name == "version" {
			c.note(slog.LevelWarn, "the version cannot be set; environment variable ignored", "variable-name", key)
			continue
		}
		if s, ok := given[f.Name]; ok {
			c.note(slog.LevelWarn, "the flag wins over the environment variable", "flag", s.where, "variable-name", key)
			continue
		}
		s, err := f.setting(key, "=", value)
		if err != nil {
			return err
		}
		given[f.Name] = s
		c.note(slog.LevelInfo, "recognized and used environment variable", "variable", s.shown)
	}
	for _, key := range sortedKeys(env) {
		c.note(slog.LevelWarn, "unrecognized environment variable", "variable-name", key)
	}
	return nil
}

// take stores what was given, over the defaults, and notes what has no meaning.
func (c *Config) take(given map[string]setting) {
	for _, f := range slices.Concat(table, fileOnly) {
		s, ok := given[f.Name]
		value := f.Default
		if ok {
			value = s.value
		}
		if f.bind != nil {
			store(f.bind(c), value)
		}
		if !ok || f.isDefault(value) {
			continue
		}
		if f.Support == Meaningless {
			c.note(slog.LevelWarn, "setting has no meaning here and is ignored", "setting", s.shown, "reason", f.Why)
		}
		c.Given[f.Name] = s.written
	}
}

// isDefault reports whether a parsed value is the default, or stands for the same.
func (f Flag) isDefault(v string) bool {
	if d, err := f.Kind.parse(f.Default); err == nil && v == d {
		return true
	}
	return v == "" && (f.Name == "cors" || f.Name == "host-whitelist")
}

func (c *Config) note(l slog.Level, msg string, args ...any) {
	c.Notes = append(c.Notes, Note{Level: l, Message: msg, Args: args})
}
