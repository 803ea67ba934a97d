//go:build !unix

package degrade

import "time"

// processCPU has no answer here: CPU rules are silent unless Options.CPU is set.
func processCPU() (busy time.Duration, cpus float64, ok bool) { return 0, 0, false }
