package main

// System calls that package syscall has no name for.
const (
	sysKeyctl         = 250
	sysPerfEventOpen  = 298
	sysOpenByHandleAt = 304
	sysSetns          = 308
	sysProcessVMReadv = 310
	sysBPF            = 321
	sysUserfaultfd    = 323
	sysIOUringSetup   = 425
)
