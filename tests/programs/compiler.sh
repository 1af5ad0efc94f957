# GCC compiles and runs programs; the loader chooses string functions for the processor.
set -e
for level in "-O0" "-O2" "-O3 -ffast-math" "-Os -mfpmath=387"; do
    gcc-12 $level -S -o program.s /program.c
    echo "= $level $(sha256sum program.s)"
    gcc-12 $level -o program /program.c -lm
    ./program > result
    case $level in
        *fast-math*) ;; # the library's vector functions depend on the processor
        *) sed "s/^/= $level: /" result ;;
    esac
done
if [ "$1" = long ]; then
    gcc-12 -O2 -g -Wall -fprofile-generate -o profiled /program.c -lm
    ./profiled > result
    gcc-12 -O2 -fprofile-use -o profiled /program.c -lm
    ./profiled | cmp - result
fi
/lib64/ld-linux-x86-64.so.2 --help | grep -E '^ *x86-64-v[23]' | sed 's/^/= loader: /'
gcc-12 -O1 -o strings /strings.c
./strings
