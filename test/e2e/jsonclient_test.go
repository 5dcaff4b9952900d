package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
)

// jsonClient is a client of the JSON gateway that knows all members, keeps its connections to them (HTTP/1 keep-alive), and asks
// one after the other. It makes each call once: only a member that takes no connection is passed over.
type jsonClient struct {
	urls []string
	http http.Client
	next int
}

func newJSONClient(c *cluster) *jsonClient {
	return &jsonClient{urls: c.endpoints(), http: http.Client{Transport: &http.Transport{TLSClientConfig: c.tls}}}
}

// post makes a call and decodes the answer.
func (j *jsonClient) post(ctx context.Context, path string, call map[string]any, answer any) error {
	body, err := json.Marshal(call)
	if err != nil {
		return err
	}
	for range j.urls {
		url := j.urls[j.next%len(j.urls)]
		j.next++
		// A body that net/http cannot send twice by itself: what is sent is sent once.
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+path, io.NopCloser(bytes.NewReader(body)))
		if err != nil {
			return err
		}
		request.ContentLength = int64(len(body))
		response, err := j.http.Do(request)
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			continue
		}
		if err != nil {
			return err
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s%s: %s: %s", url, path, response.Status, text)
		}
		return json.Unmarshal(text, answer)
	}
	return fmt.Errorf("no member takes a connection")
}

func (j *jsonClient) put(ctx context.Context, key, value string) error {
	var answer struct{ Header struct{ Revision string } }
	return j.post(ctx, "/v3/kv/put", map[string]any{"key": []byte(key), "value": []byte(value)}, &answer)
}

// number reads a key whose value is a number.
func (j *jsonClient) number(ctx context.Context, key string) (int64, error) {
	var answer struct{ KVs []struct{ Value string } }
	if err := j.post(ctx, "/v3/kv/range", map[string]any{"key": []byte(key)}, &answer); err != nil || len(answer.KVs) == 0 {
		return 0, err
	}
	value, err := base64.StdEncoding.DecodeString(answer.KVs[0].Value)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(value), 10, 64)
}
