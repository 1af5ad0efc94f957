/* Workloads on demand, over standard input and output.
 *
 * The program is the first process of a guest, or an ordinary process on the host. It says "@ready …"; then each line
 * it reads orders one run:
 *
 *     run NAME [ROUNDS]      one of our own workloads
 *     shell NAME COMMAND     a command of the system's, as a workload called NAME
 *     quit                   end; as first process: power off
 *
 * "@ready NANOSECONDS" is the time since the system's start. A run answers "@begin NAME", does its work in a child process,
 * and answers "@end NAME TIME PROCESSOR CHECKSUM", or "@skip NAME REASON", or "@fail NAME REASON". Where preparations end,
 * it says "@work NAME". Times are in nanoseconds since then: by the clock, and processor time. */
#define _GNU_SOURCE
#include "workloads.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const struct workload *const tables[] = {
    integer_workloads, control_workloads, floating_workloads, vector_workloads,
    memory_workloads,  kernel_workloads,  code_workloads,
};

void fail(const char *what)
{
    fprintf(stderr, "workloads: %s: %s\n", what, strerror(errno));
    exit(3);
}

void *pages(size_t size)
{
    void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        fail("mmap");
    return start;
}

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* Of this process and of its children that have ended. */
static uint64_t processor_time(void)
{
    uint64_t sum = 0;
    for (int who = RUSAGE_CHILDREN; who <= RUSAGE_SELF; who++) {
        struct rusage used;
        getrusage(who, &used);
        sum += (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000ull +
               (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000ull;
    }
    return sum;
}

static uint64_t started, processor_started;
static const char *running;

void begin(void)
{
    printf("@work %s\n", running);
    fflush(stdout);
    tcdrain(1); /* fails on what is no terminal */
    processor_started = processor_time();
    started = nanoseconds(CLOCK_MONOTONIC);
}

static const struct workload *find(const char *name)
{
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const struct workload *w = tables[t]; w->name; w++)
            if (!strcmp(w->name, name))
                return w;
    return NULL;
}

/* What a run sends to its parent. */
struct result {
    uint64_t took, processor, checksum;
};

/* Ends the clock and tells the parent. */
static void tell(uint64_t checksum, int out)
{
    struct result result = {.took = nanoseconds(CLOCK_MONOTONIC) - started, .checksum = checksum};
    result.processor = processor_time() - processor_started;
    if (write(out, &result, sizeof result) != sizeof result)
        exit(3);
}

static void run_own(const struct workload *w, uint64_t rounds, int out)
{
    begin();
    tell(w->run(rounds), out);
    exit(0);
}

/* The command's output goes nowhere; its checksum is its exit status. */
static void run_shell(const char *command, int out)
{
    int status;
    begin();
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(null, 1);
        dup2(null, 2);
        if (chdir("/tmp"))
            _exit(126);
        execl("/bin/sh", "sh", "-c", command, NULL);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        fail("command");
    tell(status, out);
    exit(status != 0);
}

/* Runs one workload in a child; says what came of it. */
static void run(const char *name, const struct workload *w, uint64_t rounds, const char *command)
{
    struct result result;
    int ends[2], status;
    printf("@begin %s\n", name);
    fflush(stdout);
    if (pipe2(ends, O_CLOEXEC))
        fail("pipe");
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        running = name;
        if (w)
            run_own(w, rounds, ends[1]);
        else
            run_shell(command, ends[1]);
    }
    close(ends[1]);
    ssize_t count = child < 0 ? -1 : read(ends[0], &result, sizeof result);
    close(ends[0]);
    if (child < 0 || waitpid(child, &status, 0) != child)
        fail("fork");
    if (count == sizeof result && status == 0)
        printf("@end %s %lu %lu %016lx\n", name, result.took, result.processor, result.checksum);
    else
        printf("@fail %s wait status %#x\n", name, status);
    fflush(stdout);
}

static void obey(char *line)
{
    char *rest = line;
    const char *order = strsep(&rest, " ");
    if (!strcmp(order, "run") && rest) {
        const char *name = strsep(&rest, " ");
        const struct workload *w = find(name);
        if (!w)
            printf("@fail %s there is no such workload\n", name);
        else if (w->needs_avx2 && !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")))
            printf("@skip %s the processor has no AVX2 with FMA\n", name);
        else
            run(name, w, rest ? strtoull(rest, NULL, 10) : w->rounds, NULL);
    } else if (!strcmp(order, "shell") && rest) {
        const char *name = strsep(&rest, " ");
        run(name, NULL, 0, rest ? rest : "true");
    } else if (*order) {
        printf("@fail %s unknown order\n", order);
    }
    fflush(stdout);
}

int main(int count, char **arguments)
{
    char line[2000];
    int is_first = getpid() == 1;
    if (count > 1 && !strcmp(arguments[1], "list")) {
        for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
            for (const struct workload *w = tables[t]; w->name; w++)
                printf("%s\n", w->name);
        return 0;
    }
    if (is_first) {
        mkdir("/proc", 0755);
        mkdir("/dev", 0755);
        mkdir("/tmp", 0755);
        mount("proc", "/proc", "proc", 0, NULL);
        mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
        setenv("PATH", "/usr/bin:/bin:/usr/sbin:/sbin", 1);
        setenv("HOME", "/root", 1);
        setenv("LC_ALL", "C", 1);
    }
    printf("@ready %lu\n", nanoseconds(CLOCK_BOOTTIME));
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\r\n")] = 0;
        if (!strcmp(line, "quit"))
            break;
        obey(line);
    }
    if (is_first)
        reboot(RB_POWER_OFF);
    return 0;
}
