# The guest of the probe. guest_amd64.go holds what this assembles to; the test
# TestGuestCodeIsItsSource assembles it again and compares.
#
# It is entered at 0x8000 in long mode, ring 0, with %esi = 1 if the processor
# has XSAVE, or at 0x8200 for the rate loop alone. Everything within its 64 KiB
# is mapped one to one. It speaks by OUT to port 0x10, one letter a step.
.code64
.org 0x000
start:
	mov	$0xb000, %rsp
	mov	$'L', %al		# it runs in long mode
	out	%al, $0x10
	xor	%r12d, %r12d
	int3				# the handler counts in %r12
	cmp	$1, %r12d
	jne	bad
	mov	$'X', %al		# exceptions work
	out	%al, $0x10
	mov	$0xd000, %edi		# sixteen zero bytes
	xor	%eax, %eax
	xor	%edx, %edx
	xor	%ecx, %ecx
	mov	$0x1111, %ebx
	lock cmpxchg16b (%rdi)
	jnz	bad
	cmpq	$0x1111, (%rdi)
	jne	bad
	test	%esi, %esi
	jz	1f
	mov	%cr4, %rax
	or	$0x40000, %rax		# OSXSAVE
	mov	%rax, %cr4
	xor	%ecx, %ecx
	mov	$3, %eax
	xor	%edx, %edx
	xsetbv
	mov	$0xe000, %edi		# a zeroed XSAVE area
	xrstor64 (%rdi)
1:	mov	$'I', %al		# and so do odd instructions
	out	%al, $0x10
	mov	$0xc0000081, %ecx	# STAR: kernel segments from 0x08
	xor	%eax, %eax
	mov	$0x00180008, %edx
	wrmsr
	mov	$0xc0000082, %ecx	# LSTAR: where system calls enter
	mov	$0x8100, %eax
	xor	%edx, %edx
	wrmsr
	mov	$0xc0000084, %ecx	# FMASK
	mov	$0x200, %eax
	wrmsr
	pushq	$0x23			# to ring 3
	pushq	$0xc000
	pushq	$0x2
	pushq	$0x2b
	pushq	$0x8180
	iretq

.org 0x100
entry:
	mov	$0xb000, %rsp
	and	$3, %r13d		# it came from ring 3
	cmp	$3, %r13d
	jne	bad
	cmp	$0x77, %eax
	jne	bad
	mov	$'S', %al		# a system call from ring 3 works
	out	%al, $0x10
	hlt
	mov	$'H', %al		# and so does going on after a halt
	out	%al, $0x10
	hlt
bad:
	mov	$'B', %al
	out	%al, $0x10
	hlt

.org 0x180
user:
	mov	%cs, %r13d
	mov	$0x77, %eax
	syscall
	ud2

.org 0x200
rate:
	mov	$200000, %rcx
1:	dec	%rcx
	jnz	1b
	mov	$'R', %al
	out	%al, $0x10
	hlt

.org 0x280
breakpoint:
	inc	%r12d
	iretq
