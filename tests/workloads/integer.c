/* Integer arithmetic on data in the first caches: the mix, sieve, sort, chains of pointers. */
#include "workloads.h"

#include <stdlib.h>
#include <string.h>

/* ---- The mix: a linked list, a matrix, a state machine and a CRC, as embedded programs have them. */

struct node {
    struct node *next;
    int32_t key;
};

static uint64_t list_part(struct node *nodes, int count, uint64_t seed)
{
    struct node *head = NULL, *reversed = NULL;
    uint64_t sum = 0;
    for (int i = 0; i < count; i++) {
        nodes[i].key = next_random(&seed) & 0xffff;
        nodes[i].next = head;
        head = &nodes[i];
    }
    for (int pass = 0; pass < 20; pass++) { /* find, reverse, unlink every seventh */
        int32_t wanted = next_random(&seed) & 0xffff;
        for (struct node *n = head; n; n = n->next)
            if (n->key > wanted)
                sum += n->key;
        reversed = NULL;
        while (head) {
            struct node *next = head->next;
            head->next = reversed;
            reversed = head;
            head = next;
        }
        head = reversed;
    }
    return sum;
}

static uint64_t matrix_part(int32_t (*a)[24], int32_t (*b)[24], int32_t (*c)[24], int32_t seed)
{
    uint64_t sum = 0;
    for (int i = 0; i < 24; i++)
        for (int j = 0; j < 24; j++) {
            a[i][j] = seed + i * j;
            b[i][j] = seed - i + j;
        }
    for (int i = 0; i < 24; i++)
        for (int j = 0; j < 24; j++) {
            int32_t total = 0;
            for (int k = 0; k < 24; k++)
                total += (a[i][k] * b[k][j]) >> 2 & 0x7ff;
            c[i][j] = total;
            sum += total;
        }
    return sum;
}

/* Reads numbers in C's notation and counts how they end. */
static uint64_t machine_part(const char *text)
{
    enum { START, SIGN, WHOLE, POINT, FRACTION, EXPONENT, EXPONENT_SIGN, POWER, BAD } state = START;
    uint64_t ends[9] = {0}, sum = 0;
    for (const char *p = text; *p; p++) {
        char c = *p;
        if (c == ',') {
            ends[state]++;
            state = START;
            continue;
        }
        int digit = c >= '0' && c <= '9';
        switch (state) {
        case START: state = digit ? WHOLE : c == '-' || c == '+' ? SIGN : c == '.' ? POINT : BAD; break;
        case SIGN: state = digit ? WHOLE : c == '.' ? POINT : BAD; break;
        case WHOLE: state = digit ? WHOLE : c == '.' ? FRACTION : c == 'e' ? EXPONENT : BAD; break;
        case POINT: state = digit ? FRACTION : BAD; break;
        case FRACTION: state = digit ? FRACTION : c == 'e' ? EXPONENT : BAD; break;
        case EXPONENT: state = digit ? POWER : c == '-' || c == '+' ? EXPONENT_SIGN : BAD; break;
        case EXPONENT_SIGN: state = digit ? POWER : BAD; break;
        case POWER: state = digit ? POWER : BAD; break;
        case BAD: break;
        }
    }
    for (int i = 0; i < 9; i++)
        sum = mix(sum, ends[i]);
    return sum;
}

static uint16_t crc_part(const uint8_t *data, int size)
{
    uint16_t crc = 0;
    for (int i = 0; i < size; i++) {
        uint8_t byte = data[i];
        for (int bit = 0; bit < 8; bit++) {
            int carry = (byte ^ crc) & 1;
            byte >>= 1;
            crc >>= 1;
            if (carry)
                crc ^= 0xa001;
        }
    }
    return crc;
}

