package containerd

import (
	"fmt"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/agent/driver"
)

// defaultCapabilities is what images need that start as root, give their files
// away and drop to a user of their own; and nothing that reaches beyond that.
// Of Docker's default these are left out: MKNOD and NET_RAW (devices, forged
// packets), SYS_CHROOT, SETFCAP and SETPCAP (new ways to privileges), FSETID,
// AUDIT_WRITE. A workload that must have one asks for it by name.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL",
	"CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID",
}

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	minMemory   = 4 * mebi // less, and no runtime gets as far as the workload
	cpuPeriod   = 100_000  // µs
)

// ociSpec is the whole OCI specification of a container: hardened by default,
// the same for every class, with nothing taken from the image but what its
// config says of process, environment, directory and user. The image's labels
// and annotations are dropped: runsc, the shim and CRI all read orders from
// them. The user is resolved later, against the image's files.
func ociSpec(s driver.Spec, image ocispec.ImageConfig, r ociRuntime, cgroup string, unified bool) (*specs.Spec, error) {
	args, err := arguments(s, image)
	if err != nil {
		return nil, err
	}
	resources, err := resources(s.Limits, r, unified)
	if err != nil {
		return nil, err
	}
	mounts, err := mounts(s)
	if err != nil {
		return nil, err
	}
	caps := slices.DeleteFunc(slices.Clone(defaultCapabilities), func(c string) bool {
		return slices.Contains(s.DropCapabilities, c) || slices.Contains(s.DropCapabilities, "ALL")
	})
	for _, c := range s.AddCapabilities {
		if !strings.HasPrefix(c, "CAP_") {
			return nil, fmt.Errorf("capability %q: names start with CAP_", c)
		}
		if !slices.Contains(caps, c) {
			caps = append(caps, c)
		}
	}
	slices.Sort(caps)
	hostname := s.Hostname
	if hostname == "" {
		hostname = string(s.ID)
	}
	cwd := s.WorkingDir
	if cwd == "" {
		cwd = image.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	if !path.IsAbs(cwd) {
		return nil, fmt.Errorf("working directory %q is not absolute", cwd)
	}
	oom := 0
	spec := &specs.Spec{
		Version: "1.1.0", // what every runtime in use understands
		Process: &specs.Process{
			Args: args,
			Env:  environment(image.Env, s.Env, hostname),
			Cwd:  cwd,
			Capabilities: &specs.LinuxCapabilities{
				Bounding: caps, Effective: caps, Permitted: caps,
			},
			Rlimits: []specs.POSIXRlimit{
				rlimit("RLIMIT_NOFILE", unix.RLIMIT_NOFILE, 1024, 524288),
				{Type: "RLIMIT_CORE", Soft: 0, Hard: 0},
			},
			NoNewPrivileges: true,
			OOMScoreAdj:     &oom,
		},
		Root:     &specs.Root{Path: "rootfs", Readonly: s.ReadOnlyRoot},
		Hostname: hostname,
		Mounts:   mounts,
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Resources:   resources,
			Namespaces:  namespaceList(s.Netns),
			Seccomp:     seccompProfile(),
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kallsyms",
				"/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/kpagecgroup",
				"/proc/kpagecount", "/proc/kpageflags", "/proc/latency_stats",
				"/proc/modules", "/proc/sched_debug", "/proc/scsi",
				"/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo",
				"/sys/devices/virtual/powercap", "/sys/firmware", "/sys/kernel",
			},
			ReadonlyPaths: []string{
				"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
			},
		},
	}
	if s.Limits.Pids > 0 && r.Sandbox {
		// With the host's kernel the control group bounds the container, and
		// this would count whatever else the host runs for the same user.
		n := uint64(s.Limits.Pids)
		spec.Process.Rlimits = append(spec.Process.Rlimits, rlimit("RLIMIT_NPROC", unix.RLIMIT_NPROC, n, n))
	}
	return spec, nil
}

// rlimit stays within what this process itself may have: a host that has taken
// CAP_SYS_RESOURCE away refuses more, and with it the container.
func rlimit(name string, resource int, soft, hard uint64) specs.POSIXRlimit {
	var own unix.Rlimit
	if err := unix.Getrlimit(resource, &own); err == nil {
		hard = min(hard, own.Max)
	}
	return specs.POSIXRlimit{Type: name, Soft: min(soft, hard), Hard: hard}
}

