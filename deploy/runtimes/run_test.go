package runtimes

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// runIn runs the toolbox once through the carried shim and runc, by absolute
// paths, as the agent does.
func runIn(ctx context.Context, t *testing.T, client *containerd.Client, paths Paths, dir string) {
	t.Helper()
	part, _ := paths.Part(Toolbox)
	image, err := client.GetImage(ctx, part.Reference)
	if err != nil {
		t.Fatal(err)
	}
	const id = "rrt-toolbox"
	container, err := client.NewContainer(ctx, id,
		containerd.WithImage(image),
		containerd.WithSnapshotter("overlayfs"),
		containerd.WithNewSnapshot(id, image),
		containerd.WithRuntime(paths.Shim, &options.Options{BinaryName: paths.Runc, Root: filepath.Join(dir, "runc")}),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("/www/cgi-bin/where"), oci.WithCgroup("/rrt-test/"+id)),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := container.Delete(clean, containerd.WithSnapshotCleanup); err != nil {
			t.Errorf("delete the container: %v", err)
		}
		removeCgroups(t, "rrt-test")
	}()
	var stdout, stderr bytes.Buffer
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, &stdout, &stderr), cio.WithFIFODir(dir)))
	if err != nil {
		t.Fatal(err)
	}
	exit, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	status := <-exit
	if _, err := task.Delete(ctx); err != nil {
		t.Errorf("delete the task: %v", err)
	}
	if status.ExitCode() != 0 || !strings.Contains(stdout.String(), "uname    Linux ") {
		t.Errorf("the toolbox ended with %d and said %q, %q", status.ExitCode(), stdout.String(), stderr.String())
	}
}
