package rig

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// NginxServer is an nginx.
type NginxServer struct {
	*Process
	Addr string
}

// Nginx starts nginx, as one process without a master, with conf as the content of its http block. Every
// ADDR in conf stands for the address to listen on, which is Addr afterwards:
//
//	rig.Nginx(t, `server { listen ADDR; location / { proxy_pass http://10.0.0.1:80; } }`)
func Nginx(tb testing.TB, conf string) *NginxServer {
	tb.Helper()
	p := start(tb, server{
		binary:  "nginx",
		install: "install nginx (Debian: apt-get install nginx)",
		ports:   1,
		args: func(dir string, ports []int) []string {
			addr := fmt.Sprintf("%s:%d", host, ports[0])
			file := filepath.Join(dir, "nginx.conf")
			text := fmt.Sprintf(nginxConf, strings.ReplaceAll(conf, "ADDR", addr))
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				tb.Fatal(err)
			}
			return []string{"-p", dir, "-c", file, "-e", "stderr"}
		},
		// nginx writes the file when it has bound its ports.
		ready: func(p *Process) error {
			pid, err := os.ReadFile(filepath.Join(p.dir, "nginx.pid"))
			if err != nil {
				return err
			}
			if got := strings.TrimSpace(string(pid)); got != fmt.Sprint(p.PID()) {
				return fmt.Errorf("nginx.pid has %q, not %d", got, p.PID())
			}
			conn, err := net.DialTimeout("tcp", p.addr(0), time.Second) //nolint:noctx // it has a timeout
			if err == nil {
				_ = conn.Close()
			}
			return err
		},
	})
	return &NginxServer{Process: p, Addr: p.addr(0)}
}

const nginxConf = `
daemon off;
master_process off; # one process to kill, hang and wait for
pid nginx.pid;
events { worker_connections 1024; }
http {
access_log off;
client_body_temp_path body;
proxy_temp_path proxy;
fastcgi_temp_path fastcgi;
uwsgi_temp_path uwsgi;
scgi_temp_path scgi;
%s
}
`
