package containerd

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	contrib "github.com/containerd/containerd/v2/contrib/seccomp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/agent/driver"
)

var (
	testRunc   = ociRuntime{Name: "runc", Kind: "runc"}
	testGvisor = ociRuntime{Name: "gvisor", Kind: "runsc", Sandbox: true, Overhead: 32 * mebi}
)

func mustSpec(t *testing.T, s driver.Spec, image ocispec.ImageConfig, r ociRuntime, unified bool) *specs.Spec {
	t.Helper()
	if s.ID == "" {
		s.ID = "a"
	}
	if s.Command == nil && image.Entrypoint == nil && image.Cmd == nil {
		s.Command = []string{"true"}
	}
	spec, err := ociSpec(s, image, r, "/redoubt/n/a", unified)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestArguments(t *testing.T) {
	image := ocispec.ImageConfig{Entrypoint: []string{"entry"}, Cmd: []string{"cmd"}}
	for _, tt := range []struct{ command, args, want string }{
		{"", "", "entry cmd"},
		{"", "a b", "entry a b"},
		{"c", "", "c"},
		{"c d", "a", "c d a"},
	} {
		s := driver.Spec{Command: strings.Fields(tt.command), Args: strings.Fields(tt.args)}
		got, err := arguments(s, image)
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
	}
	if _, err := arguments(driver.Spec{Image: "x"}, ocispec.ImageConfig{}); err == nil {
		t.Error("nothing to run is accepted")
	}
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"A=1", "PATH=/x"}, []string{"A=2", "B=3", "HOSTNAME=h"}, "name")
	want := []string{"PATH=/x", "HOSTNAME=h", "A=2", "B=3"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What an image says of labels, volumes and ports is not taken over: runsc and
// the shim read orders from annotations.
func TestNothingOfAnImageBecomesAnAnnotation(t *testing.T) {
	image := ocispec.ImageConfig{Cmd: []string{"x"}, Labels: map[string]string{
		"dev.gvisor.flag.host-uds": "all", "io.kubernetes.cri.sandbox-id": "other", "io.containerd.runc.v2.group": "other",
	}}
	spec := mustSpec(t, driver.Spec{Labels: map[string]string{"dev.gvisor.spec.rootfs": "x"}}, image, testGvisor, false)
	if len(spec.Annotations) != 0 {
		t.Errorf("annotations %v", spec.Annotations)
	}
}

func TestHardenedByDefault(t *testing.T) {
	for _, r := range []ociRuntime{testRunc, testGvisor} {
		spec := mustSpec(t, driver.Spec{}, ocispec.ImageConfig{}, r, true)
		p := spec.Process
		if !p.NoNewPrivileges || p.Capabilities.Inheritable != nil || p.Capabilities.Ambient != nil || len(p.Capabilities.Bounding) != 7 {
			t.Errorf("%s: process %+v %+v", r.Name, p.NoNewPrivileges, p.Capabilities)
		}
		for _, bad := range []string{"CAP_SYS_ADMIN", "CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_MKNOD", "CAP_SYS_PTRACE", "CAP_SYS_CHROOT", "CAP_SETFCAP"} {
			if slices.Contains(p.Capabilities.Bounding, bad) {
				t.Errorf("%s: %s", r.Name, bad)
			}
		}
		if spec.Linux.Seccomp == nil || spec.Linux.Seccomp.DefaultAction != specs.ActErrno {
			t.Errorf("%s: seccomp %+v", r.Name, spec.Linux.Seccomp)
		}
		if d := spec.Linux.Resources.Devices; len(d) != 1 || d[0].Allow {
			t.Errorf("%s: devices %+v", r.Name, d)
		}
		var kinds []string
		for _, n := range spec.Linux.Namespaces {
			kinds = append(kinds, string(n.Type))
			if n.Path != "" {
				t.Errorf("%s: namespace %+v joins another", r.Name, n)
			}
		}
		slices.Sort(kinds)
		if strings.Join(kinds, " ") != "cgroup ipc mount network pid uts" {
			t.Errorf("%s: namespaces %q", r.Name, kinds)
		}
		for _, m := range spec.Mounts {
			if !slices.Contains(m.Options, "nosuid") {
				t.Errorf("%s: %s may hold setuid programs", r.Name, m.Destination)
			}
			if m.Type == "bind" || m.Type == "cgroup" {
				t.Errorf("%s: mount %+v", r.Name, m)
			}
		}
	}
	asked := mustSpec(t, driver.Spec{AddCapabilities: []string{"CAP_NET_RAW", "CAP_CHOWN"}}, ocispec.ImageConfig{}, testRunc, true)
	if c := asked.Process.Capabilities.Bounding; len(c) != 8 || !slices.Contains(c, "CAP_NET_RAW") {
		t.Errorf("asked for CAP_NET_RAW: %q", c)
	}
}

func TestLimits(t *testing.T) {
	l := driver.Limits{CPUMillis: 500, Memory: 64 * mebi, Pids: 20}
	r := mustSpec(t, driver.Spec{Limits: l}, ocispec.ImageConfig{}, testGvisor, true).Linux.Resources
	if *r.CPU.Quota != 50_000 || *r.CPU.Period != 100_000 || *r.Memory.Limit != 96*mebi || *r.Memory.Swap != 96*mebi || *r.Pids.Limit != 512 {
		t.Errorf("gvisor: %+v %+v %+v", r.CPU, r.Memory, r.Pids)
	}
	l.Pids = 1000
	r = mustSpec(t, driver.Spec{Limits: l}, ocispec.ImageConfig{}, testGvisor, false).Linux.Resources
	if r.Memory.Swap != nil || *r.Pids.Limit != 4064 {
		t.Errorf("gvisor on v1: %+v %+v", r.Memory, r.Pids)
	}
	r = mustSpec(t, driver.Spec{Limits: l}, ocispec.ImageConfig{}, testRunc, false).Linux.Resources
	if *r.Memory.Limit != 64*mebi || *r.Pids.Limit != 1000 {
		t.Errorf("runc: %+v %+v", r.Memory, r.Pids)
	}
	r = mustSpec(t, driver.Spec{}, ocispec.ImageConfig{}, testGvisor, false).Linux.Resources
	if r.CPU != nil || r.Memory != nil || r.Pids != nil {
		t.Errorf("no limits: %+v", r)
	}
	// The file system in memory is bounded even if nothing is said.
	spec := mustSpec(t, driver.Spec{Tmpfs: []driver.Tmpfs{{Path: "/t"}}, Limits: driver.Limits{Memory: 64 * mebi}}, ocispec.ImageConfig{}, testRunc, false)
	if m := spec.Mounts[len(spec.Mounts)-1]; !slices.Contains(m.Options, fmt.Sprintf("size=%d", 32*mebi)) {
		t.Errorf("tmpfs %+v", m)
	}
}

func TestSpecRefuses(t *testing.T) {
	for name, s := range map[string]driver.Spec{
		"nothing starts below":   {Limits: driver.Limits{Memory: 1 << 20}},
		"none may be negative":   {Limits: driver.Limits{CPUMillis: -1}},
		"mounted over /proc":     {Mounts: []driver.Mount{{HostPath: "/x", Path: "/proc/sys"}}},
		"mounted over /sys":      {Tmpfs: []driver.Tmpfs{{Path: "/sys"}}},
		"mounted over /dev":      {Mounts: []driver.Mount{{HostPath: "/x", Path: "/dev/mem"}}},
		"nothing may be mounted": {Mounts: []driver.Mount{{HostPath: "/x", Path: "/"}}},
		"without . or ..":        {Mounts: []driver.Mount{{HostPath: "/x", Path: "/a/../proc"}}},
		"host path":              {Mounts: []driver.Mount{{HostPath: "x", Path: "/a"}}},
		"start with CAP_":        {AddCapabilities: []string{"net_raw"}},
		"working directory":      {WorkingDir: "tmp"},
	} {
		s.Command = []string{"x"}
		if _, err := ociSpec(s, ocispec.ImageConfig{}, testRunc, "/g", false); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// allows evaluates a profile for a call whose arguments are unknown: whether
// any could pass.
func allows(p *specs.LinuxSeccomp, name string) bool {
	for _, s := range p.Syscalls {
		if s.Action == specs.ActAllow && slices.Contains(s.Names, name) {
			return true
		}
	}
	return false
}

func TestSeccompIsTighterThanContainerds(t *testing.T) {
	ours := seccompProfile()
	theirs := contrib.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: defaultCapabilities}}})
	known := map[string]bool{}
	for _, p := range []*specs.LinuxSeccomp{ours, theirs} {
		for _, s := range p.Syscalls {
			for _, n := range s.Names {
				known[n] = true
			}
		}
	}
	// Only what this architecture has. The 32-bit twins of theirs do not count.
	var mine, default1, dropped []string
	for n := range known {
		if !native(n) {
			continue
		}
		if allows(ours, n) {
			mine = append(mine, n)
			if !allows(theirs, n) {
				t.Errorf("%s is allowed here and not by containerd", n)
			}
		}
		if allows(theirs, n) {
			default1 = append(default1, n)
			if !allows(ours, n) {
				dropped = append(dropped, n)
			}
		}
	}
	slices.Sort(dropped)
	t.Logf("allowed: %d, containerd's default: %d; dropped: %s", len(mine), len(default1), strings.Join(dropped, " "))
	if len(mine) > 245 || len(default1)-len(mine) < 60 {
		t.Errorf("%d allowed, containerd's default %d: not well tighter", len(mine), len(default1))
	}
	for _, n := range strings.Fields(`ptrace process_vm_readv process_vm_writev bpf keyctl add_key request_key
		userfaultfd perf_event_open io_uring_setup io_uring_enter io_uring_register mount umount2 mount_setattr
		move_mount open_tree fsopen fsconfig fsmount pivot_root chroot unshare setns clone3 kexec_load
		kexec_file_load init_module finit_module delete_module reboot swapon swapoff iopl ioperm settimeofday
		clock_settime clock_adjtime adjtimex open_by_handle_at name_to_handle_at syslog quotactl acct
		lookup_dcookie pidfd_getfd kcmp process_madvise fanotify_init remap_file_pages vmsplice modify_ldt
		memfd_secret io_setup execveat mincore semget pkey_alloc futex_waitv move_pages migrate_pages mbind set_mempolicy sethostname setdomainname vhangup`) {
		if allows(ours, n) {
			t.Errorf("%s is allowed", n)
		}
	}
	for _, s := range ours.Syscalls {
		if slices.Contains(s.Names, "clone") && (len(s.Args) != 1 || s.Args[0].Value&unix.CLONE_NEWUSER == 0) {
			t.Errorf("clone may make namespaces: %+v", s)
		}
	}
	if len(ours.Architectures) != 1 {
		t.Errorf("system call tables %v", ours.Architectures)
	}
}

