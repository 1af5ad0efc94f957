# Python's own tests of what depends on the processor, and a hash over many results of the C library.
set -e
tests="test_math test_float test_struct test_json"
[ "$1" = long ] && tests="$tests test_cmath test_complex test_long test_int test_array test_hashlib test_zlib \
    test_statistics test_fractions test_decimal test_random test_strtod test_bytes test_memoryview"
python3.11 -m test $tests > log 2>&1 || { cat log >&2; exit 1; }
grep -E '^All [0-9]+ tests OK|^Tests result' log | sed 's/^/= /'
# With FMA, the C library's functions give other last bits. They are compared where both sides have it.
GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4 python3.11 /numbers.py
python3.11 /numbers.py | sed 's/^= /fma= /'
