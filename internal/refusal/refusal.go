// Package refusal is how a Highball middleware says no: one marked, machine-readable answer that
// tells the client when to come back, and that every other engine takes as neutral.
package refusal

import (
	"strconv"
	"time"
)

// StatusClientClosedRequest is nginx's status for the log when the client went away before the answer.
const StatusClientClosedRequest = 499

// RetryAfter renders d as the delay-seconds of RFC 9110 section 10.2.3: whole seconds, rounded up, at
// least 1.
func RetryAfter(d time.Duration) string {
	if d <= time.Second {
		return "1"
	}
	s := d / time.Second
	if d%time.Second != 0 {
		s++
	}
	return strconv.FormatInt(int64(s), 10)
}
