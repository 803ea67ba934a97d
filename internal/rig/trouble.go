package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// SlowLoad are the arguments of a Redis that takes its time over what it finds on disk: see Load.
var SlowLoad = []string{"--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024", "--rdbcompression", "no"}

// Load restarts a Redis that was started with SlowLoad. It has what it had before, and answers LOADING until Loaded.
func (r *RedisServer) Load() {
	r.tb.Helper()
	const keys = 10_000 // at 10 ms each
	fill := []string{"MSET"}
	for i := range keys {
		fill = append(fill, fmt.Sprint("rig:", i), strings.Repeat("x", 1024))
	}
	must(r.tb, r.Addr, fill...)
	must(r.tb, r.Addr, "SAVE")
	r.Restart()
	if _, err := commandWithin(startWithin, r.Addr, "GET", "rig:0"); err == nil || !strings.Contains(err.Error(), "LOADING") {
		r.tb.Fatalf("rig: a Redis that loads answers %v", err)
	}
}

// Loaded ends what Load has begun.
func (r *RedisServer) Loaded() {
	r.tb.Helper()
	must(r.tb, r.Addr, "CONFIG", "SET", "key-load-delay", "0")
	Poll(r.tb, startWithin, func() error { return replyHas(r.Addr, "\r\nloading:0\r\n", "INFO", "persistence") })
}

// BreakDisk has a Redis fail to save, as with a full disk, so that it refuses all writes (MISCONF), until MendDisk.
func (r *RedisServer) BreakDisk() {
	r.tb.Helper()
	must(r.tb, r.Addr, "CONFIG", "SET", "save", "3600 1") // one that never saves does not mind
	_ = os.Remove(r.dump())
	if err := os.Mkdir(r.dump(), 0o700); err != nil {
		r.tb.Fatal(err)
	}
	r.save("err")
}

// MendDisk ends what BreakDisk has begun.
func (r *RedisServer) MendDisk() {
	r.tb.Helper()
	if err := os.Remove(r.dump()); err != nil {
		r.tb.Fatal(err)
	}
	r.save("ok")
}

// dump is the file to which it saves.
func (r *RedisServer) dump() string { return filepath.Join(r.dir, "dump.rdb") }

func (r *RedisServer) save(status string) {
	r.tb.Helper()
	must(r.tb, r.Addr, "BGSAVE")
	Poll(r.tb, startWithin, func() error {
		return replyHas(r.Addr, "rdb_last_bgsave_status:"+status+"\r\n", "INFO", "persistence")
	})
}
