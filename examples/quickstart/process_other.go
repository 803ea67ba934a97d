//go:build !linux

package main

import "syscall"

// dieWithParent has nothing to offer here: instances end when their standard input does.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
