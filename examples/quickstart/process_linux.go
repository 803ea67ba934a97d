package main

import "syscall"

// dieWithParent kills an instance, also one that is stopped, when the quickstart itself is killed.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
