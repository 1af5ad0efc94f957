/* The workloads of `cargo xtask bench`: what each file offers to main.c. */
#ifndef WORKLOADS_H
#define WORKLOADS_H

#include <stddef.h>
#include <stdint.h>

/* One workload. `run` does `rounds` rounds and returns a number that depends on all of its results, and on nothing
 * else: it is the same on every machine. */
struct workload {
    const char *name;
    uint64_t rounds; /* some tens of milliseconds of work on a processor of today */
    uint64_t (*run)(uint64_t rounds);
    int needs_avx2; /* AVX2 and FMA */
};

/* Each table ends with a workload without a name. */
extern const struct workload integer_workloads[], control_workloads[], floating_workloads[], vector_workloads[],
    memory_workloads[], kernel_workloads[], code_workloads[];

/* A generator of numbers that look random (xorshift64). */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    return *state = x ^ x << 17;
}

/* Mixes a number into a checksum. */
static inline uint64_t mix(uint64_t sum, uint64_t value)
{
    return (sum ^ value) * 0x100000001b3u;
}

/* Makes the compiler believe that `value` is read and changed here. */
#define OPAQUE(value) __asm__ volatile("" : "+r"(value))

/* Starts the clock anew: what came before was preparation. */
void begin(void);

/* Ends the program with a message; for what cannot fail unless the system under it is broken. */
void fail(const char *what) __attribute__((noreturn));

/* `size` bytes of zeros on page boundaries. */
void *pages(size_t size);

#endif
