package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/kv"
)

type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func newTokens(t testing.TB, o Options) *Tokens {
	t.Helper()
	tokens, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// A simple token lives for its TTL after it was last used, and not longer.
func TestSimple(t *testing.T) {
	c := &clock{time.Unix(1e9, 0)}
	tokens := newTokens(t, Options{Spec: "simple", TTL: 10 * time.Second, Now: c.now})
	alice := auth.Who{User: "alice", Revision: 7}
	tokens.Made("a.1", alice)
	tokens.Made("b.1", auth.Who{User: "bob"})
	for range 5 {
		c.Time = c.Add(9 * time.Second)
		if who, ok := tokens.Find("a.1"); !ok || who != alice {
			t.Fatalf("%+v, %v", who, ok)
		}
	}
	if _, ok := tokens.Find("b.1"); ok {
		t.Error("a token that nobody used lives for ever")
	}
	c.Time = c.Add(11 * time.Second)
	if _, ok := tokens.Find("a.1"); ok {
		t.Error("it is over")
	}
	tokens.Made("c.1", alice)
	tokens.Forget("c.1")
	if _, ok := tokens.Find("c.1"); ok || tokens.Len() != 0 {
		t.Error("a forgotten token is known")
	}
	if _, ok := tokens.Find(""); ok {
		t.Error("nothing is a token")
	}
}

// However many tokens are made, a bounded number is remembered, and those whose time is over go first.
func TestBound(t *testing.T) {
	c := &clock{time.Unix(1e9, 0)}
	tokens := newTokens(t, Options{Spec: "simple", TTL: time.Minute, Now: c.now, MaxSimple: 100})
	for i := range 90 {
		tokens.Made(fmt.Sprint("old.", i), auth.Who{})
	}
	c.Time = c.Add(2 * time.Minute)
	for i := range 1000 {
		tokens.Made(fmt.Sprint("new.", i), auth.Who{})
		if n := tokens.Len(); n > 100 {
			t.Fatalf("%d tokens", n)
		}
		if _, ok := tokens.Find(fmt.Sprint("new.", i)); !ok {
			t.Fatal("the newest is not known")
		}
		if i == 50 {
			for j := range 50 {
				if _, ok := tokens.Find(fmt.Sprint("new.", j)); !ok {
					t.Fatalf("token %d went before an old one", j)
				}
			}
		}
	}
}

func TestNonce(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		n := Nonce()
		if len(n) != 16 || strings.Trim(n, letters) != "" || seen[n] {
			t.Fatal(n)
		}
		seen[n] = true
	}
}

func TestIndex(t *testing.T) {
	for text, want := range map[string]int64{
		"abc.12": 12, "abc.": -1, ".12": -1, "abc": -1, "": -1, "abc.-1": -1, "abc.99999999999999999999999": -1, "a.b.1": -1,
	} {
		if n, ok := Index(text); ok != (want >= 0) || ok && n != uint64(want) {
			t.Errorf("%q: %d, %v", text, n, ok)
		}
	}
}

