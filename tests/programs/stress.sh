# stress-ng's processor stressors, each bounded by a number of rounds, checking their own results.
set -e
export TMPDIR=/tmp
rounds=1
[ "$1" = long ] && rounds=10
stress() {
    name=$1
    shift
    stress-ng --verify --timeout 300 --metrics-brief "$@" > log 2>&1 || { cat log >&2; exit 1; }
    cat log
    # Without sysfs it complains of the number of processors only.
    if grep -v 'no CPUs found' log | grep -Eq 'fail:|error:' || ! grep -q 'successful run completed' log; then
        cat log >&2
        exit 1
    fi
    echo "= $name passed"
}
methods=$(stress-ng --cpu-method help 2>&1 | tr ' ' '\n' | grep -cE '^[a-z0-9]+$')
echo "= methods $((methods > 70))"
stress "cpu, all methods" --cpu 1 --cpu-method all --cpu-ops $((360 * rounds))
stress vecmath --vecmath 1 --vecmath-ops $((50 * rounds))
stress matrix --matrix 1 --matrix-method all --matrix-ops $((400 * rounds))
stress vecfp --vecfp 1 --vecfp-method all --vecfp-ops $((200 * rounds))
stress memcpy --memcpy 1 --memcpy-method all --memcpy-ops $((30 * rounds))
if [ "$1" = long ]; then
    stress vecwide --vecwide 1 --vecwide-ops 20
    stress fp-error --fp-error 1 --fp-error-ops 100
    stress memory --vm 1 --vm-bytes 32m --vm-method all --vm-ops 20000
    stress string --str 1 --str-method all --str-ops 200
    stress qsort --qsort 1 --qsort-ops 2
fi
