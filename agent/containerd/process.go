package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one process for good: a pid alone is reused.
type process struct {
	Pid   int
	Start uint64 // clock ticks after boot, field 22 of /proc/PID/stat
}

// findProcess reads what pid is now. A zombie counts as gone.
func findProcess(pid int) (process, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// The name in parentheses may itself hold spaces and parentheses.
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return process{}, fmt.Errorf("/proc/%d/stat has no name", pid)
	}
	fields := strings.Fields(string(data[i+1:]))
	if len(fields) < 20 {
		return process{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+2)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return process{}, os.ErrNotExist
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return process{Pid: pid, Start: start}, nil
}

func (p process) alive() bool {
	if p.Pid <= 0 {
		return false
	}
	q, err := findProcess(p.Pid)
	return err == nil && q == p
}

// signal sends to this very process, never to one that took over its pid.
func (p process) signal(sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !p.alive() {
		return os.ErrProcessDone
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// wait blocks until p is gone or the timeout passes; it tells whether p is
// gone. It holds no goroutine.
func (p process) wait(timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return p.gone(ctx)
}

// gone blocks until p is gone or ctx ends; it tells whether p is gone. The
// kernel wakes it: whoever waits takes no thread and looks at nothing meanwhile.
func (p process) gone(ctx context.Context) bool {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if err != nil {
		return !p.alive()
	}
	_ = unix.SetNonblock(fd, true) // or NewFile gives it to no poller
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	if !p.alive() { // it may have gone before, and the descriptor be another's
		return true
	}
	conn, err := f.SyscallConn()
	if err == nil {
		defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
		err = conn.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return p.goneBySight(ctx) // the poller does not take it
	}
	return !p.alive()
}

// goneBySight is gone where the kernel does not tell.
func (p process) goneBySight(ctx context.Context) bool {
	for p.alive() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
	return true
}

// started converts ticks after boot to wall-clock time.
func (p process) started() time.Time {
	return bootTime().Add(time.Duration(p.Start) * (time.Second / clockTicks))
}

// clockTicks is USER_HZ, which is 100 on every architecture that Go knows.
const clockTicks = 100

// bootTime is when the host booted, by this process's first look: the kernel
// derives it from the wall clock, and a start time must not move with that.
var bootTime = sync.OnceValue(func() time.Time {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(now.Nano())).Round(0)
})

var bootID = sync.OnceValue(func() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
})

func cmdline(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
}

// runsFile tells whether pid executes the file at path (by identity: the path
// that the kernel shows may be another link to it).
func runsFile(pid int, path string) (bool, error) {
	exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false, err
	}
	file, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return os.SameFile(exe, file), nil
}

// seesDir tells whether dir is the same directory for pid as for us. Agents may
// share a kernel and have mounts of their own, and then the same path is
// another's.
func seesDir(pid int, dir string) bool {
	theirs, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid), "root", dir))
	if err != nil {
		return false
	}
	ours, err := os.Stat(dir)
	return err == nil && os.SameFile(theirs, ours)
}

// hostProcesses calls f for every process in our own pid namespace. What runs
// inside a container is in another one and can put what it likes in its
// command line.
func hostProcesses(f func(pid int, args []string)) {
	self, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(dir + "/ns/pid"); err != nil || ns != self {
			continue
		}
		if args := cmdline(pid); len(args) > 0 {
			f(pid, args)
		}
	}
}

// flagValue returns what follows flag in a command line.
func flagValue(args []string, flag string) string {
	for i, a := range args[:max(len(args)-1, 0)] {
		if a == flag {
			return args[i+1]
		}
	}
	return ""
}
