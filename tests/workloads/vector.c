/* Packed arithmetic with SSE2 and with AVX2: matrix products, and integers as image filters use them. */
#include "workloads.h"

#include <immintrin.h>
#include <string.h>

enum { N = 96 };
static double a[N][N] __attribute__((aligned(32))), b[N][N] __attribute__((aligned(32))),
    c[N][N] __attribute__((aligned(32)));

static void fill(void)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (i * 7 + j * 3) % 11 - 5;
            b[i][j] = (i * 5 + j * 13) % 17 - 8;
        }
}

/* All values are small whole numbers: the sums are exact in whatever order and with whatever rounding. */
static uint64_t checksum(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            sum = mix(sum, (int64_t)c[i][j]);
    return sum;
}

static uint64_t matrix_sse2(uint64_t rounds)
{
    fill();
    for (uint64_t round = 0; round < rounds; round++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j += 4) {
                __m128d low = _mm_setzero_pd(), high = _mm_setzero_pd();
                for (int k = 0; k < N; k++) {
                    __m128d x = _mm_set1_pd(a[i][k]);
                    low = _mm_add_pd(low, _mm_mul_pd(x, _mm_load_pd(&b[k][j])));
                    high = _mm_add_pd(high, _mm_mul_pd(x, _mm_load_pd(&b[k][j + 2])));
                }
                _mm_store_pd(&c[i][j], low);
                _mm_store_pd(&c[i][j + 2], high);
            }
    return checksum();
}

static __attribute__((target("avx2,fma"))) uint64_t matrix_avx2(uint64_t rounds)
{
    fill();
    for (uint64_t round = 0; round < rounds; round++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j += 8) {
                __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
                for (int k = 0; k < N; k++) {
                    __m256d x = _mm256_broadcast_sd(&a[i][k]);
                    low = _mm256_fmadd_pd(x, _mm256_load_pd(&b[k][j]), low);
                    high = _mm256_fmadd_pd(x, _mm256_load_pd(&b[k][j + 4]), high);
                }
                _mm256_store_pd(&c[i][j], low);
                _mm256_store_pd(&c[i][j + 4], high);
            }
    return checksum();
}

enum { PIXELS = 16384 };
static uint8_t image[PIXELS + 64] __attribute__((aligned(32))), other[PIXELS + 64] __attribute__((aligned(32)));

static void draw(void)
{
    uint64_t seed = 2463534242;
    for (int i = 0; i < PIXELS + 64; i++) {
        image[i] = next_random(&seed) >> 8;
        other[i] = next_random(&seed) >> 8;
    }
}

static uint64_t total(const uint64_t *parts, int count)
{
    uint64_t sum = 0;
    for (int i = 0; i < PIXELS; i += 97)
        sum = mix(sum, image[i]);
    for (int i = 0; i < count; i++)
        sum += parts[i];
    return sum;
}

/* Differences, averages, products with rounding, comparisons and shuffles, in place, and a sum of differences. */
static uint64_t packed_sse2(uint64_t rounds)
{
    uint64_t parts[2];
    __m128i sums = _mm_setzero_si128(), zero = _mm_setzero_si128();
    draw();
    for (uint64_t round = 0; round < rounds; round++)
        for (int i = 0; i < PIXELS; i += 16) {
            __m128i x = _mm_load_si128((const __m128i *)&image[i]), y = _mm_load_si128((const __m128i *)&other[i]);
            __m128i low = _mm_mullo_epi16(_mm_unpacklo_epi8(x, zero), _mm_set1_epi16(77));
            __m128i high = _mm_mullo_epi16(_mm_unpackhi_epi8(x, zero), _mm_set1_epi16(77));
            __m128i scaled = _mm_packus_epi16(_mm_srli_epi16(low, 7), _mm_srli_epi16(high, 7));
            __m128i brighter = _mm_cmpgt_epi8(x, y);
            x = _mm_avg_epu8(_mm_adds_epu8(scaled, _mm_and_si128(brighter, _mm_set1_epi8(3))), y);
            x = _mm_xor_si128(x, _mm_shuffle_epi32(_mm_slli_epi32(y, 1), 0x1b));
            sums = _mm_add_epi64(sums, _mm_sad_epu8(x, y));
            _mm_store_si128((__m128i *)&image[i], x);
        }
    _mm_storeu_si128((__m128i *)parts, sums);
    return total(parts, 2);
}

static __attribute__((target("avx2"))) uint64_t packed_avx2(uint64_t rounds)
{
    uint64_t parts[4];
    __m256i sums = _mm256_setzero_si256(), zero = _mm256_setzero_si256();
    draw();
    for (uint64_t round = 0; round < rounds; round++)
        for (int i = 0; i < PIXELS; i += 32) {
            __m256i x = _mm256_load_si256((const __m256i *)&image[i]),
                    y = _mm256_load_si256((const __m256i *)&other[i]);
            __m256i low = _mm256_mullo_epi16(_mm256_unpacklo_epi8(x, zero), _mm256_set1_epi16(77));
            __m256i high = _mm256_mullo_epi16(_mm256_unpackhi_epi8(x, zero), _mm256_set1_epi16(77));
            __m256i scaled = _mm256_packus_epi16(_mm256_srli_epi16(low, 7), _mm256_srli_epi16(high, 7));
            __m256i brighter = _mm256_cmpgt_epi8(x, y);
            x = _mm256_avg_epu8(_mm256_adds_epu8(scaled, _mm256_and_si256(brighter, _mm256_set1_epi8(3))), y);
            x = _mm256_xor_si256(x, _mm256_shuffle_epi8(_mm256_slli_epi32(y, 1), _mm256_permute4x64_epi64(y, 0x1b)));
            sums = _mm256_add_epi64(sums, _mm256_sad_epu8(x, y));
            _mm256_store_si256((__m256i *)&image[i], x);
        }
    _mm256_storeu_si256((__m256i *)parts, sums);
    return total(parts, 4);
}

const struct workload vector_workloads[] = {
    {"matrix-sse2", 720, matrix_sse2, 0},
    {"matrix-avx2", 800, matrix_avx2, 1},
    {"packed-sse2", 40000, packed_sse2, 0},
    {"packed-avx2", 60000, packed_avx2, 1},
    {0},
};
