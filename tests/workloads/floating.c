/* Scalar floating point: SSE2 doubles, and the x87. */
#include "workloads.h"

#include <math.h>
#include <string.h>

static uint64_t bits(double value)
{
    uint64_t raw;
    memcpy(&raw, &value, sizeof raw);
    return raw;
}

/* Four bodies under gravity, and a polynomial: additions, products, quotients and roots that depend on each other. */
static uint64_t scalar_double(uint64_t rounds)
{
    double x[4] = {0, 1.2, -2.1, 3.3}, y[4] = {0, 0.4, 1.7, -2.5}, vx[4] = {0, 0.3, -0.2, 0.1},
           vy[4] = {0, 0.8, 0.5, -0.4}, m[4] = {1, 0.01, 0.02, 0.005};
    double series = 0;
    for (uint64_t step = 0; step < rounds; step++) {
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++)
                if (i != j) {
                    double dx = x[j] - x[i], dy = y[j] - y[i];
                    double square = dx * dx + dy * dy + 0.01;
                    double pull = m[j] / (square * sqrt(square)) * 0.001;
                    vx[i] += dx * pull;
                    vy[i] += dy * pull;
                }
        for (int i = 0; i < 4; i++) {
            x[i] += vx[i] * 0.001;
            y[i] += vy[i] * 0.001;
        }
        double t = x[1] * 0.1;
        series += ((((t * 0.2 + 1.5) * t - 0.7) * t + 0.3) * t - 0.9) * t;
        if (series > 1e6)
            series -= 1e6;
        series += (double)(int64_t)(series * 16) * 1e-3;
    }
    return mix(mix(bits(x[1]), bits(y[2])), bits(series));
}

static uint64_t x87_arithmetic(uint64_t rounds)
{
    volatile long double start = 1.0L;
    long double a = start, b = 0.5L, sum = 0;
    for (uint64_t i = 0; i < rounds; i++) {
        a = a * 1.0000001L + b;
        b = b * 0.9999L + 1.0L / a;
        sum += a * b - b / (a + 1.0L);
        if (a > 1000.0L)
            a -= 999.0L;
    }
    return mix(bits((double)sum), bits((double)a));
}

#define X87(name, instruction) \
    static inline long double name(long double x) \
    { \
        __asm__(instruction : "+t"(x)); \
        return x; \
    }
X87(x87_sin, "fsin")
X87(x87_cos, "fcos")
X87(x87_sqrt, "fsqrt")
X87(x87_power, "f2xm1")

static inline long double x87_arctangent(long double y, long double x)
{
    __asm__("fpatan" : "+t"(x) : "u"(y) : "st(1)");
    return x;
}

static inline long double x87_logarithm(long double y, long double x)
{
    __asm__("fyl2x" : "+t"(x) : "u"(y) : "st(1)");
    return x;
}

/* The chip's own functions, which no two makers round alike: the checksum keeps what all agree on. */
static uint64_t x87_functions(uint64_t rounds)
{
    long double sum = 0, x = 0.1L;
    for (uint64_t i = 0; i < rounds; i++) {
        sum += x87_sin(x) + x87_cos(x) * x87_sqrt(x + 2.0L);
        sum += x87_arctangent(x, 1.5L) + x87_logarithm(0.5L, x + 1.0L) + x87_power(x * 0.25L);
        x += 0.013L;
        if (x > 3.0L)
            x -= 2.9L;
    }
    return (uint64_t)(sum * 1000.0L);
}

const struct workload floating_workloads[] = {
    {"double", 1200000, scalar_double, 0},
    {"x87", 20000000, x87_arithmetic, 0},
    {"x87-functions", 1000000, x87_functions, 0},
    {0},
};
