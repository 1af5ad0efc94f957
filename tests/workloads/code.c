/* Code as data: programs that write code and run it, stores beside running code, and much code. */
#define _GNU_SOURCE
#include "workloads.h"

#include <string.h>
#include <sys/mman.h>

typedef uint32_t function(uint32_t);

static uint8_t *code_pages(size_t size)
{
    void *start = mmap(NULL, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        fail("mmap");
    return start;
}

/* Writes a function: eax = edi, then `steps` additions of immediates, then ret. Returns its end. */
static uint8_t *write_function(uint8_t *at, uint32_t immediate, int steps)
{
    *at++ = 0x89; /* mov eax, edi */
    *at++ = 0xf8;
    for (int i = 0; i < steps; i++) {
        *at++ = i & 1 ? 0x35 : 0x05; /* xor or add eax, imm32 */
        memcpy(at, &immediate, 4);
        at += 4;
        immediate = immediate * 5 + 1;
    }
    *at++ = 0xc3;
    return at;
}

/* Each function is written, called some times, and written over by the next: a compiler at run time. */
static uint64_t write_and_run(uint64_t rounds)
{
    uint8_t *code = code_pages(4096);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < rounds; i++) {
        uint8_t *at = code + i * 128 % 3968;
        write_function(at, i, 12);
        for (int call = 0; call < 10; call++)
            sum += ((function *)at)(call);
    }
    munmap(code, 4096);
    return sum;
}

/* A running function and a counter that it shares a page with. */
static uint64_t store_beside_code(uint64_t rounds)
{
    uint8_t *code = code_pages(4096);
    volatile uint64_t *counter = (volatile uint64_t *)(code + 2048);
    uint64_t sum = 0;
    write_function(code, 99, 8);
    for (uint64_t i = 0; i < rounds; i++) {
        *counter += i;
        sum += ((function *)code)(i);
        counter[1] = sum;
    }
    sum = mix(sum, *counter);
    munmap(code, 4096);
    return sum;
}

/* Four thousand functions of a quarter of a kilobyte, called in an order without pattern: a working set of code
 * that no first-level cache holds, and that is all written before it runs. */
static uint64_t large_code(uint64_t rounds)
{
    enum { COUNT = 4096, STRIDE = 272 };
    uint8_t *code = code_pages(COUNT * STRIDE);
    uint64_t sum = 0, seed = 521288629;
    for (int i = 0; i < COUNT; i++)
        write_function(code + i * STRIDE, i * 77, 50);
    begin();
    for (uint64_t i = 0; i < rounds; i++) {
        uint64_t which = next_random(&seed) >> 17 & (COUNT - 1);
        sum += ((function *)(code + which * STRIDE))(i);
    }
    munmap(code, COUNT * STRIDE);
    return sum;
}

/* Functions that are long on the host: each follows a pointer to itself again and again. They run in phases: some are
 * called often, then others, and all of them again in the next round. */
static uint64_t phased_code(uint64_t rounds)
{
    enum { COUNT = 16384, STRIDE = 128, PHASE = 128, CALLS = 600 };
    typedef uint32_t follow(uint32_t, void **);
    uint8_t *code = code_pages(COUNT * STRIDE);
    uint64_t sum = 0;
    void *pointer = &pointer;
    for (int i = 0; i < COUNT; i++) {
        uint8_t *at = code + i * STRIDE;
        for (int step = 0; step < 32; step++) {
            memcpy(at, "\x48\x8b\x36", 3); /* mov rsi, [rsi] */
            at += 3;
        }
        write_function(at, i * 77, 4);
    }
    begin();
    for (uint64_t round = 0; round < rounds; round++)
        for (int first = 0; first < COUNT; first += PHASE)
            for (int call = 0; call < CALLS * PHASE; call++)
                sum += ((follow *)(code + (first + call * 5 % PHASE) * STRIDE))(call, &pointer);
    munmap(code, COUNT * STRIDE);
    return sum;
}

const struct workload code_workloads[] = {
    {"write-and-run", 80000, write_and_run, 0},
    {"store-beside-code", 20000000, store_beside_code, 0},
    {"large-code", 2000000, large_code, 0},
    {"phased-code", 3, phased_code, 0},
    {0},
};
