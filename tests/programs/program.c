/* A program that uses much of what a C library and a kernel offer; its output depends on nothing but
 * arithmetic and the rules of C and POSIX. */
#define _GNU_SOURCE
#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static uint64_t state = 88172645463325252ull;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void sorting(void)
{
    enum { N = 20000 };
    static uint64_t numbers[N];
    uint64_t sum = 0;
    for (int i = 0; i < N; i++)
        numbers[i] = next();
    qsort(numbers, N, sizeof *numbers, ascending);
    for (int i = 0; i < N; i++)
        sum = sum * 31 + numbers[i];
    printf("sorted %016lx\n", sum);
}

static void wide(void)
{
    unsigned __int128 product = 1;
    for (int i = 0; i < 40; i++) {
        product = product * (next() | 1) + i;
        product ^= product % 1000000007u;
        product /= 3;
    }
    printf("wide %016lx%016lx\n", (uint64_t)(product >> 64), (uint64_t)product);
}

static void floating(void)
{
    volatile double tenth = 0.1, zero = 0.0;
    volatile float single = 1.0f / 3.0f;
    volatile long double extended = 1.0L / 3.0L;
    static const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
    for (int i = 0; i < 4; i++) {
        fesetround(modes[i]);
        printf("rounded %d: %a %a %La %ld\n", i, (double)(tenth * 3), (double)(float)(single * 7), extended * extended,
               lrint(2.5 + tenth));
    }
    fesetround(FE_TONEAREST);
    feclearexcept(FE_ALL_EXCEPT);
    volatile double infinite = 1.0 / zero;
    printf("flags %d %d %f\n", !!fetestexcept(FE_DIVBYZERO), !!fetestexcept(FE_INVALID), infinite);
    volatile double none = infinite - infinite;
    printf("flags %d %d\n", !!fetestexcept(FE_INVALID), none != none);
    printf("text %.17g %.3f %Lg %s\n", strtod("1.7976931348623157e308", NULL), 2.0005, powl(extended, 5.0L),
           "end");
    printf("x87 %La %La %La\n", sinl(extended), logl(extended), atan2l(extended, 2.0L));
}

static sigjmp_buf escape;
static volatile int signal_number, signal_code;
static void *volatile signal_address;

static void caught(int number, siginfo_t *info, void *context)
{
    (void)context;
    signal_number = number;
    signal_code = info->si_code;
    signal_address = info->si_addr;
    siglongjmp(escape, 1);
}

static void faults(void)
{
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_NODEFER};
    volatile int zero = 0;
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int number = 1; number < 32; number++)
        if (number == SIGFPE || number == SIGSEGV || number == SIGILL || number == SIGTRAP)
            sigaction(number, &action, NULL);
    if (!sigsetjmp(escape, 1))
        printf("quotient %d\n", 7 / zero);
    printf("division: signal %d code %d\n", signal_number, signal_code);
    if (!sigsetjmp(escape, 1))
        *(volatile char *)(page + 17) = 1;
    printf("write: signal %d code %d offset %ld\n", signal_number, signal_code, (long)((char *)signal_address - page));
    if (!sigsetjmp(escape, 1))
        *(volatile char *)8 = 1;
    printf("null: signal %d code %d address %p\n", signal_number, signal_code, signal_address);
    if (!sigsetjmp(escape, 1))
        *(volatile char *)0x8000000000000000 = 1;
    printf("not canonical: signal %d code %d\n", signal_number, signal_code);
    if (!sigsetjmp(escape, 1))
        __asm__ volatile("ud2");
    printf("undefined: signal %d code %d\n", signal_number, signal_code);
    if (!sigsetjmp(escape, 1))
        __asm__ volatile("int3");
    printf("breakpoint: signal %d\n", signal_number);
    feenableexcept(FE_DIVBYZERO);
    if (!sigsetjmp(escape, 1)) {
        volatile double nothing = 0.0;
        nothing = 1.0 / nothing;
#ifndef __FAST_MATH__
        printf("unmasked division gave %f\n", nothing);
#endif
    }
    fedisableexcept(FE_ALL_EXCEPT);
    printf("unmasked: signal %d code %d\n", signal_number, signal_code);
    munmap(page, 4096);
}

static void *worker(void *argument)
{
    uint64_t *total = argument;
    for (int i = 0; i < 100000; i++)
        __atomic_fetch_add(total, i, __ATOMIC_SEQ_CST);
    return NULL;
}

static void threads(void)
{
    pthread_t all[4];
    uint64_t total = 0;
    for (int i = 0; i < 4; i++)
        pthread_create(&all[i], NULL, worker, &total);
    for (int i = 0; i < 4; i++)
        pthread_join(all[i], NULL);
    printf("threads %lu\n", total);
}

static void processes(void)
{
    int ends[2], sum = 0, status;
    if (pipe(ends))
        exit(1);
    fflush(stdout);
    for (int i = 0; i < 20; i++)
        if (fork() == 0) {
            if (write(ends[1], &i, sizeof i) != sizeof i)
                _exit(2);
            _exit(i);
        }
    for (int i = 0, value; i < 20; i++) {
        if (read(ends[0], &value, sizeof value) != sizeof value)
            exit(1);
        sum += value;
    }
    while (wait(&status) > 0)
        sum += 100 * WEXITSTATUS(status);
    printf("processes %d\n", sum);
}

static void written_code(void)
{
    unsigned char *code =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int sum = 0;
    for (int i = 0; i < 1000; i++) {
        code[0] = 0xb8; /* mov eax, i; ret */
        memcpy(code + 1, &i, 4);
        code[5] = 0xc3;
        sum += ((int (*)(void))code)();
    }
    printf("written code %d\n", sum);
    munmap(code, 4096);
}

int main(void)
{
    sorting();
    wide();
    floating();
    faults();
    threads();
    processes();
    written_code();
    return 0;
}
