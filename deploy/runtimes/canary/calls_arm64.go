package main

// System calls that package syscall has no name for.
const (
	sysKeyctl         = 219
	sysPerfEventOpen  = 241
	sysOpenByHandleAt = 265
	sysSetns          = 268
	sysProcessVMReadv = 270
	sysBPF            = 280
	sysUserfaultfd    = 282
	sysIOUringSetup   = 425
)
