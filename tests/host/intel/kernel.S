# A bzImage with an uncompressed kernel, so that the emulator does not have to unpack it. It consists of the set-up code of Debian's
# bzImage (`original`), the instructions that enter the kernel (in place of those that unpack it), and the kernel's memory image
# (`flat`). See Documentation/arch/x86/boot.rst; offsets below 0x270 are fields of its header.
#
# Symbols to define: SETUP_SIZE, the bytes of set-up code in `original`; FLAT_SIZE, the bytes of `flat`.

    # The address where the loader puts the part after the set-up code, and the kernel's link address.
    .set LOADED_AT, 0x100000
    .set KERNEL_AT, 0x1000000

    .incbin "original", 0, 0x1f4
    .long (KERNEL_AT - LOADED_AT + FLAT_SIZE) / 16      # syssize
    .incbin "original", 0x1f8, 0x234 - 0x1f8
    .byte 0                                             # relocatable_kernel: it has to lie where it is linked to
    .incbin "original", 0x235, SETUP_SIZE - 0x235

    .macro address name
    .set \name\()_address, LOADED_AT + \name - protected_mode
    .endm

# The loader enters here in protected mode with flat segments, paging off, and the address of `boot_params` in ESI. The kernel needs
# long mode and an identity mapping.
    .code32
protected_mode:
    lgdt gdt_pointer_address
    movl %cr4, %eax
    orl $0x20, %eax                                     # PAE
    movl %eax, %cr4
    movl $level4_address, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx                              # EFER
    rdmsr
    orl $0x100, %eax                                    # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax                               # PG
    movl %eax, %cr0
    ljmp $8, $long_mode_address

    .code64
long_mode:
    movl %esi, %esi                                     # clears the upper half
    movl $KERNEL_AT, %eax
    jmp *%rax

gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff     # 64-bit code, data
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt_address

# The first gigabyte, in pages of two megabytes.
    .org protected_mode + 0x1000
level4:
    .quad level3_address + 3
    .org protected_mode + 0x2000
level3:
    .quad level2_address + 3
    .org protected_mode + 0x3000
level2:
    .set page, 0
    .rept 512
    .quad page + 0x83
    .set page, page + 0x200000
    .endr

    address long_mode
    address gdt
    address gdt_pointer
    address level4
    address level3
    address level2

    .org protected_mode + KERNEL_AT - LOADED_AT
    .incbin "flat"
