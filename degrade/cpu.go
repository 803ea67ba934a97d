package degrade

import (
	"bytes"
	"io"
	"io/fs"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const (
	cpuSpan  = 5 * time.Second // what the mean is over
	cpuLeast = time.Second     // before that it says little
	maxFile  = 1 << 16         // bytes read of a file of the kernel's
)

// A cpuMeter reads how much CPU time is used of what there is. It holds no file open, starts nothing, and
// is for one goroutine.
type cpuMeter struct {
	root    fs.FS
	samples []cpuSample // of the last cpuSpan, one source
}

type cpuSample struct {
	at     time.Duration
	source int
	busy   time.Duration // since whenever
	cpus   float64       // that could be busy
}

func newCPUMeter(root fs.FS) *cpuMeter { return &cpuMeter{root: root} }

// read returns the share that was used of the CPUs, 0 to 1, over the last cpuSpan. There is no reading in
// the first second, nor in the one after the source has changed.
func (m *cpuMeter) read(now time.Duration) (float64, bool) {
	next, ok := m.sample(now)
	if !ok {
		m.samples = m.samples[:0]
		return 0, false
	}
	if n := len(m.samples); n > 0 {
		switch last := m.samples[n-1]; {
		case last.at == now: // another rule has asked already
			m.samples = m.samples[:n-1]
		case last.source != next.source || last.busy > next.busy: // moved to another cgroup
			m.samples = m.samples[:0]
		}
	}
	m.samples = append(m.samples, next)
	old := 0
	for now-m.samples[old].at > cpuSpan {
		old++
	}
	m.samples = append(m.samples[:0], m.samples[old:]...)
	took := now - m.samples[0].at
	if took < cpuLeast {
		return 0, false
	}
	used := float64(next.busy-m.samples[0].busy) / float64(took) / next.cpus
	return min(max(used, 0), 1), true
}

// sample takes the first source that has an answer.
func (m *cpuMeter) sample(now time.Duration) (cpuSample, bool) {
	for i, source := range []func() (time.Duration, float64, bool){m.cgroup2, m.cgroup1, m.machine, processCPU} {
		if busy, cpus, ok := source(); ok && cpus > 0 {
			return cpuSample{at: now, source: i, busy: busy, cpus: cpus}, true
		}
	}
	return cpuSample{}, false
}

// cgroup2 is the nearest group of the process that has a quota, or the process's own.
// Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "CPU Interface Files".
func (m *cpuMeter) cgroup2() (busy time.Duration, cpus float64, ok bool) {
	const mount = "sys/fs/cgroup"
	cpus = float64(runtime.NumCPU())
	for group := m.group(""); ; group = path.Dir(group) {
		dir := path.Join(mount, group)
		if usec, has := m.field(path.Join(dir, "cpu.stat"), "usage_usec"); has {
			quota, limited := m.quota2(path.Join(dir, "cpu.max"))
			if limited {
				return time.Duration(usec) * time.Microsecond, min(quota, cpus), true
			}
			if !ok {
				busy, ok = time.Duration(usec)*time.Microsecond, true
			}
		}
		if group == "/" {
			return busy, cpus, ok
		}
	}
}

// quota2 reads "max 100000" or "150000 100000", microseconds in a period of so many.
func (m *cpuMeter) quota2(name string) (cpus float64, ok bool) {
	f := strings.Fields(m.file(name))
	if len(f) != 2 {
		return 0, false
	}
	quota, err := strconv.ParseInt(f[0], 10, 64)
	period, err2 := strconv.ParseInt(f[1], 10, 64)
	if err != nil || err2 != nil || quota <= 0 || period <= 0 {
		return 0, false
	}
	return float64(quota) / float64(period), true
}

// cgroup1 is the group of the process, or the mount's root, which is what a container sees.
// Source: Linux, Documentation/admin-guide/cgroup-v1/cpuacct.rst, and Documentation/scheduler/sched-bwc.rst.
func (m *cpuMeter) cgroup1() (busy time.Duration, cpus float64, ok bool) {
	nanos, ok := m.number1("cpuacct", "cpuacct.usage")
	if !ok {
		return 0, 0, false
	}
	cpus = float64(runtime.NumCPU())
	quota, ok := m.number1("cpu", "cpu.cfs_quota_us")
	period, ok2 := m.number1("cpu", "cpu.cfs_period_us")
	if ok && ok2 && quota > 0 && period > 0 {
		cpus = min(cpus, float64(quota)/float64(period))
	}
	return time.Duration(nanos), cpus, true
}

func (m *cpuMeter) number1(controller, file string) (int64, bool) {
	group := m.group(controller)
	for _, mount := range []string{controller, "cpu,cpuacct", "cpuacct,cpu"} {
		for _, dir := range []string{group, "/"} {
			text := m.file(path.Join("sys/fs/cgroup", mount, dir, file))
			if n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil {
				return n, true
			}
		}
	}
	return 0, false
}

// machine is all that the kernel has not spent idle. Source: proc_stat(5); a tick is 10 ms.
func (m *cpuMeter) machine() (busy time.Duration, cpus float64, ok bool) {
	line, _, _ := strings.Cut(m.file("proc/stat"), "\n")
	f := strings.Fields(line)
	if len(f) < 5 || f[0] != "cpu" {
		return 0, 0, false
	}
	const idle, iowait, guest = 4, 5, 9 // guest time is in user time already
	for i := 1; i < min(len(f), guest); i++ {
		ticks, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, 0, false
		}
		if i != idle && i != iowait {
			busy += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return busy, float64(runtime.NumCPU()), true
}

// group is the process's group for a controller of v1, or for v2 (""), as an absolute path. "/" if nobody
// knows.
func (m *cpuMeter) group(controller string) string {
	for line := range strings.Lines(m.file("proc/self/cgroup")) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || controller == "" && f[0] != "0" {
			continue
		}
		for name := range strings.SplitSeq(f[1], ",") {
			if name == controller {
				return path.Join("/", f[2]) // "/../x", from inside a namespace, is "/x"
			}
		}
	}
	return "/"
}

// field is the number after key in a file of lines "key number".
func (m *cpuMeter) field(name, key string) (int64, bool) {
	for line := range strings.Lines(m.file(name)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n, err == nil && n >= 0
		}
	}
	return 0, false
}

// file is the beginning of the file, or "".
func (m *cpuMeter) file(name string) string {
	f, err := m.root.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(f, maxFile)); err != nil {
		return ""
	}
	return b.String()
}
