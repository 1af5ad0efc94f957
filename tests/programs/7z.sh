# 7-Zip: its benchmark, which checks what it unpacks, and archives in every format that it writes to a pipe.
set -e
seq 1 40000 > text
dd if=/usr/bin/7zz of=binary bs=1k count=600 2> /dev/null
cat text binary > data
echo "= data $(sha256sum data)"
for format in xz bzip2 gzip; do
    7zz a -t$format -mx=5 -mmt=1 -si -so dummy < data > packed.$format
    # A gzip file holds the time.
    [ $format = gzip ] || echo "= $format $(sha256sum packed.$format)"
    7zz e -t$format -si -so < packed.$format | cmp - data
done
for method in LZMA LZMA2 PPMd BZip2 Deflate64; do
    7zz a -t7z -m0=$method -mx=3 -mmt=1 -mtm=off -mhc=off -bso0 -bsp0 packed.$method data
    echo "= $method $(sha256sum packed.$method)"
    7zz t -bso0 -bsp0 packed.$method
done
# Encryption and the checksums.
for checksum in CRC32 CRC64 SHA1 SHA256 XXH64; do
    7zz h -scrc$checksum data | grep -E 'for data:' | sed 's/^/= /'
done
7zz a -t7z -m0=Copy -psecret -mhe=on -bso0 -bsp0 packed.sealed data
7zz t -psecret -bso0 -bsp0 packed.sealed
if [ "$1" = long ]; then
    7zz b -mmt1 -md22 > log
else
    7zz b -mmt1 -md18 -mtime=0 1 > log
fi
cat log
grep -q '^Tot:' log
! grep -qi error log
