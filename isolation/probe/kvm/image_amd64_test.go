package kvm

// assembled is the guest's code as it lies in its memory.
func assembled(n int) []byte {
	mem := make([]byte, memorySize)
	image(mem)
	return mem[codeAt : codeAt+n]
}
