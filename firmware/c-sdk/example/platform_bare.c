/* The example without an operating system or a C library, in QEMU: `mps2-an386` (Cortex-M4F) and `virt` (RISC-V). Output
 * and the exit status go by semihosting. It paints its stack and says how much of it was used. */

#include <stddef.h>
#include <stdint.h>

int example(void);

extern uint8_t data_load[], data_start[], data_end[], bss_start[], bss_end[], stack_bottom[], stack_top[];

enum { SYS_WRITE0 = 0x04, SYS_EXIT_EXTENDED = 0x20, STOPPED = 0x20026, PAINT = 0xa5 };

static long semihosting(long operation, const void *argument)
{
#if defined(__riscv)
    register long a0 __asm__("a0") = operation;
    register const void *a1 __asm__("a1") = argument;
    __asm__ volatile(".option push\n.option norvc\n.balign 16\nslli x0, x0, 0x1f\nebreak\nsrai x0, x0, 7\n.option pop"
                     : "+r"(a0) : "r"(a1) : "memory");
    return a0;
#else
    register long r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
#endif
}

void say(const char *text)
{
    semihosting(SYS_WRITE0, text);
}

void say_number(const char *text, uint64_t number)
{
    char digits[24];
    size_t at = sizeof digits;
    digits[--at] = 0;
    digits[--at] = '\n';
    do
        digits[--at] = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    say(text);
    say(digits + at);
}

static _Noreturn void leave(int status)
{
    const long reason[2] = { STOPPED, status };
    semihosting(SYS_EXIT_EXTENDED, reason);
    for (;;)
        ;
}

/* Called where the library would panic. */
_Noreturn void abort(void)
{
    say("aborted\n");
    leave(2);
}

_Noreturn void fault(void)
{
    say("fault\n");
    leave(3);
}

_Noreturn void begin(void)
{
    uint8_t *here = __builtin_frame_address(0);
    for (uint8_t *to = data_start, *from = data_load; to < data_end;)
        *to++ = *from++;
    for (uint8_t *to = bss_start; to < bss_end;)
        *to++ = 0;
    for (volatile uint8_t *to = stack_bottom; to < here - 256;)
        *to++ = PAINT;
    int status = example();
    const uint8_t *untouched = stack_bottom;
    while (untouched < stack_top && *untouched == PAINT)
        untouched++;
    say_number("stack ", (uint64_t)(stack_top - untouched));
    leave(status);
}

#if defined(__riscv)
__asm__(".section .start, \"ax\"\n.globl _start\n_start: la sp, stack_top\nla t0, fault\ncsrw mtvec, t0\nj begin");
#else
static void enable_fpu_and_begin(void)
{
    /* CPACR: full access to the coprocessors 10 and 11, before any of them is used. */
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20;
    __asm__ volatile("dsb\nisb");
    begin();
}

__attribute__((section(".start"), used)) static const union {
    const uint8_t *stack;
    void (*handler)(void);
} vectors[] = {
    { .stack = stack_top }, { .handler = enable_fpu_and_begin }, { .handler = fault }, { .handler = fault },
    { .handler = fault },   { .handler = fault },                { .handler = fault },
};
#endif