// native leaves the names of other tables out.
func native(n string) bool {
	for _, suffix := range []string{"32", "_time64", "stat64", "statfs64", "truncate64", "fcntl64", "fadvise64_64", "sendfile64",
		"clock_adjtime64", "clock_gettime64", "clock_getres_time64", "timer_gettime64", "timer_settime64", "timerfd_gettime64", "timerfd_settime64"} {
		if strings.HasSuffix(n, suffix) {
			return false
		}
	}
	return !slices.Contains(strings.Fields("_llseek _newselect mmap2 ipc socketcall send recv sigprocmask sigreturn ugetrlimit waitpid epoll_ctl_old epoll_wait_old fstatat64 set_thread_area get_thread_area"), n)
}

func TestSpecDigest(t *testing.T) {
	a := driver.Spec{ID: "a", Env: nil}
	b := driver.Spec{ID: "a", Env: []string{}, Labels: map[string]string{}}
	if specDigest(a) != specDigest(b) {
		t.Error("empty and absent differ")
	}
	b.Env = []string{"X=:[]"}
	c := b
	c.Env = []string{"X=:null"}
	if specDigest(a) == specDigest(b) || specDigest(b) == specDigest(c) {
		t.Error("different specs are the same")
	}
}

func TestIDs(t *testing.T) {
	for id, ok := range map[driver.ID]bool{
		"a": true, "web-1-abc": true, driver.ID(strings.Repeat("a", 60)): true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "a/b": false, "x-detach-y": false,
		driver.ID(strings.Repeat("a", 61)): false,
	} {
		if (checkID(id) == nil) != ok {
			t.Errorf("id %q: %v", id, checkID(id))
		}
	}
}

