// Command flags tells what etcd's server can be set to, so that a test can hold Trivet's list against it. Without arguments
// it prints a line for each flag, "flag NAME DEFAULT", and for each key of the configuration file that can be seen from
// outside of etcd's package, "key NAME", and for each feature gate, "gate NAME"; defaults are quoted as Go does. With arguments, which are configuration files, it
// prints for each whether etcd takes anything from it: "set" or "nothing", or the error.
package main

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/pkg/v3/featuregate"
	"go.etcd.io/etcd/server/v3/embed"
)

func main() {
	if len(os.Args) == 1 {
		fs := flag.NewFlagSet("etcd", flag.ContinueOnError)
		c := embed.NewConfig()
		c.AddFlags(fs)
		fs.VisitAll(func(f *flag.Flag) { fmt.Printf("flag %s %q\n", f.Name, f.DefValue) })
		keys("", reflect.TypeFor[embed.Config]())
		for name := range c.ServerFeatureGate.(featuregate.MutableFeatureGate).GetAll() {
			fmt.Printf("gate %s\n", name)
		}
		return
	}
	empty := read(os.DevNull)
	for _, name := range os.Args[1:] {
		switch got := read(name); {
		case got.err != nil:
			fmt.Printf("error: %q\n", got.err.Error())
		case reflect.DeepEqual(got.config, empty.config):
			fmt.Println("nothing")
		default:
			fmt.Println("set")
		}
	}
}

// keys prints the names that the fields of a struct have in a file, with dots between the levels.
func keys(prefix string, t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" || name == "" && !f.Anonymous {
			continue
		}
		inner := f.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		switch {
		case inner.Kind() == reflect.Struct && name == "":
			keys(prefix, inner)
		case inner.Kind() == reflect.Struct:
			keys(prefix+name+".", inner)
		default:
			fmt.Printf("key %s\n", prefix+name)
		}
	}
}

// tlsInfo shows all of its fields, which its own String does not.
type tlsInfo transport.TLSInfo

type outcome struct {
	config map[string]string
	err    error
}

// read is what etcd makes of a file: every field that can be seen, as text.
func read(name string) outcome {
	c, err := embed.ConfigFromFile(name)
	if err != nil {
		return outcome{err: err}
	}
	fields := map[string]string{}
	v := reflect.ValueOf(*c)
	for i := range v.NumField() {
		f := v.Type().Field(i)
		switch {
		case !f.IsExported(), f.Name == "FlagsExplicitlySet", f.Name == "ZapLoggerBuilder", f.Type.Kind() == reflect.Func:
			// says what the file has, or is new each time
		case f.Name == "DiscoveryCfg":
			d := c.DiscoveryCfg
			d.Secure, d.Auth = nil, nil // which would show as addresses
			fields[f.Name] = fmt.Sprintf("%+v %+v %+v", d, c.DiscoveryCfg.Secure, c.DiscoveryCfg.Auth)
		case f.Type == reflect.TypeFor[transport.TLSInfo]():
			t := v.Field(i).Interface().(transport.TLSInfo)
			t.Logger = nil
			fields[f.Name] = fmt.Sprintf("%+v", tlsInfo(t))
		default:
			fields[f.Name] = fmt.Sprintf("%+v", v.Field(i).Interface())
		}
	}
	return outcome{config: fields}
}
