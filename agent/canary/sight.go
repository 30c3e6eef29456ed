package canary

import (
	"bytes"
	"encoding/json"
	"fmt"

	"redoubt.dev/redoubt/isolation/surface"
)

// Sight is the canary's answer, one line of JSON; deploy/runtimes/canary
// writes it. Everything in it is a claim until compared.
type Sight struct {
	Nonce string `json:"nonce"`

	Release     string   `json:"release"`
	Version     string   `json:"version"`
	Machine     string   `json:"machine"`
	ProcVersion string   `json:"procVersion"`
	BootID      string   `json:"bootID"`
	VDSO        string   `json:"vdso"`
	UptimeNs    int64    `json:"uptimeNs"`
	KernelLog   []string `json:"kernelLog"`

	PID        int               `json:"pid"`
	UID        int               `json:"uid"`
	UIDMap     string            `json:"uidMap"`
	Namespaces map[string]uint64 `json:"namespaces"`
	Devices    []Device          `json:"devices"`
	Mounts     []string          `json:"mounts"`

	CapEff     string `json:"capEff"`
	CapBnd     string `json:"capBnd"`
	NoNewPrivs bool   `json:"noNewPrivs"`
	Seccomp    int    `json:"seccomp"`

	Tries  []Try `json:"tries"`
	TookNs int64 `json:"tookNs"`
}

// Device is a device node that the canary found.
type Device struct {
	Path  string `json:"path"`
	Block bool   `json:"block"`
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
}

// Try is something forbidden that the canary tried, and the error it got.
type Try struct {
	What  string `json:"what"`
	Errno int    `json:"errno"`
}

// maxAnswer bounds what is read of a canary.
const maxAnswer = 256 << 10

// parse reads the first line of out. Fields that it does not know are a newer
// canary's and do no harm.
func parse(out []byte) (Sight, error) {
	line, _, whole := bytes.Cut(out, []byte("\n"))
	if !whole {
		return Sight{}, fmt.Errorf("read the canary's answer: %d bytes without an end", len(out))
	}
	if len(line) > maxAnswer {
		return Sight{}, fmt.Errorf("read the canary's answer: %d bytes are more than %d", len(line), maxAnswer)
	}
	var s Sight
	if err := json.Unmarshal(line, &s); err != nil {
		return Sight{}, fmt.Errorf("read the canary's answer: %w", err)
	}
	return s, nil
}

// notable are the devices beyond those that stand in every container.
func (s Sight) notable() []surface.Device {
	var d surface.Devices
	for _, v := range s.Devices {
		d.Visible = append(d.Visible, surface.Device(v))
	}
	return d.Notable()
}
