//go:build !linux

package rig

import "syscall"

// host is where servers listen.
const host = "127.0.0.1"

// dieWithParent does nothing: only Linux knows a signal for the death of a parent.
func dieWithParent() *syscall.SysProcAttr { return nil }