func TestHierarchies(t *testing.T) {
	v1 := "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n" +
		"31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
		"32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	h := parseHierarchies([]byte(v1))
	if h.unified || h.path("memory", "/g") != "/sys/fs/cgroup/memory/g" || h.path("cpuacct", "/g") != "/sys/fs/cgroup/cpu,cpuacct/g" || len(h.mounts) != 3 {
		t.Errorf("hybrid: %+v", h)
	}
	h = parseHierarchies([]byte("30 25 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n"))
	if !h.unified || h.path("memory", "/g") != "/sys/fs/cgroup/g" {
		t.Errorf("v2: %+v", h)
	}
}

func TestConfigRefuses(t *testing.T) {
	good := Config{Node: "n", Dir: "/d", Binaries: Binaries{Containerd: "/c", Shim: "/s", Wrapper: "/w"}, Log: quiet}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"node id":  func(c *Config) { c.Node = "a/b" },
		"absolute": func(c *Config) { c.Dir = "d" },
		"shim":     func(c *Config) { c.Binaries.Shim = "" },
		"wrapper":  func(c *Config) { c.Binaries.Wrapper = "w" },
		"logger":   func(c *Config) { c.Log = nil },
	} {
		c := good
		change(&c)
		if err := c.validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A path that a unix socket can have, whatever the directory.
	good.Dir = "/" + strings.Repeat("long/", 100)
	if n := len(good.shimSocket("x")); n > 107 {
		t.Errorf("shim socket of %d bytes", n)
	}
	if n := len(good.address() + ".ttrpc"); n > 107 {
		t.Errorf("socket of %d bytes", n)
	}
}

