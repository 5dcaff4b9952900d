package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/trivet-kv/trivet/internal/auth"
)

// jwtKey makes and checks JSON web tokens of one method with one key.
type jwtKey struct {
	method  jwt.SigningMethod
	private any // nil: tokens can be checked only
	public  any // of a method with one key, the same
	ttl     time.Duration
}

// The claims are etcd's.
const (
	claimUser     = "username"
	claimRevision = "revision"
	claimEnd      = "exp"
)

// newJWT reads the options priv-key, pub-key (paths of PEM files; priv-key of a plain one for HS methods), sign-method and
// ttl.
func newJWT(options map[string]string) (*jwtKey, error) {
	known := []string{"priv-key", "pub-key", "sign-method", "ttl"}
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("jwt has no option %q; it has %s", name, strings.Join(known, ", "))
		}
	}
	k := &jwtKey{ttl: DefaultTTL, method: jwt.GetSigningMethod(options["sign-method"])}
	if k.method == nil || k.method.Alg() == "none" {
		return nil, fmt.Errorf("jwt: sign-method=%q: give one of %s", options["sign-method"], strings.Join(methods(), ", "))
	}
	var err error
	if text := options["ttl"]; text != "" {
		if k.ttl, err = time.ParseDuration(text); err != nil {
			return nil, fmt.Errorf("jwt: ttl=%s is no duration such as 10m", text)
		}
	}
	private, err := readKey(options, "priv-key")
	if err != nil {
		return nil, err
	}
	public, err := readKey(options, "pub-key")
	if err != nil {
		return nil, err
	}
	if err := k.load(private, public); err != nil {
		return nil, fmt.Errorf("jwt with sign-method=%s: %w", k.method.Alg(), err)
	}
	return k, nil
}

func methods() []string {
	all := slices.DeleteFunc(jwt.GetAlgorithms(), func(a string) bool { return a == "none" })
	slices.Sort(all)
	return all
}

func readKey(options map[string]string, name string) ([]byte, error) {
	path := options[name]
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("jwt: read %s: %w", name, err)
	}
	return b, nil
}

// load takes the keys from what their files hold.
func (k *jwtKey) load(private, public []byte) error {
	switch k.method.(type) {
	case *jwt.SigningMethodHMAC:
		if len(private) == 0 {
			return errors.New("priv-key must name a file with the secret; it is missing or empty")
		}
		k.private, k.public = private, private
		return nil
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		return loadPair(k, private, public, jwt.ParseRSAPrivateKeyFromPEM, jwt.ParseRSAPublicKeyFromPEM,
			func(p *rsa.PrivateKey) *rsa.PublicKey { return &p.PublicKey })
	case *jwt.SigningMethodECDSA:
		return loadPair(k, private, public, jwt.ParseECPrivateKeyFromPEM, jwt.ParseECPublicKeyFromPEM,
			func(p *ecdsa.PrivateKey) *ecdsa.PublicKey { return &p.PublicKey })
	case *jwt.SigningMethodEd25519:
		return loadPair(k, private, public, ed25519Private, ed25519Public,
			func(p ed25519.PrivateKey) ed25519.PublicKey { return p.Public().(ed25519.PublicKey) })
	}
	return errors.New("the method is not supported")
}

func ed25519Private(pem []byte) (ed25519.PrivateKey, error) {
	k, err := jwt.ParseEdPrivateKeyFromPEM(pem)
	if err != nil {
		return nil, err
	}
	return k.(ed25519.PrivateKey), nil
}

func ed25519Public(pem []byte) (ed25519.PublicKey, error) {
	k, err := jwt.ParseEdPublicKeyFromPEM(pem)
	if err != nil {
		return nil, err
	}
	return k.(ed25519.PublicKey), nil
}

// loadPair takes a private key, a public one, or both, which must belong together.
func loadPair[Private any, Public interface{ Equal(crypto.PublicKey) bool }](
	k *jwtKey, private, public []byte,
	parsePrivate func([]byte) (Private, error), parsePublic func([]byte) (Public, error), of func(Private) Public,
) error {
	if len(private) == 0 && len(public) == 0 {
		return errors.New("give priv-key to make and check tokens, or pub-key to check them only")
	}
	if len(public) > 0 {
		p, err := parsePublic(public)
		if err != nil {
			return fmt.Errorf("pub-key holds no key of this method: %w", err)
		}
		k.public = p
	}
	if len(private) > 0 {
		p, err := parsePrivate(private)
		if err != nil {
			return fmt.Errorf("priv-key holds no key of this method: %w", err)
		}
		if given, ok := k.public.(Public); ok && !given.Equal(of(p)) {
			return errors.New("priv-key and pub-key do not belong together")
		}
		k.private, k.public = p, of(p)
	}
	return nil
}

func (k *jwtKey) sign(who auth.Who, now time.Time) (string, error) {
	if k.private == nil {
		return "", ErrVerifyOnly
	}
	return jwt.NewWithClaims(k.method, jwt.MapClaims{
		claimUser: who.User, claimRevision: who.Revision, claimEnd: now.Add(k.ttl).Unix(),
	}).SignedString(k.private)
}

func (k *jwtKey) verify(token string, now func() time.Time) (auth.Who, bool) {
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(token, claims, func(*jwt.Token) (any, error) { return k.public, nil },
		jwt.WithValidMethods([]string{k.method.Alg()}), jwt.WithTimeFunc(now))
	if err != nil {
		return auth.Who{}, false
	}
	user, ok := claims[claimUser].(string)
	revision, isNumber := claims[claimRevision].(float64)
	if !ok || !isNumber || revision < 0 || revision > math.MaxInt64 {
		return auth.Who{}, false
	}
	return auth.Who{User: user, Revision: uint64(revision)}, true
}