// keys makes files with a pair of keys for a method.
func keys(t testing.TB, dir, method string) (private, public string) {
	t.Helper()
	var key crypto.Signer
	var err error
	switch method[:2] {
	case "HS":
		path := filepath.Join(dir, method+"-secret")
		if err := os.WriteFile(path, []byte("secret of "+method), 0o600); err != nil {
			t.Fatal(err)
		}
		return path, ""
	case "RS", "PS":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ES":
		key, err = ecdsa.GenerateKey(map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()}[method], rand.Reader)
	default:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, method+name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	private = write(".key", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(key.Public())
	return private, write(".pub", "PUBLIC KEY", der, err)
}

// Every method: a token is right for who has the key or its public half, until its time is over; a changed one is not, nor
// one of another key or another method.
func TestSigned(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	c := &clock{time.Unix(2e9, 0)}
	who := auth.Who{User: "alice", Revision: 7}
	var last string
	for _, method := range methods() {
		private, public := keys(t, dir, method)
		tokens := newTokens(t, Options{Spec: fmt.Sprintf("jwt,priv-key=%s,pub-key=%s,sign-method=%s,ttl=1m", private, public, method), Now: c.now})
		token, err := tokens.Sign(who)
		if err != nil {
			t.Fatal(method, err)
		}
		check := func(what string, v *Tokens, token string, want bool) {
			t.Helper()
			if got, ok := v.Verify(token); ok != want || ok && got != who {
				t.Errorf("%s, %s: %+v, %v", method, what, got, ok)
			}
		}
		check("own", tokens, token, true)
		check("of another method", tokens, last, false)
		last = token
		for i := range 50 {
			b := []byte(token)
			at := i * len(b) / 50
			b[at] ^= 0x15
			check(fmt.Sprint("changed at ", at), tokens, string(b), false)
		}
		foreign, _ := keys(t, other, method)
		if method[:2] == "HS" {
			if err := os.WriteFile(foreign, []byte("another"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		theirs, err := newTokens(t, Options{Spec: fmt.Sprintf("jwt,priv-key=%s,sign-method=%s", foreign, method), Now: c.now}).Sign(who)
		if err != nil {
			t.Fatal(err)
		}
		check("of another key", tokens, theirs, false)
		if public != "" {
			verifier := newTokens(t, Options{Spec: fmt.Sprintf("jwt,pub-key=%s,sign-method=%s", public, method), Now: c.now})
			check("public half", verifier, token, true)
			if _, err := verifier.Sign(who); !errors.Is(err, ErrVerifyOnly) {
				t.Errorf("%s: signing with a public key: %v", method, err)
			}
			if _, err := New(Options{Spec: fmt.Sprintf("jwt,priv-key=%s,pub-key=%s,sign-method=%s", foreign, public, method)}); err == nil {
				t.Errorf("%s: two keys that do not belong together are taken", method)
			}
		}
		c.Time = c.Add(2 * time.Minute)
		check("too old", tokens, token, false)
		c.Time = c.Add(-2 * time.Minute)
	}
}

// What is signed rightly and says too little or nonsense is no token, nor one that is not signed, whatever it says.
func TestClaims(t *testing.T) {
	private, _ := keys(t, t.TempDir(), "HS256")
	tokens := newTokens(t, Options{Spec: "jwt,sign-method=HS256,priv-key=" + private})
	end := time.Now().Add(time.Hour).Unix()
	for _, c := range []struct {
		claims jwt.MapClaims
		want   bool
	}{
		{jwt.MapClaims{"username": "a", "revision": 3, "exp": end}, true},
		{jwt.MapClaims{"username": "a", "revision": 3}, true}, // for ever: whoever signs it decides, as in etcd
		{jwt.MapClaims{"username": "a", "revision": 3, "exp": time.Now().Add(-time.Hour).Unix()}, false},
		{jwt.MapClaims{"username": "a", "revision": 3, "nbf": end}, false},
		{jwt.MapClaims{"username": "a", "exp": end}, false},
		{jwt.MapClaims{"revision": 3, "exp": end}, false},
		{jwt.MapClaims{"username": 3, "revision": 3, "exp": end}, false},
		{jwt.MapClaims{"username": "a", "revision": "3", "exp": end}, false},
		{jwt.MapClaims{"username": "a", "revision": -3, "exp": end}, false},
		{jwt.MapClaims{"username": "a", "revision": 1e300, "exp": end}, false},
	} {
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c.claims).SignedString([]byte("secret of HS256"))
		if err != nil {
			t.Fatal(err)
		}
		if who, ok := tokens.Verify(token); ok != c.want {
			t.Errorf("%v: %+v, %v", c.claims, who, ok)
		}
	}
	unsigned, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{"username": "root", "revision": 3}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := tokens.Verify(unsigned); ok {
		t.Error("an unsigned token is taken")
	}
}

// A public key is no secret: a token signed with it by HMAC must not pass.
func TestNoConfusionOfMethods(t *testing.T) {
	private, public := keys(t, t.TempDir(), "RS256")
	tokens := newTokens(t, Options{Spec: fmt.Sprintf("jwt,priv-key=%s,pub-key=%s,sign-method=RS256", private, public)})
	b, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"username": "root", "revision": 3}).SignedString(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := tokens.Verify(forged); ok {
		t.Error("taken")
	}
}

// What is wrong in --auth-token is said, and what the files hold is not.
func TestBadSpecs(t *testing.T) {
	dir := t.TempDir()
	rsaKey, rsaPub := keys(t, dir, "RS256")
	secret, _ := keys(t, dir, "HS256")
	for spec, want := range map[string]string{
		"wrong":                    `kind of tokens "wrong" is not known`,
		"jwt":                      "sign-method",
		"jwt,sign-method=none":     "sign-method",
		"jwt,sign-method=XX1":      "sign-method",
		"jwt,sign-method":          "NAME=VALUE",
		"jwt,a=b=c":                "NAME=VALUE",
		"jwt,ttl=1m,ttl=1m":        "NAME=VALUE",
		"jwt,sign-method=HS256":    "priv-key must name",
		"jwt,sign-method=RS256":    "give priv-key",
		"jwt,sign-method=ES256":    "give priv-key",
		"jwt,sign-method=EdDSA":    "give priv-key",
		"jwt,sign-method=HS256,x=": `no option "x"`,
		"jwt,sign-method=HS256,ttl=x,priv-key=" + secret:    "no duration",
		"jwt,sign-method=HS256,priv-key=" + dir + "/nosuch": "read priv-key",
		"jwt,sign-method=RS256,priv-key=" + secret:          "priv-key holds no key",
		"jwt,sign-method=ES256,priv-key=" + rsaKey:          "priv-key holds no key",
		"jwt,sign-method=EdDSA,pub-key=" + rsaPub:           "pub-key holds no key",
	} {
		_, err := New(Options{Spec: spec})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", spec, err)
		} else if strings.Contains(err.Error(), "secret of") {
			t.Errorf("%s: %v tells a secret", spec, err)
		}
	}
	if none := newTokens(t, Options{}); none.Kind() != None {
		t.Error("no tokens at all can be asked for")
	}
}

// Passwords that are hashed compare, others do not; nobody's password fails too. Who waits too long gives up.
func TestPasswords(t *testing.T) {
	p := NewPasswords(4)
	ctx := t.Context()
	h, err := p.Hash(ctx, "pw")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Compare(ctx, h, "pw"); err != nil {
		t.Error(err)
	}
	for _, hash := range [][]byte{h, nil, []byte("no hash")} {
		if err := p.Compare(ctx, hash, "PW"); !errors.Is(err, kv.ErrAuthFailed) {
			t.Errorf("%q: %v", hash, err)
		}
	}
	if _, err := p.Hash(ctx, strings.Repeat("x", 73)); err == nil {
		t.Error("bcrypt forgets what is behind 72 bytes")
	}
	for range cap(p.places) {
		p.places <- struct{}{}
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.Compare(gone, h, "pw"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	p.waiting.Store(maxWaiting)
	if _, err := p.Hash(ctx, "pw"); !errors.Is(err, kv.ErrTooManyRequests) {
		t.Error(err)
	}
	if p.waiting.Load() != maxWaiting {
		t.Error("the count of those who wait is lost")
	}
	if NewPasswords(99).cost != 10 || NewPasswords(0).cost != 10 {
		t.Error("costs that bcrypt does not have are etcd's default")
	}
}

// Nothing that a client sends as a token makes Verify or Index panic, and no garbage passes.
func FuzzTokens(f *testing.F) {
	private, _ := keys(f, f.TempDir(), "HS256")
	c := &clock{time.Unix(2e9, 0)} // so that every process makes the same token
	signed, err := New(Options{Spec: "jwt,sign-method=HS256,priv-key=" + private, Now: c.now})
	if err != nil {
		f.Fatal(err)
	}
	rsaKey, _ := keys(f, f.TempDir(), "RS256")
	asymmetric, err := New(Options{Spec: "jwt,sign-method=RS256,priv-key=" + rsaKey})
	if err != nil {
		f.Fatal(err)
	}
	simple, err := New(Options{Spec: "simple"})
	if err != nil {
		f.Fatal(err)
	}
	good, err := signed.Sign(auth.Who{User: "a", Revision: 1})
	if err != nil {
		f.Fatal(err)
	}
	simple.Made("abcdefghijklmnop.7", auth.Who{User: "a", Revision: 1})
	f.Add(good)
	f.Add("abcdefghijklmnop.7")
	f.Add("a.b.c")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"username":"root","revision":1}`)) + ".")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":["HS256"]}`)) + ".e30.")
	f.Fuzz(func(t *testing.T, token string) {
		if _, ok := asymmetric.Verify(token); ok {
			t.Fatalf("%q passes", token)
		}
		if who, ok := signed.Verify(token); ok && !strings.HasPrefix(token, good[:len(good)-1]) { // of the last letter not all bits count
			t.Fatalf("%q passes as %+v", token, who)
		}
		if _, ok := simple.Find(token); ok != (token == "abcdefghijklmnop.7") {
			t.Fatalf("%q: %v", token, ok)
		}
		Index(token)
	})
}
