package canary

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// kernel is what tells one running kernel from another.
type kernel struct {
	vdso        string // digest of the code that it maps into every process
	bootID      string
	procVersion string
}

// hostKernel looks at the kernel that this process runs on.
func hostKernel() (kernel, error) {
	var k kernel
	var err error
	if k.vdso, err = vdso(); err != nil {
		return k, fmt.Errorf("look at the host's kernel: %w", err)
	}
	for path, into := range map[string]*string{
		"/proc/sys/kernel/random/boot_id": &k.bootID, "/proc/version": &k.procVersion,
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			return k, fmt.Errorf("look at the host's kernel: %w", err)
		}
		*into = strings.TrimSpace(string(text))
	}
	return k, nil
}

// same says whether the canary ran on k, and by what that shows; "" means that
// it ran on another kernel. Each kernel build has a vDSO of its own, and it
// cannot be changed by a namespace or a file.
func (k kernel) same(s Sight) string {
	switch {
	case s.VDSO == "":
		return "no vDSO to tell kernels apart"
	case s.VDSO == k.vdso:
		return "the same vDSO"
	case s.BootID == k.bootID:
		return "the same boot id"
	case s.ProcVersion == k.procVersion:
		return "the same build"
	}
	return ""
}

// vdso digests this process's vDSO, in the way that the canary does.
func vdso() (string, error) {
	auxv, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		return "", err
	}
	const atSysinfoEHDR = 33
	var base uint64
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if binary.NativeEndian.Uint64(auxv) == atSysinfoEHDR {
			base = binary.NativeEndian.Uint64(auxv[8:])
		}
	}
	if base == 0 {
		return "", errors.New("this process has no vDSO")
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return "", err
	}
	defer mem.Close()
	header := make([]byte, 64)
	if _, err := mem.ReadAt(header, int64(base)); err != nil {
		return "", fmt.Errorf("read the vDSO: %w", err)
	}
	size := binary.NativeEndian.Uint64(header[40:]) +
		uint64(binary.NativeEndian.Uint16(header[58:]))*uint64(binary.NativeEndian.Uint16(header[60:]))
	if string(header[:4]) != "\x7fELF" || size < 64 || size > 1<<16 {
		return "", errors.New("the vDSO is no ELF image")
	}
	image := make([]byte, size)
	if _, err := mem.ReadAt(image, int64(base)); err != nil {
		return "", fmt.Errorf("read the vDSO: %w", err)
	}
	sum := sha256.Sum256(image)
	return hex.EncodeToString(sum[:]), nil
}
