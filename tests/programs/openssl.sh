# OpenSSL: every digest, cipher and MAC that has code of its own, big-number arithmetic and signatures.
# Lines that start with "= " must be the same on every machine.
set -e

seq 1 60000 > data
key=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
iv=f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff

for digest in md5 sha1 sha224 sha256 sha384 sha512 sha512-256 sha3-256 sha3-512 blake2b512 blake2s256 sm3; do
    echo "= $digest $(openssl dgst -$digest -r data)"
done

for cipher in aes-128-ecb aes-128-cbc aes-256-cbc aes-256-ctr aes-192-cfb aes-256-ofb \
    camellia-128-cbc camellia-256-ctr aria-256-cbc chacha20 des-ede3-cbc sm4-cbc; do
    case $cipher in
        *128* | sm4*) k=$(echo $key | cut -c 1-32) ;;
        *192* | des-ede3*) k=$(echo $key | cut -c 1-48) ;;
        *) k=$key ;;
    esac
    i=$iv
    case $cipher in
        des*) i=$(echo $iv | cut -c 1-16) ;;
        *-ecb) i= ;;
    esac
    openssl enc -$cipher -K $k ${i:+-iv $i} -in data -out sealed
    openssl enc -d -$cipher -K $k ${i:+-iv $i} -in sealed -out opened
    cmp data opened
    echo "= $cipher $(openssl dgst -sha256 -r sealed)"
done

echo "= hmac $(openssl mac -digest SHA512 -macopt hexkey:$key -in data HMAC)"
echo "= cmac $(openssl mac -cipher AES-256-CBC -macopt hexkey:$key -in data CMAC)"
echo "= gmac $(openssl mac -cipher AES-256-GCM -macopt hexkey:$key -macopt hexiv:$iv -in data GMAC)"
echo "= poly1305 $(openssl mac -macopt hexkey:$key -in data Poly1305)"
echo "= siphash $(openssl mac -macopt hexkey:$(echo $key | cut -c 1-32) -in data SipHash)"
echo "= kmac $(openssl mac -macopt hexkey:$key -in data KMAC256)"
echo "= pbkdf2 $(openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt pass:tessera -kdfopt salt:mosaic -kdfopt iter:2000 PBKDF2)"
echo "= scrypt $(openssl kdf -keylen 32 -kdfopt pass:tessera -kdfopt salt:mosaic -kdfopt n:1024 -kdfopt r:8 -kdfopt p:1 SCRYPT)"

# 2^521 - 1 is prime, 2^523 - 1 is not.
f130=$(printf 'F%.0s' $(seq 130))
echo "= prime $(openssl prime -hex 1$f130)"
echo "= prime $(openssl prime -hex 7$f130)"

for kind in "RSA -pkeyopt rsa_keygen_bits:2048" "EC -pkeyopt ec_paramgen_curve:P-256" \
    "EC -pkeyopt ec_paramgen_curve:P-384" "EC -pkeyopt ec_paramgen_curve:secp256k1"; do
    openssl genpkey -quiet -algorithm $kind -out key
    openssl pkey -in key -pubout -out public
    openssl dgst -sha256 -sign key -out signature data
    echo "= $kind: $(openssl dgst -sha256 -verify public -signature signature data)"
    echo "= $kind, another file: $(openssl dgst -sha256 -verify public -signature signature sealed 2> /dev/null)"
done

# A signature of Ed25519 is a function of key and message: the first test of RFC 8032, 7.1, with our data.
{
    printf '\060\056\002\001\000\060\005\006\003\053\145\160\004\042\004\040'
    echo 9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60 | xxd -r -p
} > seed.der
openssl pkey -inform DER -in seed.der -out key
echo "= ed25519 $(openssl pkey -in key -pubout -outform DER | openssl dgst -sha256 -r)"
openssl pkeyutl -sign -inkey key -rawin -in data -out signature
echo "= ed25519 $(openssl dgst -sha256 -r signature)"

speeds="sha256 aes-128-gcm"
[ "$1" = long ] && speeds="sha1 sha256 sha512 aes-128-cbc aes-256-gcm chacha20-poly1305 camellia-128-cbc"
for algorithm in $speeds; do
    openssl speed -seconds 1 -bytes 8192 -evp $algorithm
done
if [ "$1" = long ]; then
    openssl speed -seconds 1 rsa2048 ecdsap256 ecdhx25519 ed25519
fi
