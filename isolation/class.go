package isolation

import "fmt"

// Class is how strong the boundary around a workload is. Classes are ordered:
// a larger value is a stronger boundary. The zero value is ClassUnknown, which
// is below every real class and never satisfies a floor.
type Class uint8

const (
	// ClassUnknown says that nothing was established.
	ClassUnknown Class = iota
	// ClassContainer shares the host's kernel (runc, crun).
	ClassContainer
	// ClassSandbox answers system calls in user space (gVisor) or runs a
	// unikernel under a tender that is filtered to very few calls (Nabla).
	ClassSandbox
	// ClassVM has a guest kernel of its own on hardware virtualisation.
	ClassVM
	// ClassMicroVM is a VM whose monitor is minimal and itself confined.
	ClassMicroVM
)

var classNames = [...]string{"unknown", "container", "sandbox", "vm", "microvm"}

// Classes lists the real classes, weakest first.
func Classes() []Class {
	return []Class{ClassContainer, ClassSandbox, ClassVM, ClassMicroVM}
}

// String returns the word that files, the API and the CLI use for c.
func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// ParseClass reads the word of a real class. The error lists what is allowed.
func ParseClass(s string) (Class, error) {
	for _, c := range Classes() {
		if s == c.String() {
			return c, nil
		}
	}
	return ClassUnknown, fmt.Errorf("isolation class %q is none of container, sandbox, vm, microvm", s)
}
