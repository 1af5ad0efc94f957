/* Control flow: recursion, indirect calls, switch tables, a bytecode interpreter. */
#include "workloads.h"

#include <stdlib.h>

static __attribute__((noinline, noclone)) uint64_t fibonacci(uint64_t n)
{
    OPAQUE(n); /* or the compiler unrolls the recursion */
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static __attribute__((noinline, noclone)) uint32_t ackermann(uint32_t m, uint32_t n)
{
    OPAQUE(m);
    if (m == 0)
        return n + 1;
    if (n == 0)
        return ackermann(m - 1, 1);
    return ackermann(m - 1, ackermann(m, n - 1));
}

static uint64_t recursion(uint64_t rounds)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < rounds; i++)
        sum = mix(mix(sum, fibonacci(23)), ackermann(2, 40));
    return sum;
}

/* ---- Indirect calls: an array of objects of eight classes, in no order that can be guessed. */

typedef uint64_t method(uint64_t, uint64_t);
#define METHOD(name, expression) \
    static __attribute__((noinline)) uint64_t name(uint64_t a, uint64_t b) { return expression; }
METHOD(method_add, a + b)
METHOD(method_xor, a ^ b)
METHOD(method_subtract, a - b)
METHOD(method_rotate, a << (b & 31) | a >> (64 - (b & 31)) % 64)
METHOD(method_multiply, a *(b | 1))
METHOD(method_or, (a | b) + 1)
METHOD(method_mask, (a & ~b) - 3)
METHOD(method_shift, a ^ b >> 3)

static uint64_t calls(uint64_t rounds)
{
    static method *const methods[] = {method_add,      method_xor, method_subtract, method_rotate,
                                      method_multiply, method_or,  method_mask,     method_shift};
    static method *objects[512];
    uint64_t sum = 1, seed = 362436069;
    for (int i = 0; i < 512; i++)
        objects[i] = methods[next_random(&seed) >> 13 & 7];
    for (uint64_t round = 0; round < rounds; round++)
        for (int i = 0; i < 512; i++)
            sum = objects[i](sum, i + round);
    return sum;
}

static uint64_t switches(uint64_t rounds)
{
    static uint8_t codes[1024];
    uint64_t sum = 1, seed = 521288629;
    for (int i = 0; i < 1024; i++)
        codes[i] = next_random(&seed) >> 11 & 15;
    for (uint64_t round = 0; round < rounds; round++)
        for (int i = 0; i < 1024; i++) {
            OPAQUE(sum);
            switch (codes[i]) {
            case 0: sum += i; break;
            case 1: sum ^= sum >> 7; break;
            case 2: sum *= 3; break;
            case 3: sum -= round; break;
            case 4: sum = ~sum; break;
            case 5: sum += sum << 3; break;
            case 6: sum ^= 0x5555; break;
            case 7: sum = sum >> 1 | sum << 63; break;
            case 8: sum += 0x1234567; break;
            case 9: sum -= sum >> 5; break;
            case 10: sum ^= sum << 9; break;
            case 11: sum = -sum; break;
            case 12: sum |= 1; break;
            case 13: sum &= ~2ull; break;
            case 14: sum += round * i; break;
            default: sum ^= i; break;
            }
        }
    return sum;
}

/* ---- A bytecode interpreter with computed jumps, as many languages have it: counts primes by trial division. */

enum { LOAD, ADD, MOVE, REMAINDER, MULTIPLY, JUMP, JUMP_IF_ZERO, JUMP_IF_LESS, HALT };

static uint64_t interpret(const int32_t *code, int64_t limit)
{
    static const void *const targets[] = {&&load, &&add, &&move, &&remainder, &&multiply,
                                          &&jump, &&jump_if_zero, &&jump_if_less, &&halt};
    int64_t r[8] = {[7] = limit};
    const int32_t *pc = code;
#define NEXT goto *targets[*pc]
    NEXT;
load: r[pc[1]] = pc[2]; pc += 3; NEXT;
add: r[pc[1]] += pc[2]; pc += 3; NEXT;
move: r[pc[1]] = r[pc[2]]; pc += 3; NEXT;
remainder: r[pc[1]] = (int32_t)r[pc[2]] % (int32_t)r[pc[3]]; pc += 4; NEXT;
multiply: r[pc[1]] = r[pc[2]] * r[pc[3]]; pc += 4; NEXT;
jump: pc = code + pc[1]; NEXT;
jump_if_zero: pc = r[pc[1]] == 0 ? code + pc[2] : pc + 3; NEXT;
jump_if_less: pc = r[pc[1]] < r[pc[2]] ? code + pc[3] : pc + 4; NEXT;
halt: return r[0];
}

static uint64_t interpreter(uint64_t rounds)
{
    static const int32_t program[] = {
        /* 0 */ LOAD, 0, 0,            /* primes = 0 */
        /* 3 */ LOAD, 1, 3,            /* n = 3 */
        /* 6 */ LOAD, 2, 3,            /* divisor = 3 */
        /* 9 */ MULTIPLY, 3, 2, 2,     /* square = divisor * divisor */
        /* 13 */ JUMP_IF_LESS, 1, 3, 30, /* n < square: prime */
        /* 17 */ REMAINDER, 4, 1, 2,
        /* 21 */ JUMP_IF_ZERO, 4, 33,  /* divided: not prime */
        /* 24 */ ADD, 2, 2,
        /* 27 */ JUMP, 9, 0,
        /* 30 */ ADD, 0, 1,
        /* 33 */ ADD, 1, 2,
        /* 36 */ JUMP_IF_LESS, 1, 7, 6,
        /* 40 */ HALT,
    };
    uint64_t sum = 0;
    for (uint64_t i = 0; i < rounds; i++)
        sum = mix(sum, interpret(program, 20000 + i));
    return sum;
}

const struct workload control_workloads[] = {
    {"recursion", 900, recursion, 0},
    {"calls", 80000, calls, 0},
    {"switch", 48000, switches, 0},
    {"interpreter", 90, interpreter, 0},
    {0},
};
