package degrade

import (
	"math"
	"runtime"
	"strconv"
	"testing"
	"testing/fstest"
	"time"
)

type files map[string]string

func (f files) fs() fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range f {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

func ms(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

func TestCPUIsReadFromWhereTheProcessRuns(t *testing.T) {
	all := float64(runtime.NumCPU())
	const v2, v1 = "sys/fs/cgroup/", "sys/fs/cgroup/cpu,cpuacct/"
	for name, tc := range map[string]struct {
		files files // with usage at zero
		usage string
		text  func(used time.Duration) string // of the file usage
		cpus  float64
	}{
		"v2 with a quota": {
			files{"proc/self/cgroup": "0::/\n", v2 + "cpu.max": "50000 100000\n"},
			v2 + "cpu.stat", func(d time.Duration) string { return "usage_usec " + ms(d) + "000\nuser_usec 7\n" }, 0.5,
		},
		"v2 without": {
			files{"proc/self/cgroup": "0::/\n", v2 + "cpu.max": "max 100000\n"},
			v2 + "cpu.stat", func(d time.Duration) string { return "usage_usec " + ms(d) + "000\n" }, all,
		},
		"v2, the parent's quota": {
			files{"proc/self/cgroup": "1:name=systemd:/x\n0::/pod/main\n", v2 + "pod/cpu.max": "25000 100000", v2 + "pod/main/cpu.stat": "usage_usec 1\n"},
			v2 + "pod/cpu.stat", func(d time.Duration) string { return "usage_usec " + ms(d) + "000\n" }, 0.25,
		},
		"v2, a path of the host's": {
			files{"proc/self/cgroup": "0::/../../kubepods/1\n", v2 + "cpu.max": "100000 100000"},
			v2 + "cpu.stat", func(d time.Duration) string { return "usage_usec " + ms(d) + "000\n" }, 1,
		},
		"v2, more quota than CPUs": {
			files{v2 + "cpu.max": "99900000 100000"},
			v2 + "cpu.stat", func(d time.Duration) string { return "usage_usec " + ms(d) + "000\n" }, all,
		},
		"v1 with a quota": {
			files{"proc/self/cgroup": "4:cpu,cpuacct:/app\n", v1 + "app/cpu.cfs_quota_us": "50000\n", v1 + "app/cpu.cfs_period_us": "100000\n"},
			v1 + "app/cpuacct.usage", func(d time.Duration) string { return ms(d) + "000000\n" }, 0.5,
		},
		"v1 without, at the root": {
			files{"proc/self/cgroup": "4:cpu,cpuacct:/docker/1\n", v1 + "cpu.cfs_quota_us": "-1\n", v1 + "cpu.cfs_period_us": "100000\n"},
			v1 + "cpuacct.usage", func(d time.Duration) string { return ms(d) + "000000\n" }, all,
		},
		"the machine": {
			files{},
			"proc/stat", func(d time.Duration) string {
				return "cpu  " + ms(d/10) + " 0 0 99999 5 0 0 0 123 0\ncpu0 1 2 3\n"
			}, all,
		},
	} {
		fsys := tc.files.fs()
		m := newCPUMeter(fsys)
		var got float64
		var ok bool
		for at := time.Duration(0); at <= 10*time.Second; at += pace {
			used := time.Duration(float64(at) * tc.cpus * 0.6) // 60 %
			fsys[tc.usage] = &fstest.MapFile{Data: []byte(tc.text(used))}
			if got, ok = m.read(at); ok != (at >= time.Second) {
				t.Fatalf("%s: reading %v after %v", name, ok, at)
			}
			if got2, ok2 := m.read(at); got2 != got || ok2 != ok {
				t.Errorf("%s: read twice: %v %v, then %v %v", name, got, ok, got2, ok2)
			}
		}
		if math.Abs(got-0.6) > 0.01 || len(m.samples) != int(cpuSpan/pace)+1 {
			t.Errorf("%s: used %v of %d samples, want 0.6 of %d", name, got, len(m.samples), cpuSpan/pace+1)
		}
	}
}

func TestACounterThatGoesBackStartsAnew(t *testing.T) {
	fsys := files{"sys/fs/cgroup/cpu.stat": "usage_usec 9000000\n"}.fs()
	m := newCPUMeter(fsys)
	m.read(0)
	if got, ok := m.read(2 * time.Second); !ok || got != 0 {
		t.Fatalf("idle = %v, %v", got, ok)
	}
	fsys["sys/fs/cgroup/cpu.stat"].Data = []byte("usage_usec 5\n")
	if got, ok := m.read(3 * time.Second); ok {
		t.Errorf("after the counter went back: %v", got)
	}
}

func TestTheProcessItselfIsTheLastSource(t *testing.T) {
	if _, _, ok := processCPU(); !ok {
		t.Skip("this system does not tell; CPU rules are silent without Options.CPU")
	}
	m := newCPUMeter(files{}.fs())
	m.read(0)
	if got, ok := m.read(time.Second); !ok || got < 0 || got > 1 {
		t.Errorf("read = %v, %v", got, ok)
	}
}

func FuzzOddFilesDoNotPanic(f *testing.F) {
	f.Add("0::/\n", "usage_usec 5\n", "max 100000", "cpu 1 2 3 4 5\n")
	f.Add("::\n0::/../..\n", "usage_usec\n", "0 0", "cpu")
	f.Add("1:cpu,cpuacct:\xff\n", "usage_usec 99999999999999999999", "-1 -1", "cpu a b c d e")
	f.Add("", "usage_usec 9223372036854775807\n", "9223372036854775807 1", "cpu 9223372036854775807 9223372036854775807 1 1 1")
	f.Fuzz(func(t *testing.T, group, stat, quota, machine string) {
		m := newCPUMeter(files{
			"proc/self/cgroup": group, "proc/stat": machine,
			"sys/fs/cgroup/cpu.stat": stat, "sys/fs/cgroup/cpu.max": quota, "sys/fs/cgroup/cpu/cpuacct.usage": quota,
			"sys/fs/cgroup/cpu/cpu.cfs_quota_us": stat, "sys/fs/cgroup/cpu/cpu.cfs_period_us": quota,
		}.fs())
		for at := time.Duration(0); at < 3*time.Second; at += time.Second {
			if used, ok := m.read(at); ok && (math.IsNaN(used) || used < 0 || used > 1) {
				t.Errorf("used %v", used)
			}
		}
	})
}