static uint64_t integer_mix(uint64_t rounds)
{
    static struct node nodes[200];
    static int32_t a[24][24], b[24][24], c[24][24];
    static char text[2048];
    static const char alphabet[] = "0123456789.-+e,,";
    uint64_t sum = 0, seed = 4101842887655102017u;
    for (size_t i = 0; i < sizeof text - 1; i++)
        text[i] = alphabet[next_random(&seed) >> 20 & 15];
    for (uint64_t i = 0; i < rounds; i++) {
        sum = mix(sum, list_part(nodes, 200, i + 1));
        sum = mix(sum, matrix_part(a, b, c, i));
        sum = mix(sum, machine_part(text));
        sum = mix(sum, crc_part((const uint8_t *)text, 500));
    }
    return sum;
}

/* ---- Sieve and sorts. */

static uint64_t sieve(uint64_t rounds)
{
    enum { N = 200000 };
    static uint8_t composite[N];
    uint64_t sum = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        memset(composite, 0, N);
        for (uint32_t i = 2; i * i < N; i++)
            if (!composite[i])
                for (uint32_t j = i * i; j < N; j += i)
                    composite[j] = 1;
        for (uint32_t i = 2; i < N; i++)
            sum += composite[i] ? 0 : i;
    }
    return sum;
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void sift(uint32_t *heap, uint32_t at, uint32_t count)
{
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] > heap[child])
            child++;
        if (heap[at] >= heap[child])
            return;
        uint32_t swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
    }
}

/* The C library's sort calls back for each comparison; the heap sort is all in one loop. */
static uint64_t sort(uint64_t rounds)
{
    enum { N = 8000 };
    static uint32_t numbers[N], heap[N];
    uint64_t sum = 0, seed = 88172645463325252u;
    for (uint64_t round = 0; round < rounds; round++) {
        for (int i = 0; i < N; i++)
            numbers[i] = heap[i] = next_random(&seed);
        qsort(numbers, N, sizeof *numbers, ascending);
        for (uint32_t i = N / 2; i-- > 0;)
            sift(heap, i, N);
        for (uint32_t end = N - 1; end > 0; end--) {
            uint32_t swap = heap[0];
            heap[0] = heap[end];
            heap[end] = swap;
            sift(heap, 0, end);
        }
        if (memcmp(numbers, heap, sizeof heap))
            fail("two sorts differ");
        sum = mix(sum, numbers[N / 3]);
    }
    return sum;
}

/* ---- Pointer chases: each load's address is the result of the load before. */

static uint64_t chase(uint64_t rounds, size_t bytes)
{
    size_t lines = bytes / 64;
    void **memory = pages(bytes);
    uint32_t *order = malloc(lines * sizeof *order);
    uint64_t seed = 1234567;
    if (!order)
        fail("malloc");
    for (size_t i = 0; i < lines; i++)
        order[i] = i;
    for (size_t i = lines - 1; i > 0; i--) {
        size_t j = next_random(&seed) % (i + 1);
        uint32_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (size_t i = 0; i < lines; i++)
        memory[order[i] * 8ul] = &memory[order[(i + 1) % lines] * 8ul];
    void **at = memory;
    begin();
    for (uint64_t i = 0; i < rounds; i++) {
        at = *at;
        at = *at;
        at = *at;
        at = *at;
    }
    free(order);
    return (at - memory) / 8;
}

static uint64_t chase_l1(uint64_t rounds) { return chase(rounds, 16 << 10); }
static uint64_t chase_l2(uint64_t rounds) { return chase(rounds, 768 << 10); }
static uint64_t chase_memory(uint64_t rounds) { return chase(rounds, 96 << 20); }

const struct workload integer_workloads[] = {
    {"integer", 8000, integer_mix, 0},
    {"sieve", 300, sieve, 0},
    {"sort", 160, sort, 0},
    {"chase-l1", 40000000, chase_l1, 0},
    {"chase-l2", 9000000, chase_l2, 0},
    {"chase-memory", 1200000, chase_memory, 0},
    {0},
};
