package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
	group  = "root:x:0:\nnogroup:x:65534:\n"
	// Names resolve by files and DNS. The agent mounts its own hosts and
	// resolv.conf over the empty ones.
	nsswitch = "passwd: files\ngroup: files\nhosts: files dns\n"

	index = `<!doctype html>
<meta charset="utf-8">
<title>toolbox</title>
<h1>It works</h1>
<p>This page is served from inside a container. <a href="/cgi-bin/where">What kernel is in here?</a></p>
`

	// where answers from behaviour, not from configuration: each line is what
	// this kernel says when it is asked. gVisor writes a kernel log of its own,
	// a guest kernel has its own version, and under runc the host's shows.
	where = `#!/bin/sh
echo "Content-Type: text/plain"
echo
echo "hostname $(hostname)"
echo "uname    $(uname -srvm)"
echo "version  $(cat /proc/version)"
echo "dmesg"
dmesg 2>&1 | head -n 8 | sed 's/^/  /'
`
)

// toolbox returns a userland of busybox with its applets as links, enough users
// to drop privileges to, and a page and a script for its web server.
func toolbox(binary string) ([]file, v1.Config, error) {
	busybox, err := os.ReadFile(binary)
	if err != nil {
		return nil, v1.Config{}, err
	}
	var stderr bytes.Buffer
	list := exec.Command(binary, "--list")
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		return nil, v1.Config{}, fmt.Errorf("list the applets of %s: %w: %s", binary, err, stderr.String())
	}
	files := append(mountPoints(),
		dir("bin", 0o755),
		dir("home", 0o755),
		dir("root", 0o700),
		dir("run", 0o755),
		dir("usr", 0o755),
		dir("usr/bin", 0o755),
		dir("var", 0o755),
		dir("www", 0o755),
		dir("www/cgi-bin", 0o755),
		file{path: "bin/busybox", mode: 0o755, data: busybox},
		file{path: "etc/passwd", mode: 0o644, data: []byte(passwd)},
		file{path: "etc/group", mode: 0o644, data: []byte(group)},
		file{path: "etc/nsswitch.conf", mode: 0o644, data: []byte(nsswitch)},
		// Scripts that begin with "#!/usr/bin/env sh" are common enough.
		file{path: "usr/bin/env", mode: fs.ModeSymlink | 0o777, link: "/bin/busybox"},
		file{path: "www/index.html", mode: 0o644, data: []byte(index)},
		file{path: "www/cgi-bin/where", mode: 0o755, data: []byte(where)},
	)
	applets := strings.Fields(string(out))
	if len(applets) < 50 {
		return nil, v1.Config{}, fmt.Errorf("%s lists only %d applets", binary, len(applets))
	}
	for _, a := range applets {
		if a != "busybox" {
			files = append(files, file{path: "bin/" + a, mode: fs.ModeSymlink | 0o777, link: "busybox"})
		}
	}
	return files, v1.Config{
		Env:        []string{"PATH=/bin:/usr/bin"},
		Cmd:        []string{"/bin/sh"},
		WorkingDir: "/",
	}, nil
}

// canary returns the canary program and nothing that could answer in its place.
func canary(binary string) ([]file, v1.Config, error) {
	program, err := os.ReadFile(binary)
	if err != nil {
		return nil, v1.Config{}, err
	}
	return append(mountPoints(), file{path: "canary", mode: 0o755, data: program}), v1.Config{
		Entrypoint: []string{"/canary"},
		WorkingDir: "/",
	}, nil
}

// mountPoints are the places that a runtime or the agent mounts over. They are
// in the image so that a read-only root needs nothing made in it.
func mountPoints() []file {
	return []file{
		dir("dev", 0o755),
		dir("etc", 0o755),
		dir("proc", 0o755),
		dir("sys", 0o755),
		dir("tmp", fs.ModeSticky|0o777),
		{path: "etc/hosts", mode: 0o644},
		{path: "etc/hostname", mode: 0o644},
		{path: "etc/resolv.conf", mode: 0o644},
	}
}
