package surface

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The test binary is its own tracee: run with childEnv set it takes on the
// filters that the name stands for, says so and waits.
const childEnv = "SURFACE_TEST_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		child(what)
	}
	os.Exit(m.Run())
}

func child(what string) {
	runtime.LockOSThread()
	die := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	install := func(p Program, flags uintptr) {
		die(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		prog := unix.SockFprog{Len: uint16(len(p)), Filter: (*unix.SockFilter)(unsafe.Pointer(&p[0]))}
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags,
			uintptr(unsafe.Pointer(&prog))); errno != 0 {
			die(errno)
		}
	}
	const all = unix.SECCOMP_FILTER_FLAG_TSYNC
	switch what {
	case "open":
	case "filtered":
		install(refuse(unix.SYS_PTRACE, unix.SYS_KEYCTL, unix.SYS_BPF), all)
		install(onlyWithArg0(unix.SYS_SOCKET, unix.AF_UNIX), all)
	case "one thread open":
		// Without TSYNC the runtime's other threads stay as they are.
		install(refuse(unix.SYS_PTRACE), 0)
	case "device":
		_, err := os.Open("/dev/loop-control")
		die(err)
	}
	fmt.Println("ready")
	go func() { // a wait that EINTR must not disturb
		for {
			time.Sleep(time.Millisecond)
		}
	}()
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	fmt.Println("alive")
	os.Exit(0)
}

type tracee struct {
	cmd   *exec.Cmd
	lines *bufio.Reader
	in    func() error
}

func start(t *testing.T, what string) tracee {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: reading seccomp filters takes CAP_SYS_ADMIN")
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("child %q: %q, %v", what, line, err)
	}
	return tracee{cmd, r, func() error { _, err := in.Write([]byte("\n")); return err }}
}

// stillRuns proves that the measurement left no thread stopped.
func (c tracee) stillRuns(t *testing.T) {
	t.Helper()
	if err := c.in(); err != nil {
		t.Fatal(err)
	}
	line := make(chan string, 1)
	go func() { s, _ := c.lines.ReadString('\n'); line <- s }()
	select {
	case s := <-line:
		if s != "alive\n" {
			t.Errorf("after the measurement the child says %q", s)
		}
	case <-time.After(5 * time.Second):
		t.Error("the child hangs after the measurement")
	}
}

