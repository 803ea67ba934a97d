//go:build unix

package degrade

import (
	"runtime"
	"syscall"
	"time"
)

// processCPU is the CPU time of this process, against what the Go runtime may use, which knows the quota.
func processCPU() (busy time.Duration, cpus float64, ok bool) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), float64(runtime.GOMAXPROCS(0)), true
}
