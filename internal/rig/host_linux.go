package rig

import (
	"fmt"
	"os"
	"syscall"
)

// host is the loopback address of this process's servers, made of its id, so that test binaries that run
// at the same time do not take each other's ports: on Linux all of 127.0.0.0/8 is loopback. Ids have at
// most 22 bits.
var host = func() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 64|pid>>16&63, pid>>8&255, pid&255)
}()

// dieWithParent makes the kernel kill the child when we are gone, however that happened.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