func TestMeasureReadsTheFiltersOfALiveProcess(t *testing.T) {
	c := start(t, "filtered")
	p, err := Measure(t.Context(), c.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	s := p.Seccomp
	if s.Mode != ModeFilter || s.Filters != 2 || s.Reachable != s.Total-3 || s.ByArgument != 1 || s.Threads < 2 {
		t.Errorf("got %v, %d filters on %d threads, %d of %d, %d by argument",
			s.Mode, s.Filters, s.Threads, s.Reachable, s.Total, s.ByArgument)
	}
	for _, name := range []string{"ptrace", "keyctl", "bpf"} {
		if slices.Contains(s.Calls, name) {
			t.Errorf("%s counts as reachable", name)
		}
	}
	if !p.NoNewPrivs {
		t.Error("no-new-privileges is not seen")
	}
	if got := p.Surface(); got.Syscalls != s.Reachable || !got.Measured || got.Source == "" {
		t.Errorf("surface: %+v", got)
	}
	c.stillRuns(t)
}

func TestMeasureSeesAThreadWithoutAFilter(t *testing.T) {
	c := start(t, "one thread open")
	p, err := Measure(t.Context(), c.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if s := p.Seccomp; s.Mode != ModeOff || s.Reachable != s.Total || s.Filters != 0 {
		t.Errorf("got %v, %d of %d, %d filters", s.Mode, s.Reachable, s.Total, s.Filters)
	}
	c.stillRuns(t)
}

func TestMeasureSeesDevicesNamespacesAndCapabilities(t *testing.T) {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs /dev/loop-control to hold a device")
	}
	c := start(t, "device")
	p, err := Measure(t.Context(), c.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	held := slices.ContainsFunc(p.Devices.Open, func(d Device) bool { return d.Path == "/dev/loop-control" && d.Major == 10 })
	if !held || p.Devices.Count() == 0 {
		t.Errorf("devices: %v", p.Devices.Open)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	if p.Namespaces["net"] != st.Ino {
		t.Errorf("net namespace %d, want %d", p.Namespaces["net"], st.Ino)
	}
	if p.Caps.Effective&(1<<unix.CAP_SYS_ADMIN) == 0 || p.Seccomp.Mode != ModeOff {
		t.Errorf("caps %x, seccomp %v", p.Caps.Effective, p.Seccomp.Mode)
	}
	if exe, _ := os.Readlink("/proc/self/exe"); p.Exe != exe {
		t.Errorf("exe %q, want %q", p.Exe, exe)
	}
	c.stillRuns(t)
}

func TestMeasureOfAProcessThatIsGone(t *testing.T) {
	c := start(t, "open")
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	if _, err := Measure(t.Context(), c.cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
}

func TestMeasureOfAZombie(t *testing.T) {
	c := start(t, "open")
	_ = c.cmd.Process.Kill()
	for range 500 {
		text, _ := os.ReadFile(procPath(c.cmd.Process.Pid, "stat"))
		if strings.Contains(string(text), ") Z ") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := Measure(t.Context(), c.cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
}

// Processes that die at a random moment of their measurement must give ErrGone
// or a whole result, never anything else, and never hang.
func TestMeasureWhileTheProcessDies(t *testing.T) {
	for i := range 12 {
		c := start(t, "filtered")
		go func() {
			time.Sleep(time.Duration(i*150) * time.Microsecond)
			_ = syscall.Kill(c.cmd.Process.Pid, syscall.SIGKILL)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := Measure(ctx, c.cmd.Process.Pid)
		cancel()
		if err != nil && !errors.Is(err, ErrGone) {
			t.Errorf("round %d: %v", i, err)
		}
	}
}

func TestMeasuresAtOnceDoNotCorruptEachOther(t *testing.T) {
	c := start(t, "filtered")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p, err := Measure(t.Context(), c.cmd.Process.Pid)
			// A thread takes one tracer at a time: denied is a fair answer.
			if err == nil && p.Seccomp.Reachable != p.Seccomp.Total-3 {
				t.Errorf("reachable %d", p.Seccomp.Reachable)
			} else if err != nil && !errors.Is(err, ErrDenied) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c.stillRuns(t)
}

func TestMeasureOfAStoppedProcessLeavesItStopped(t *testing.T) {
	c := start(t, "filtered")
	pid := c.cmd.Process.Pid
	stopped := func() bool {
		text, _ := os.ReadFile(procPath(pid, "stat"))
		return strings.Contains(string(text), ") T ")
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); !stopped(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not stop")
		}
	}
	p, err := Measure(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	if p.Seccomp.Filters != 2 {
		t.Errorf("%d filters", p.Seccomp.Filters)
	}
	// What wakes it does so within the call; the pause is for a kernel that is
	// slow to tell.
	time.Sleep(20 * time.Millisecond)
	if !stopped() {
		t.Error("the measurement woke a stopped process")
	}
	_ = syscall.Kill(pid, syscall.SIGCONT)
	c.stillRuns(t)
}

func TestMeasureHonoursItsContext(t *testing.T) {
	c := start(t, "filtered")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	_, err := Measure(ctx, c.cmd.Process.Pid)
	if time.Since(began) > time.Second {
		t.Errorf("took %v", time.Since(began))
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.stillRuns(t)
}

func FuzzParseStatus(f *testing.F) {
	if text, err := os.ReadFile("/proc/self/status"); err == nil {
		f.Add(text)
	}
	f.Add([]byte("State:\tZ (zombie)\nSeccomp:\t300\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, _ = parseStatus(text)
	})
}
