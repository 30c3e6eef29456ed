package surface

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	// ErrGone says that the process ended before or while it was measured.
	ErrGone = errors.New("the process is gone")
	// ErrDenied says that the kernel does not let this process look: it lacks
	// CAP_SYS_ADMIN or CAP_SYS_PTRACE, runs under seccomp itself, or another
	// tracer holds the thread.
	ErrDenied = errors.New("not permitted to look into the process")
	// ErrUnsupported says that this kernel or architecture cannot tell.
	ErrUnsupported = errors.New("not supported here")
)

// stopWait is how long one thread may take to stop when the caller's context
// sets no earlier end. A thread in an uninterruptible call may take for ever.
const stopWait = 2 * time.Second

// readFilters reads the filters of the given threads, in that order. A thread
// that is gone by then gives no element. What it traced is released in any
// case when it returns.
func readFilters(ctx context.Context, tids []int) ([]thread, error) {
	type result struct {
		threads []thread
		err     error
	}
	done := make(chan result, 1)
	// A thread that is left with a tracee stays locked, so that it ends with
	// its goroutine and the kernel lets go of the tracee. Otherwise it goes back
	// to the pool: its end would also kill whatever child it had started with a
	// parent-death signal.
	var trace func()
	trace = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread would not end. Keep it busy until another
			// thread has done the work.
			inner := make(chan struct{})
			go func() { defer close(inner); trace() }()
			<-inner
			runtime.UnlockOSThread()
			return
		}
		var r result
		attached := false
		for _, tid := range tids {
			t, held, err := readThread(ctx, tid)
			attached = attached || held
			if errors.Is(err, ErrGone) {
				continue
			}
			if err != nil {
				r.err = fmt.Errorf("thread %d: %w", tid, err)
				break
			}
			r.threads = append(r.threads, t)
		}
		if !attached {
			runtime.UnlockOSThread()
		}
		done <- r
	}
	go trace()
	r := <-done // readThread honours ctx, so this ends
	return r.threads, r.err
}

// readThread attaches to one thread, reads its filters and detaches; attached
// says that it may still hold it. It runs on a locked OS thread.
func readThread(ctx context.Context, tid int) (t thread, attached bool, err error) {
	if err := unix.PtraceSeize(tid); err != nil {
		if exiting(tid) {
			return thread{}, false, ErrGone // the kernel says EPERM of such a thread
		}
		return thread{}, false, traceError("attach", err)
	}
	if err := unix.PtraceInterrupt(tid); err != nil {
		return thread{}, true, traceError("interrupt", err)
	}
	pending, err := awaitStop(ctx, tid)
	if err != nil {
		return thread{}, true, err
	}
	t = thread{mode: ModeFilter}
	for i := 0; ; i++ {
		p, err := filterAt(tid, i)
		if errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			derr := detach(tid, pending)
			return thread{}, derr != nil, traceError(fmt.Sprintf("read filter %d", i), err)
		}
		t.filters = append(t.filters, p)
	}
	if err := detach(tid, pending); err != nil {
		return thread{}, true, traceError("detach", err)
	}
	return t, false, nil
}

// awaitStop waits until the thread is in a ptrace stop. It polls, because a
// blocking wait could not be ended by ctx; the first polls come fast, since a
// healthy thread stops within microseconds. If the stop is that of a signal on
// its way to the thread, pending is the signal, which detach must hand on.
func awaitStop(ctx context.Context, tid int) (pending unix.Signal, err error) {
	deadline := time.Now().Add(stopWait)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		var status unix.WaitStatus
		got, err := unix.Wait4(tid, &status, unix.WNOHANG|unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, traceError("wait for the stop", err)
		case got == tid && (status.Exited() || status.Signaled()):
			return 0, ErrGone
		case got == tid && status.Stopped():
			if event := uint32(status) >> 16; event == 0 {
				return status.StopSignal(), nil
			}
			return 0, nil
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("it did not stop in time: %w", context.DeadlineExceeded)
		}
		time.Sleep(pause)
	}
}

// detach lets the stopped thread run on, with a signal if one was held up.
func detach(tid int, pending unix.Signal) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(tid), 0, uintptr(pending), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func filterAt(tid, index int) (Program, error) {
	n, err := getFilter(tid, index, nil)
	if err != nil {
		return nil, err
	}
	if n <= 0 || n > maxLength {
		return nil, fmt.Errorf("%d instructions: %w", n, unix.EINVAL)
	}
	p := make(Program, n)
	m, err := getFilter(tid, index, &p[0])
	if err != nil {
		return nil, err
	}
	return p[:min(m, n)], nil
}

// getFilter is ptrace(PTRACE_SECCOMP_GET_FILTER); Insn has the layout of
// struct sock_filter.
func getFilter(tid, index int, into *Insn) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER,
		uintptr(tid), uintptr(index), uintptr(unsafe.Pointer(into)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func traceError(doing string, err error) error {
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ECHILD):
		return ErrGone
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: %w (%v)", doing, ErrDenied, err)
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EMEDIUMTYPE):
		return fmt.Errorf("%s: %w (%v)", doing, ErrUnsupported, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
