package probe

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe/kvm"
)

// What the host keeps for itself, agent and containerd included, when it says
// what may be allocated.
const (
	reservedMemory    = 128 << 20 // and one part in memoryShare of all
	memoryShare       = 32
	reservedCPUMillis = 50
)

// Host measures the facts of this host. It runs the KVM probe, which takes
// about a tenth of a second.
func Host(ctx context.Context) (isolation.Host, error) {
	h := isolation.Host{Arch: runtime.GOARCH}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return h, fmt.Errorf("host facts: uname: %w", err)
	}
	h.Kernel = unix.ByteSliceToString(u.Release[:])
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return h, fmt.Errorf("host facts: boot id: %w", err)
	}
	h.BootID = strings.TrimSpace(string(id))
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return h, fmt.Errorf("host facts: cgroups: %w", err)
	}
	h.CgroupV2 = uint32(fs.Type) == unix.CGROUP2_SUPER_MAGIC
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return h, fmt.Errorf("host facts: processors: %w", err)
	}
	h.CPUMillis = max(int64(cpus.Count())*1000-reservedCPUMillis, 0)
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return h, fmt.Errorf("host facts: memory: %w", err)
	}
	total, err := memTotal(info)
	if err != nil {
		return h, fmt.Errorf("host facts: memory: %w", err)
	}
	h.MemoryBytes = max(total-total/memoryShare-reservedMemory, 0)
	h.KVM = kvm.Probe(ctx)
	return h, nil
}

// memTotal reads /proc/meminfo.
func memTotal(info []byte) (int64, error) {
	for line := range bytes.Lines(info) {
		rest, ok := bytes.CutPrefix(line, []byte("MemTotal:"))
		if !ok {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(string(rest)), " kB"), 10, 64)
		if err != nil || kb < 0 || kb > 1<<50 {
			return 0, fmt.Errorf("cannot read %q", bytes.TrimSpace(line))
		}
		return kb << 10, nil
	}
	return 0, fmt.Errorf("no MemTotal in /proc/meminfo")
}

// BootTime is the time since boot, suspend included: the clock by which the
// age of a proof is kept, since it never jumps.
func BootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// The kernel always has this clock; a failure would be a bug here.
		panic("probe: CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
