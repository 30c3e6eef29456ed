package kvm

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const supported = true

const (
	// kickEvery is how often a running guest is interrupted to look at the
	// clock.
	kickEvery = 2 * time.Millisecond
	// modeSlice is the CPU time for the steps, rateSlice for one try of the
	// rate: at usableRate it would make 50,000 iterations.
	modeSlice = 25 * time.Millisecond
	rateSlice = 25 * time.Millisecond
	// wallSlice ends a try whose thread gets no CPU.
	wallSlice = 400 * time.Millisecond
	// maxExits ends a guest that goes on talking.
	maxExits = 64
)

// runGuest measures. It is called in a process of its own.
func runGuest() (o outcome) {
	runtime.LockOSThread()
	fail := func(stage string, err error) outcome {
		o.Stage, o.Error = stage, err.Error()
		o.Denied = stage == "open" && errors.Is(err, os.ErrPermission)
		return o
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("open", err)
	}
	defer unix.Close(fd)
	for try := range triesWanted {
		var stage string
		if stage, err = o.steps(fd, try); err != nil {
			return fail(stage, err)
		}
		if o.Steps == allSteps && o.End == "halt" {
			break
		}
	}
	if stage, err := o.rates(fd); err != nil {
		return fail(stage, err)
	}
	return o
}

// steps runs the guest from its start and notes how far it came.
func (o *outcome) steps(kvm, try int) (stage string, err error) {
	m, stage, err := newMachine(kvm)
	if err != nil {
		return stage, err
	}
	defer m.close()
	o.Steps, o.End = "", ""
	if err := m.setRegs(codeAt); err != nil {
		return "set registers", err
	}
	r := m.run(modeSlice, func(c byte) { o.Steps += string(c) }, 2)
	o.End = r.end
	o.Starved = o.Starved || r.starved
	return "", nil
}

// rates runs the loop until one try is fast enough, at most triesWanted times.
func (o *outcome) rates(kvm int) (stage string, err error) {
	m, stage, err := newMachine(kvm)
	if err != nil {
		return stage, err
	}
	defer m.close()
	for range triesWanted {
		if err := m.setRegs(rateAt); err != nil {
			return "set registers", err
		}
		finished := false
		r := m.run(rateSlice, func(c byte) { finished = finished || c == 'R' }, 1)
		if r.starved {
			o.Starved = true
			continue
		}
		done := float64(rateIterations)
		if !finished {
			left, rip, err := m.progress()
			if err != nil || rip < rateAt || rip >= breakpointAt || left > rateIterations {
				continue // it is not in the loop: nothing to count
			}
			done -= float64(left)
		}
		rate := done / math.Max(r.cpu.Seconds(), 1e-6)
		o.Rates = append(o.Rates, rate)
		if rate >= usableRate {
			break
		}
	}
	return "", nil
}

// kick interrupts the thread again and again, which is what brings KVM_RUN
// back from a guest that does not exit. The signal is the one that the Go
// runtime itself uses to interrupt threads, and ignores when it did not. Only a
// running guest is interrupted: making a machine takes longer than kickEvery
// on a slow host, and would never get done.
func kick(tid int) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(kickEvery)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
			}
		}
	}()
	return func() { close(end); <-ended }
}

// result is one run of a guest.
type result struct {
	end     string // how it ended
	cpu     time.Duration
	starved bool
}

// run lets the processor go until it has halted halts times, fails or has used
// its slice of CPU time. heard takes what the guest says.
func (m *machine) run(slice time.Duration, heard func(byte), halts int) result {
	defer kick(unix.Gettid())()
	began, cpu0 := time.Now(), threadCPU()
	used := func() time.Duration { return threadCPU() - cpu0 }
	for exits := 0; exits < maxExits; {
		err := m.enter()
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			if used() >= slice {
				return result{end: "it does not come to an end", cpu: used()}
			}
			if time.Since(began) > wallSlice {
				return result{end: "no CPU time", cpu: used(), starved: true}
			}
			continue
		case err != nil:
			return result{end: "KVM_RUN: " + err.Error(), cpu: used()}
		}
		exits++
		switch reason := m.exitReason(); reason {
		case exitIO:
			heard(m.ioByte())
		case exitHalt:
			if halts--; halts <= 0 {
				return result{end: "halt", cpu: used()}
			}
		case exitShutdown:
			return result{end: "shutdown", cpu: used()}
		case exitInternal:
			return result{end: fmt.Sprintf("KVM internal error, suberror %d", m.word(32)), cpu: used()}
		case exitFailEntry:
			return result{end: fmt.Sprintf("the processor refuses to enter the guest, %#x", m.word(32)), cpu: used()}
		default:
			return result{end: fmt.Sprintf("unexpected exit %d", reason), cpu: used()}
		}
	}
	return result{end: "too many exits", cpu: used()}
}

func threadCPU() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
