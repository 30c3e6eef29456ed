package containerd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/isolation"
)

// A containerd that the host already has is used and left alone: no daemon is
// started, and a shutdown ends our containers and nothing of anybody else.
func TestHostContainerd(t *testing.T) {
	cfg := realConfig(t, "host")
	dir, err := os.MkdirTemp("/run", "redoubt-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\nimports = []\n[grpc]\n  address = %q\n[ttrpc]\n  address = %q\n"+
		"[plugins.\"io.containerd.shim.v1.manager\"]\n  socket_dir = %q\n",
		filepath.Join(t.TempDir(), "root"), dir, dir+"/containerd.sock", dir+"/containerd.sock.ttrpc", dir+"/s")
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(cfg.Binaries.Containerd, "--config", file)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(cfg.Binaries.Shim)+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	host := mustProcess(t, cmd.Process.Pid)
	t.Cleanup(func() { // after the nodes
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if err := unmountBelow(dir); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("containerd said: %s", said.String())
		}
	})

	cfg.HostAddress = "unix://" + dir + "/containerd.sock"
	cfg.Binaries.Containerd, cfg.Binaries.Shim = "", ""
	n := startConfig(t, cfg)
	other := cfg
	other.Node, other.Dir = "b-"+cfg.Node, t.TempDir()
	m := startConfig(t, other) // two nodes on one daemon
	for _, runtime := range []isolation.Name{"runc", "gvisor"} {
		id := driver.ID("one-" + string(runtime))
		c := n.toolbox(t, id, runtime, "sleep 1000")
		theirs := m.toolbox(t, id, runtime, "sleep 1000")
		if c.Pid == theirs.Pid {
			t.Errorf("one container for two nodes: %+v", c)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		code, err := n.driver.Exec(ctx, id, driver.ExecSpec{Command: []string{"sh", "-c", "exit 3"}}, driver.Streams{})
		if err != nil || code != 3 {
			t.Errorf("exec: %d, %v", code, err)
		}
		if err := n.driver.Delete(ctx, id); err != nil {
			t.Errorf("delete: %v", err)
		}
		if list, err := m.driver.List(ctx); err != nil || len(list) == 0 || list[len(list)-1].State != driver.StateRunning {
			t.Errorf("the other node: %+v, %v", list, err)
		}
	}
	n.toolbox(t, "runs", "gvisor", "sleep 1000")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.daemon.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	n.nothingLeft(t)
	if list, err := m.driver.List(ctx); err != nil || len(list) != 2 {
		t.Errorf("after the first node's shutdown the other has %+v, %v", list, err)
	}
	if !host.alive() {
		t.Errorf("the host's containerd was ended")
	}
}

// A fork bomb inside meets its own limit, with either kernel; the sandbox
// lives on, and the host sees no more than its bound.
func TestForkBomb(t *testing.T) {
	n := startNode(t, "bomb")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := n.driver.EnsureImage(ctx, "toolbox", driver.PullIfNotPresent, nil); err != nil {
		t.Fatal(err)
	}
	for _, runtime := range []string{"runc", "gvisor"} {
		spec := driver.Spec{
			ID: driver.ID("bomb-" + runtime), Image: "toolbox", Limits: driver.Limits{Pids: 32, CPUMillis: 500, Memory: 256 * mebi},
			Command: []string{"sh", "-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); sleep 1000 & done; echo all; wait"},
			LogPath: filepath.Join(t.TempDir(), "log"),
		}
		spec.Runtime = "runc"
		if runtime == "gvisor" {
			spec.Runtime = "gvisor"
		}
		if _, err := n.driver.Start(ctx, spec); err != nil {
			t.Fatal(err)
		}
		most := int64(0)
		for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			st, err := n.driver.Stats(ctx, spec.ID)
			if err != nil {
				break // it has ended
			}
			most = max(most, st.Pids)
		}
		bound := int64(32)
		if runtime == "gvisor" {
			bound = 512
		}
		if most > bound {
			t.Errorf("%s: %d tasks on the host", runtime, most)
		}
		list, err := n.driver.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if c.ID == spec.ID {
				var said []byte // the output may come a moment after the exit
				for end := time.Now().Add(5 * time.Second); !strings.Contains(string(said), "fork") && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
					said, _ = os.ReadFile(spec.LogPath)
				}
				t.Logf("%s: at most %d tasks on the host; %v, %+v", runtime, most, c.State, c.Exit)
				// The shell gives up when it is refused; the code is its own.
				if !strings.Contains(string(said), "can't fork") || c.State != driver.StateExited || c.Exit.Code != 2 || c.Exit.Reason != "" {
					t.Errorf("%s: %v %+v, and it said %q", runtime, c.State, c.Exit, said)
				}
			}
		}
		if err := n.driver.Delete(ctx, spec.ID); err != nil {
			t.Error(err)
		}
	}
}
