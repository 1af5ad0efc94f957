/* Moving and searching memory: the C library's functions at three sizes, and the string instructions. */
#include "workloads.h"

#include <string.h>

enum { LARGE = 8 << 20 };

static uint8_t *source, *destination;

static void prepare(void)
{
    source = pages(LARGE + 8192);
    destination = pages(LARGE + 8192);
    for (size_t i = 0; i < LARGE; i += 8) {
        uint64_t value = i * 0x9e3779b97f4a7c15u | 0x0101010101010101u; /* no zero byte */
        memcpy(source + i, &value, 8);
    }
    memset(destination, 1, LARGE + 8192);
    begin();
}

static uint64_t sample(void)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < LARGE; i += 4099)
        sum = mix(sum, destination[i]);
    return sum;
}

/* Copies, fills and measures strings of `size` bytes, and some more or fewer, all over `span` bytes. */
static uint64_t library(uint64_t rounds, size_t size, size_t span)
{
    uint64_t sum = 0, offset = 0, seed = 88675123;
    prepare();
    for (uint64_t round = 0; round < rounds; round++) {
        size_t bytes = size - size / 4 + (next_random(&seed) >> 10) % (size / 2 + 1);
        memcpy(destination + offset, source + offset, bytes);
        memset(destination + offset, (int)round, bytes / 2);
        source[offset + bytes] = 0;
        sum += strlen((const char *)source + offset);
        source[offset + bytes] = 1;
        offset = span ? (offset + bytes + 13) % span : 0;
    }
    return mix(sum, sample());
}

static uint64_t library_small(uint64_t rounds) { return library(rounds, 40, 8192); }
static uint64_t library_page(uint64_t rounds) { return library(rounds, 4096, 65536); }
static uint64_t library_large(uint64_t rounds) { return library(rounds, 5 << 20, 0); }

static void rep_movsb(void *to, const void *from, size_t count)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

static void rep_movsq(void *to, const void *from, size_t count)
{
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

static void rep_stosq(void *to, uint64_t value, size_t count)
{
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory");
}

static uint64_t strings_small(uint64_t rounds)
{
    prepare();
    for (uint64_t round = 0; round < rounds; round++) {
        size_t offset = round * 56 % 8192;
        rep_movsb(destination + offset, source + offset, 30);
        rep_movsq(destination + offset + 32, source + offset, 8);
        rep_stosq(destination + offset + 96, round, 6);
    }
    return sample();
}

static uint64_t strings_large(uint64_t rounds)
{
    prepare();
    for (uint64_t round = 0; round < rounds; round++) {
        rep_movsb(destination + round % 64, source, LARGE);
        rep_movsq(destination, source + round % 64, LARGE / 8);
        rep_stosq(destination + LARGE / 2, round, LARGE / 16);
    }
    return sample();
}

const struct workload memory_workloads[] = {
    {"memory-small", 6000000, library_small, 0},
    {"memory-page", 600000, library_page, 0},
    {"memory-large", 160, library_large, 0},
    {"rep-small", 3200000, strings_small, 0},
    {"rep-large", 60, strings_large, 0},
    {0},
};
