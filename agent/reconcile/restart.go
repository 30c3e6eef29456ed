package reconcile

import (
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/store"
)

const (
	firstDelay = time.Second
	maxDelay   = 5 * time.Minute
	// steady is how long an attempt must have run for the delay to begin anew.
	steady = 10 * time.Minute

	defaultGrace = 10 * time.Second
)

// After says what becomes of an instance whose attempt has ended: it starts
// again after a back-off, or Ending names the phase that it ends in.
func After(a *Assignment, f store.Facts, exit driver.Exit, now store.Moment) store.Facts {
	rebooted := exit.Lost && f.Ran.Boot != now.Boot
	f = exited(f, exit)
	condemned := f.Condemned != "" && !rebooted
	switch {
	case condemned:
		f.Message = f.Condemned
	case rebooted:
		f.Message = "the node was restarted"
	case f.Message == "" && f.ExitCode == 0:
		f.Message = "ended"
	case f.Message == "":
		f.Message = fmt.Sprintf("exited with code %d%s", f.ExitCode, meaning(f.ExitCode))
	}
	f.LastEnd, f.Condemned, f.NotReady = clip(f.Message), "", ""
	good := exit.Code == 0 && !exit.Lost && !exit.OOM && !condemned
	if !good && !rebooted {
		f.Failures++
	}
	switch {
	case good && (a.Job || a.Restart != Always):
		f.Ending = store.Succeeded
		return f
	case a.Restart == Never:
		f.Ending = store.Failed
		return f
	case a.Job && f.Failures > a.BackoffLimit:
		f.Ending = store.Failed
		f.Message += fmt.Sprintf("; failed %d times, backoffLimit is %d", f.Failures, a.BackoffLimit)
		return f
	}
	f.Restarts++
	f.Phase = store.BackOff
	ran := f.Ran.Boot == now.Boot && now.At-f.Ran.At >= steady
	if rebooted || ran {
		f.Delay = 0
	}
	if rebooted {
		f.NotBefore = now
		return f
	}
	return backOff(f, now)
}

// failedStart says when to try again after an attempt that did not get to run. It
// does not count against a job's limit: what failed is not the workload.
func failedStart(f store.Facts, why string, now store.Moment) store.Facts {
	f.Phase, f.Message = store.BackOff, why
	f.LastEnd, f.NotReady = clip(why), ""
	f.Pid, f.Address = 0, ""
	return backOff(f, now)
}

// clip keeps what is told beside a message short.
func clip(s string) string {
	const most = 300
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// meaning says what shells mean by a code of their own.
func meaning(code int) string {
	switch code {
	case 126:
		return ", which is how a shell says that a command cannot be executed"
	case 127:
		return ", which is how a shell says that a command was not found"
	}
	return ""
}

func backOff(f store.Facts, now store.Moment) store.Facts {
	f.Delay = min(max(2*f.Delay, firstDelay), maxDelay)
	f.NotBefore = store.Moment{Boot: now.Boot, At: now.At + jitter(f.Delay, f.UID, f.Attempt)}
	return f
}

// jitter spreads d by a tenth either way. It follows from uid and attempt, so
// that Diff stays pure and instances that fell together do not rise together.
func jitter(d time.Duration, uid string, attempt uint64) time.Duration {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%d", uid, attempt)
	share := float64(h.Sum64()%2001)/1000 - 1 // -1 to 1
	return d + time.Duration(share*float64(d)/10)
}

func exited(f store.Facts, exit driver.Exit) store.Facts {
	f.Pid, f.ExitCode, f.Finished, f.Message = 0, exit.Code, exit.At, exit.Reason
	switch {
	case f.Message != "":
	case exit.OOM:
		f.Message = "memory limit reached"
	case exit.Lost:
		f.Message = "it ended while nobody watched; its exit code is not known"
	}
	return f
}
