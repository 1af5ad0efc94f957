/* The operating system: system calls, page faults, processes and switching between them. */
#define _GNU_SOURCE
#include "workloads.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t system_calls(uint64_t rounds)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < rounds; i++)
        sum += syscall(SYS_getppid) > 0;
    return sum;
}

static uint64_t page_faults(uint64_t rounds)
{
    enum { SIZE = 4 << 20 };
    uint64_t sum = 0;
    uint8_t *memory = pages(SIZE);
    madvise(memory, SIZE, MADV_NOHUGEPAGE);
    for (uint64_t i = 0; i < rounds; i++) {
        for (size_t at = 0; at < SIZE; at += 4096)
            memory[at] = i;
        sum += memory[SIZE - 4096];
        if (madvise(memory, SIZE, MADV_DONTNEED))
            fail("madvise");
    }
    return sum;
}

/* Maps, touches and unmaps small stretches at changing addresses. */
static uint64_t map_churn(uint64_t rounds)
{
    uint64_t sum = 0;
    uint8_t *kept[16] = {0};
    for (uint64_t i = 0; i < rounds; i++) {
        uint8_t **slot = &kept[i * 7 % 16];
        if (*slot) {
            sum += (*slot)[4096];
            munmap(*slot, 16384);
        }
        *slot = pages(16384);
        (*slot)[0] = i;
        (*slot)[4096] = i >> 1;
        if (i % 4 == 0)
            mprotect(*slot, 4096, PROT_READ);
    }
    return sum;
}

static uint64_t fork_and_wait(uint64_t rounds)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < rounds; i++) {
        int status;
        pid_t child = fork();
        if (child == 0)
            _exit(i & 63);
        if (child < 0 || waitpid(child, &status, 0) != child)
            fail("fork");
        sum += WEXITSTATUS(status);
    }
    return sum;
}

/* A token goes round a ring of processes; each adds its number and works on memory of its own. */
static uint64_t ring(uint64_t rounds, int processes, size_t own_memory)
{
    int(*ends)[2] = calloc(processes, sizeof *ends);
    uint64_t token = 0;
    if (!ends)
        fail("calloc");
    for (int i = 0; i < processes; i++)
        if (pipe(ends[i]))
            fail("pipe");
    for (int i = 1; i < processes; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0) {
            uint8_t *memory = own_memory ? pages(own_memory) : NULL;
            /* Only these ends stay open, so that the ring falls apart when the parent closes its own. */
            for (int j = 0; j < processes; j++) {
                if (j != i - 1)
                    close(ends[j][0]);
                if (j != i)
                    close(ends[j][1]);
            }
            while (read(ends[i - 1][0], &token, sizeof token) == sizeof token) {
                for (size_t at = 0; at < own_memory; at += 4096)
                    token += ++memory[at] == 0;
                token += i;
                if (write(ends[i][1], &token, sizeof token) != sizeof token)
                    break;
            }
            _exit(0);
        }
    }
    for (int j = 0; j < processes; j++) {
        if (j != 0)
            close(ends[j][1]);
        if (j != processes - 1)
            close(ends[j][0]);
    }
    for (uint64_t i = 0; i < rounds; i++)
        if (write(ends[0][1], &token, sizeof token) != sizeof token ||
            read(ends[processes - 1][0], &token, sizeof token) != sizeof token)
            fail("ring");
    close(ends[0][1]);
    while (wait(NULL) > 0)
        ;
    close(ends[processes - 1][0]);
    free(ends);
    return token;
}

/* Natively, two processors would play ping-pong across; the bench's guests have one. */
static void on_one_processor(void)
{
    cpu_set_t one;
    int now = sched_getcpu();
    CPU_ZERO(&one);
    CPU_SET(now < 0 ? 0 : now, &one);
    sched_setaffinity(0, sizeof one, &one);
}

static uint64_t ping_pong(uint64_t rounds)
{
    on_one_processor();
    return ring(rounds, 2, 0);
}

static uint64_t switching_2(uint64_t rounds)
{
    on_one_processor();
    return ring(rounds, 2, 32 << 12);
}

static uint64_t switching_200(uint64_t rounds)
{
    on_one_processor();
    return ring(rounds, 200, 32 << 12);
}

const struct workload kernel_workloads[] = {
    {"syscall", 900000, system_calls, 0},
    {"page-fault", 30, page_faults, 0},
    {"map-churn", 15000, map_churn, 0},
    {"fork", 600, fork_and_wait, 0},
    {"ping-pong", 15000, ping_pong, 0},
    {"switch-2", 30000, switching_2, 0},
    {"switch-200", 100, switching_200, 0},
    {0},
};
