package isolation

import (
	"maps"
	"slices"
)

// Names of the runtimes that this version knows. A report may carry others:
// they are ranked like these, by what was proven.
const (
	RuntimeRunc        Name = "runc"
	RuntimeCrun        Name = "crun"
	RuntimeGVisor      Name = "gvisor"
	RuntimeNabla       Name = "nabla"
	RuntimeKataQEMU    Name = "kata-qemu"
	RuntimeKataCLH     Name = "kata-clh"
	RuntimeKataFC      Name = "kata-fc"
	RuntimeFirecracker Name = "firecracker"
)

// catalogue holds what is true of a runtime wherever it is installed, and
// nothing that a probe can measure.
var catalogue = map[Name]struct {
	class         Class // when it works as it promises
	unikernelOnly bool  // runs unikernel images only, never an ordinary one
}{
	RuntimeRunc:        {class: ClassContainer},
	RuntimeCrun:        {class: ClassContainer},
	RuntimeGVisor:      {class: ClassSandbox},
	RuntimeNabla:       {class: ClassSandbox, unikernelOnly: true},
	RuntimeKataQEMU:    {class: ClassVM},
	RuntimeKataCLH:     {class: ClassVM},
	RuntimeKataFC:      {class: ClassMicroVM},
	RuntimeFirecracker: {class: ClassMicroVM},
}

// RunsOrdinaryImages tells whether a runtime starts an ordinary OCI image. A
// Solo5 tender (nabla) takes unikernels only, and its launcher is known to fall
// back silently to runc when given anything else.
func RunsOrdinaryImages(n Name) bool { return !catalogue[n].unikernelOnly }

// Runtimes are the names of all that the catalogue has, sorted.
func Runtimes() []Name { return slices.Sorted(maps.Keys(catalogue)) }

// PromisedClass is the class that a known runtime is of when it works, and
// ClassUnknown for one that the catalogue does not have. It is what a probe
// may claim for a runtime that it could not run; only a verified finding's own
// class is ever placed on.
func PromisedClass(n Name) Class { return catalogue[n].class }
