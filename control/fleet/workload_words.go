package fleet

import (
	"slices"
	"strings"
)

// The words that a workload file knows, in the order in which an error lists
// them.
var (
	KindWords          = []string{"Service", "Job"}
	FloorWords         = []string{"container", "sandbox", "vm", "microvm"}
	PreferWords        = []string{"strongest", "container", "sandbox", "vm", "microvm"}
	OnUnavailableWords = []string{"Degrade", "Pend"}
	ReplaceWords       = []string{"Eager", "Safe", "Never"}
	RestartWords       = []string{"Always", "OnFailure", "Never"}
	PullWords          = []string{"IfNotPresent", "Always", "Never"}
	NetworkWords       = []string{"bridge", "none"}
	ProtocolWords      = []string{"TCP", "UDP"}
	SchemeWords        = []string{"HTTP", "HTTPS"}
	MediumWords        = []string{"Memory"}
	LimitWords         = []string{"cpu", "memory", "pids"}
	RequestWords       = []string{"cpu", "memory"}
)

// CapabilityWords are Linux' capabilities without the prefix "CAP_".
var CapabilityWords = []string{
	"AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF",
	"CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER",
	"FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE",
	"MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE",
	"NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP",
	"SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE",
	"SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE",
	"SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
}

// Nearest finds the word that a person most likely meant, "" if none is near:
// the same but for case, the beginning of it, or at most two slips away (one,
// for short words).
func Nearest(word string, words []string) string {
	low := strings.ToLower(word)
	if low == "" {
		return ""
	}
	best, bestAt := "", 3
	for _, w := range words {
		lw := strings.ToLower(w)
		if lw == low {
			return w
		}
		allowed := 2
		if len(lw) <= 4 || len(low) <= 3 {
			allowed = 1
		}
		if d := slips(low, lw); d <= allowed && d < bestAt {
			best, bestAt = w, d
		}
	}
	if best == "" && len(low) >= 3 {
		for _, w := range words {
			if lw := strings.ToLower(w); strings.HasPrefix(lw, low) || strings.HasPrefix(low, lw) && len(lw) >= 3 {
				return w
			}
		}
	}
	return best
}

// slips is the optimal string alignment distance: letters added, dropped,
// changed, or two neighbours swapped.
func slips(a, b string) int {
	if d := len(a) - len(b); d > 3 || d < -3 {
		return 4
	}
	prev2, prev := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur := make([]int, len(b)+1)
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev = prev, cur
	}
	return prev[len(b)]
}

// oneOf lists words as a person would say them: "Eager, Safe or Never".
func oneOf(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

func isWord(s string, words []string) bool { return slices.Contains(words, s) }
