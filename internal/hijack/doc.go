// Package hijack tells a middleware whether a handler took the connection over.
package hijack
