//go:build !unix

package rig

import "syscall"

// No system but Unix has these: Hang and Resume fail the test.
const (
	sigstop = syscall.Signal(-1)
	sigcont = syscall.Signal(-1)
)
