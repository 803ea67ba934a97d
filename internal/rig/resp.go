package rig

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// command sends one command to a Redis server and returns the reply: the text, or for an array its
// elements one a line. It is no client, just enough to set servers up and to see that they answer.
func command(addr string, args ...string) (string, error) {
	return commandWithin(time.Second, addr, args...)
}

// commandWithin is for one that is not repeated: a server may wait for a busy disk.
func commandWithin(d time.Duration, addr string, args ...string) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, d) //nolint:noctx // it has a timeout
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(d))

	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return "", err
	}
	reply, err := readReply(bufio.NewReader(conn))
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return reply, nil
}

// readReply reads a value of the protocol RESP2.
func readReply(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimSpace(line[1:])
	if kind == '-' {
		return "", errors.New(rest)
	}
	if kind != '$' && kind != '*' {
		return rest, nil // a simple string, or a number
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 {
		return "", err // -1 is nil
	}
	if kind == '$' {
		text := make([]byte, n+len("\r\n"))
		_, err := io.ReadFull(r, text)
		return string(text[:n]), err
	}
	elements := make([]string, n)
	for i := range elements {
		if elements[i], err = readReply(r); err != nil {
			return "", err
		}
	}
	return strings.Join(elements, "\n"), nil
}