func TestHandlerKeepsWhatOlderContainersRun(t *testing.T) {
	dir := t.TempDir()
	wrapper := dir + "/wrapper"
	if err := os.WriteFile(wrapper, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := Config{Dir: dir + "/state", Binaries: Binaries{Wrapper: wrapper}}
	a, err := c.handler(ociRuntime{Name: "gvisor", Variant: "systrap", Kind: "runsc", Path: "/one"})
	if err != nil {
		t.Fatal(err)
	}
	again, _ := c.handler(ociRuntime{Name: "gvisor", Variant: "systrap", Kind: "runsc", Path: "/one"})
	b, err := c.handler(ociRuntime{Name: "gvisor", Variant: "systrap", Kind: "runsc", Path: "/two"})
	if err != nil || a != again || a == b {
		t.Errorf("handlers %s, %s, %s: %v", a, again, b, err)
	}
	data, err := os.ReadFile(a + ".json")
	if err != nil || !strings.Contains(string(data), `"/one"`) {
		t.Errorf("%s, %v", data, err)
	}
	// Across file systems it is a copy.
	if err := linkOrCopy("/proc/version", dir+"/copied"); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(dir + "/copied"); err != nil || info.Size() == 0 || info.Mode().Perm() != 0o755 {
		t.Errorf("copied: %v, %v", info, err)
	}
}