// arguments: a command replaces entrypoint and cmd of the image, arguments
// alone replace its cmd.
func arguments(s driver.Spec, image ocispec.ImageConfig) ([]string, error) {
	args := slices.Clone(s.Command)
	if len(args) == 0 {
		args = slices.Clone(image.Entrypoint)
		if len(s.Args) == 0 {
			args = append(args, image.Cmd...)
		}
	}
	args = append(args, s.Args...)
	if len(args) == 0 {
		return nil, fmt.Errorf("image %s has no command of its own: state one", s.Image)
	}
	return args, nil
}

// environment lays over over base, by name, keeping the order.
func environment(base, over []string, hostname string) []string {
	env := []string{defaultPath, "HOSTNAME=" + hostname}
	for _, kv := range slices.Concat(base, over) {
		key, _, _ := strings.Cut(kv, "=")
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
		if i >= 0 {
			env[i] = kv
		} else {
			env = append(env, kv)
		}
	}
	return env
}

func namespaceList(netns string) []specs.LinuxNamespace {
	return []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
		{Type: specs.NetworkNamespace, Path: netns},
	}
}

func mounts(s driver.Spec) ([]specs.Mount, error) {
	out := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
	for _, t := range s.Tmpfs {
		if err := mountable(t.Path); err != nil {
			return nil, fmt.Errorf("tmpfs %q: %w", t.Path, err)
		}
		size := t.Size
		if size <= 0 {
			size = s.Limits.Memory / 2
		}
		if size <= 0 {
			size = 64 * mebi
		}
		out = append(out, specs.Mount{
			Destination: t.Path, Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%d", size)},
		})
	}
	bind := func(from, to string, readonly bool, extra ...string) {
		// Not recursive: what is mounted below the path was not allowed with it.
		opts := append([]string{"bind", "rprivate", "nosuid", "nodev"}, extra...)
		if readonly {
			opts = append(opts, "ro")
		}
		out = append(out, specs.Mount{Destination: to, Type: "bind", Source: from, Options: opts})
	}
	for _, m := range s.Mounts {
		if err := mountable(m.Path); err != nil {
			return nil, fmt.Errorf("mount of %s at %q: %w", m.HostPath, m.Path, err)
		}
		if !path.IsAbs(m.HostPath) {
			return nil, fmt.Errorf("mount of %q: the host path is not absolute", m.HostPath)
		}
		bind(m.HostPath, m.Path, m.ReadOnly)
	}
	if s.ResolvConf != "" {
		bind(s.ResolvConf, "/etc/resolv.conf", true, "noexec")
	}
	if s.Hosts != "" {
		bind(s.Hosts, "/etc/hosts", true, "noexec")
	}
	return out, nil
}

// mountable refuses places where a mount would undo the hardening.
func mountable(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p {
		return fmt.Errorf("the path must be absolute, without . or .. in it")
	}
	for _, no := range []string{"/proc", "/sys", "/dev"} {
		if p == "/" || p == no || strings.HasPrefix(p, no+"/") && p != "/dev/shm" {
			return fmt.Errorf("nothing may be mounted over %s", no)
		}
	}
	return nil
}

// resources are what the host enforces on the whole sandbox.
func resources(l driver.Limits, r ociRuntime, unified bool) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{
		// Everything not named by the runtime's own short list of devices.
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
	}
	if l.CPUMillis < 0 || l.Memory < 0 || l.Pids < 0 {
		return nil, fmt.Errorf("limits %+v: none may be negative", l)
	}
	if l.CPUMillis > 0 {
		quota, period := max(l.CPUMillis*cpuPeriod/1000, 1000), uint64(cpuPeriod)
		shares := uint64(max(l.CPUMillis*1024/1000, 2))
		out.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares}
	}
	if l.Memory > 0 {
		if l.Memory < minMemory {
			return nil, fmt.Errorf("memory limit of %d bytes: nothing starts below %d MiB", l.Memory, minMemory/mebi)
		}
		limit := l.Memory + r.Overhead
		out.Memory = &specs.LinuxMemory{Limit: &limit}
		if unified {
			// Both together, so that memory means memory. On v1 a swap limit
			// would keep the memory limit from ever being raised.
			swap := limit
			out.Memory.Swap = &swap
		}
	}
	if l.Pids > 0 {
		pids := l.Pids
		if r.Sandbox {
			// The host counts the sandbox's threads: about 20 idle and 2 a
			// process, and the sandbox does not survive a refusal.
			pids = max(512, 64+4*l.Pids)
		}
		out.Pids = &specs.LinuxPids{Limit: &pids}
	}
	return out, nil
}
