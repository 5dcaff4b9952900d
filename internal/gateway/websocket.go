package gateway

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// closeTimeout bounds the sending of the frame that ends a websocket.
const closeTimeout = time.Second

// upgrader accepts any origin, as etcd does: which origins a browser may use is --cors's matter.
var upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}

// websockets lets the streams of the JSON gateway be called over a websocket, as etcd's gateway does: what the client sends in
// messages is the body of one POST, each with a line's end behind it, and each line of the answer is a message.
func (s *Server) websockets(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if websocket.IsWebSocketUpgrade(r) {
			s.websocket(w, r, h)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func (s *Server) websocket(w http.ResponseWriter, r *http.Request, h http.Handler) {
	s.sockets.Add(1)
	defer s.sockets.Add(-1)
	answer := http.Header{}
	if strings.HasPrefix(r.Header.Get("Sec-WebSocket-Protocol"), "Bearer") {
		answer.Set("Sec-WebSocket-Protocol", "Bearer")
	}
	conn, err := upgrader.Upgrade(w, r, answer)
	if err != nil {
		return // the client has been told
	}
	// The connection is no longer the http server's, so its end and ours must end the call.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() })

	body, send := io.Pipe()
	read := make(chan struct{})
	go func() { // ends with the connection
		defer close(read)
		defer cancel()
		defer send.Close()
		readMessages(conn, send)
	}()
	out := &messageWriter{conn: conn, header: http.Header{}}
	h.ServeHTTP(out, socketRequest(ctx, r, body))
	out.end()
	unhook()
	_ = body.Close()
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(closeTimeout))
	_ = conn.Close()
	<-read
}

// readMessages passes messages on as they come, without holding one, until the connection or its reader ends.
func readMessages(conn *websocket.Conn, to io.Writer) {
	for {
		_, m, err := conn.NextReader()
		if err != nil {
			return
		}
		if _, err := io.Copy(to, m); err != nil {
			return
		}
		if _, err := to.Write([]byte("\n")); err != nil {
			return
		}
	}
}

// socketRequest is the call that a websocket makes. A browser cannot set headers on one: its token comes as a second
// subprotocol behind Bearer, or as a cookie.
func socketRequest(ctx context.Context, r *http.Request, body io.Reader) *http.Request {
	out := r.Clone(ctx)
	out.Method, out.Body, out.ContentLength = http.MethodPost, io.NopCloser(body), -1
	for name := range out.Header {
		if name == "Connection" || name == "Upgrade" || strings.HasPrefix(name, "Sec-Websocket-") {
			out.Header.Del(name)
		}
	}
	if _, token, ok := strings.Cut(r.Header.Get("Sec-WebSocket-Protocol"), "Bearer,"); ok {
		out.Header.Set("Authorization", "Bearer "+strings.TrimSpace(token))
	}
	if c, err := r.Cookie("token"); err == nil {
		out.Header.Set("Authorization", "Bearer "+c.Value)
	}
	return out
}

// messageWriter sends each line of an answer as a message. It holds one line at most.
type messageWriter struct {
	conn   *websocket.Conn
	header http.Header
	line   bytes.Buffer
}

func (w *messageWriter) Header() http.Header { return w.header }

// WriteHeader has nowhere to go: the answer's own text says what its status would.
func (w *messageWriter) WriteHeader(int) {}

// Flush is what streams ask for after each line; lines are sent in any case.
func (w *messageWriter) Flush() {}

func (w *messageWriter) Write(p []byte) (int, error) {
	n := len(p)
	for {
		line, rest, ok := bytes.Cut(p, []byte("\n"))
		w.line.Write(line)
		if !ok {
			return n, nil
		}
		if err := w.send(); err != nil {
			return 0, err
		}
		p = rest
	}
}

func (w *messageWriter) send() error {
	if w.line.Len() == 0 {
		return nil
	}
	defer w.line.Reset()
	return w.conn.WriteMessage(websocket.TextMessage, w.line.Bytes())
}

// end sends what came without a line's end.
func (w *messageWriter) end() { _ = w.send() }
