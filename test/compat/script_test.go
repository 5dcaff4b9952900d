package compat

import (
	"bufio"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// op is one line of a script.
type op struct {
	verb   string        // "call", "watch", "close", "settle", "kill" or "start"
	member int           // who is asked, from 0
	method string        // of call: "KV.Range"
	stream string        // of watch and close: a name, alone in the script
	req    proto.Message // of call and watch
	user   string        // of call, and of the first watch on a stream: in whose name, by the token that Authenticate gave last
	json   bool          // of call, and of the first watch on a stream, which is a websocket then: over the JSON gateway
	body   bool          // of the only watch on a stream: over the JSON gateway, as the body of one HTTP call
	fails  bool          // of call: an error is wanted
	either bool          // of call: nothing is said about that
}

var memberWord = regexp.MustCompile(`^m[1-9]$`)

// parseOp reads one line:
//
//	m1 KV.Put key:"a" value:"1"            a call of the first member, with its request in the text form of protobuf
//	! m3 KV.Put value:"1"                  the same, and both must answer with an error
//	? m3 KV.Put value:"1"                  the same, and nothing is said about errors
//	m1 as alice KV.Put key:"a"             with the token that Auth.Authenticate gave to alice last; "nonsense" has a wrong one
//	m1 json KV.Put key:"a"                 over the JSON gateway
//	m2 json watch s create_request:{}      over a websocket of the gateway, if the stream is a new one
//	m2 body watch s create_request:{}      in the body of one HTTP call of the gateway; nothing more can be sent on the stream
//	m2 watch s create_request:{key:"a"}    sends on the watch stream s, which the first such line opens
//	close s                                ends the stream
//	kill m2                                kill -9 of the second member, of which the streams are closed before
//	start m2                               starts it again
//	settle                                 waits until every watcher has what it is to get, and compares
func parseOp(line string) (op, error) {
	o := op{}
	if rest, ok := strings.CutPrefix(line, "!"); ok {
		o.fails, line = true, strings.TrimSpace(rest)
	}
	if rest, ok := strings.CutPrefix(line, "?"); ok {
		o.either, line = true, strings.TrimSpace(rest)
	}
	word, rest, _ := strings.Cut(line, " ")
	switch {
	case word == "settle":
		o.verb = "settle"
		return o, nil
	case word == "close":
		o.verb, o.stream = "close", strings.TrimSpace(rest)
		return o, nil
	case (word == "kill" || word == "start") && memberWord.MatchString(rest):
		o.verb, o.member = word, int(rest[1]-'1')
		return o, nil
	case !memberWord.MatchString(word):
		return o, fmt.Errorf("%q: begins with none of m1, m2, m3, close, settle, kill, start", line)
	}
	o.member = int(word[1] - '1')
	word, rest, _ = strings.Cut(rest, " ")
	if word == "as" {
		o.user, rest, _ = strings.Cut(rest, " ")
		word, rest, _ = strings.Cut(rest, " ")
	}
	if o.json = word == "json"; o.json {
		word, rest, _ = strings.Cut(rest, " ")
		if word != "watch" && jsonPaths[word] == "" {
			return o, fmt.Errorf("%q: not a call that is made in JSON here", line)
		}
	}
	if o.body = word == "body"; o.body {
		if word, rest, _ = strings.Cut(rest, " "); word != "watch" {
			return o, fmt.Errorf("%q: only a watch can be the body of a call that goes on", line)
		}
	}
	if word == "watch" {
		o.verb, o.method = "watch", "Watch.Watch"
		o.stream, rest, _ = strings.Cut(rest, " ")
	} else {
		o.verb, o.method = "call", word
	}
	m, err := method(o.method)
	if err != nil {
		return o, err
	}
	o.req = newMessage(m.Input())
	if err := prototext.Unmarshal([]byte(rest), o.req); err != nil {
		return o, fmt.Errorf("%q: %w", line, err)
	}
	return o, nil
}

func (o op) String() string {
	switch o.verb {
	case "settle":
		return "settle"
	case "close":
		return "close " + o.stream
	case "kill", "start":
		return fmt.Sprintf("%s m%d", o.verb, o.member+1)
	}
	who := ""
	if o.user != "" {
		who = "as " + o.user + " "
	}
	switch {
	case o.json:
		who += "json "
	case o.body:
		who += "body "
	}
	s := fmt.Sprintf("m%d %s%s %s", o.member+1, who, o.method, oneLine(o.req))
	if o.verb == "watch" {
		s = fmt.Sprintf("m%d %swatch %s %s", o.member+1, who, o.stream, oneLine(o.req))
	}
	if o.fails {
		s = "! " + s
	}
	return strings.TrimSpace(s)
}

func parseScript(text string) ([]op, error) {
	var ops []op
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 8<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		o, err := parseOp(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		ops = append(ops, o)
	}
	return ops, lines.Err()
}

func formatScript(ops []op) string {
	var b strings.Builder
	for _, o := range ops {
		fmt.Fprintln(&b, o)
	}
	return b.String()
}

// method finds the description of a call by the name that scripts use, such as KV.Range.
func method(name string) (protoreflect.MethodDescriptor, error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("etcdserverpb." + name))
	if err != nil {
		return nil, fmt.Errorf("no call %q: %w", name, err)
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%q is not a call", name)
	}
	return m, nil
}

func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // the messages of the registered calls are registered
	}
	return t.New().Interface()
}

// oneLine is a message in the text form of protobuf, without the spaces that its printer varies on purpose.
func oneLine(m proto.Message) string {
	return strings.ReplaceAll(prototext.MarshalOptions{}.Format(m), "  ", " ")
}
