package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// TestNothingSecretIsLogged does what involves passwords, tokens and values, right and wrong, with every call logged as slow
// and everything else at level debug, and then looks for them in what the members wrote, a restart with replay included.
func TestNothingSecretIsLogged(t *testing.T) {
	c := startCluster(t, 3, "--log-level=debug", "--warning-unary-request-duration=1ns", "--warning-apply-duration=1ns", "--bcrypt-cost=4")
	const rootPass, pass, wrong, next, value = "pass-of-root-7341", "pass-of-alice-7342", "wrong-pass-7343", "next-pass-7344", "value-7345"
	secrets := map[string]string{"root's password": rootPass, "a password": pass, "a wrong password": wrong, "a changed password": next, "a value": value}
	for name, secret := range secrets { // a value is base64 in JSON
		secrets[name+" in base64"] = strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret)), "=")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	do := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	client := c.client(c.members[0])
	for user, password := range map[string]string{"root": rootPass, "alice": pass} {
		_, err := client.UserAdd(ctx, user, password)
		do("add "+user, err)
	}
	_, err := client.UserGrantRole(ctx, "root", "root")
	do("grant root", err)
	_, err = client.AuthEnable(ctx)
	do("enable authentication", err)

	as := func(user, password string) (*clientv3.Client, error) {
		return clientv3.New(clientv3.Config{Endpoints: c.endpoints(), Username: user, Password: password, Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
	}
	if _, err := as("alice", wrong); err == nil {
		t.Fatal("a wrong password is taken")
	}
	root, err := as("root", rootPass)
	do("log in as root", err)
	defer root.Close()
	_, err = root.Put(ctx, "k", value)
	do("put", err)
	_, err = root.Txn(ctx).If(clientv3.Compare(clientv3.Value("k"), "=", value)).Then(clientv3.OpPut("k2", value, clientv3.WithPrevKV())).Commit()
	do("txn", err)
	_, err = root.UserChangePassword(ctx, "alice", next)
	do("change a password", err)
	got, err := pb.NewAuthClient(client.ActiveConnection()).Authenticate(ctx, &pb.AuthenticateRequest{Name: "alice", Password: next})
	do("authenticate", err)
	secrets["a token"], _, _ = strings.Cut(got.Token, ".") // behind the point is the index, which is in many lines

	post := func(path, token, body string) {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.members[1].clientURL+path, strings.NewReader(body))
		do("make a request", err)
		r.Header.Set("Authorization", token)
		answer, err := http.DefaultClient.Do(r)
		do("post "+path, err)
		io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
	}
	post("/v3/auth/authenticate", "", fmt.Sprintf(`{"name":"alice","password":%q}`, next))
	post("/v3/auth/authenticate", "", fmt.Sprintf(`{"name":"alice","password":%q}`, wrong))
	post("/v3/auth/authenticate", "", fmt.Sprintf(`{"name":"alice","password":%q`, next)) // cut off
	post("/v3/kv/put", got.Token, fmt.Sprintf(`{"key":"a2V5","value":%q}`, base64.StdEncoding.EncodeToString([]byte(value))))
	post("/v3/kv/put", got.Token+"x", `{"key":"a2V5","value":"&&`+value+`"}`)

	c.kill(c.members[2])
	c.start(c.members[2])
	for _, m := range c.members {
		m.p.stop(30 * time.Second)
	}
	hash, named := regexp.MustCompile(`\$2[aby]\$`), false
	for _, m := range c.members {
		lines := m.p.output()
		if len(lines) < 20 {
			t.Errorf("%s wrote %d lines only, with level debug", m.name, len(lines))
		}
		for _, line := range lines {
			named = named || strings.Contains(line, "alice")
			for name, secret := range secrets {
				if strings.Contains(line, secret) || hash.MatchString(line) {
					t.Errorf("%s logs %s: %s", m.name, name, line)
				}
			}
		}
	}
	if !named {
		t.Error("no line names the user who was refused: is anything logged at all?")
	}
}
