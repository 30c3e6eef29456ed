//go:build !amd64

package kvm

// supported says that runGuest is there.
const supported = false

func runGuest() outcome {
	return outcome{Stage: "run a guest", Error: "no probe for this architecture"}
}
