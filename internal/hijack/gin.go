package hijack

import (
	"bufio"
	"net"
	"net/http"

	"github.com/gin-gonic/gin"
)

// Watch is a gin.ResponseWriter that sees whether it was hijacked.
type Watch struct {
	gin.ResponseWriter
	Hijacked bool
}

// Hijack is http.Hijacker's.
func (w *Watch) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := w.ResponseWriter.Hijack()
	w.Hijacked = w.Hijacked || err == nil
	return conn, rw, err
}

// Unwrap is for http.ResponseController.
func (w *Watch) Unwrap() http.ResponseWriter { return w.ResponseWriter }
