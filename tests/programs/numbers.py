"""Hashes over many results of arithmetic, of the C library's functions, and of text conversion."""

import hashlib
import json
import math
import random
import struct

random.seed(20011)


def numbers(count):
    """Numbers of every size, edges included."""
    edges = [0.0, -0.0, 1.0, -1.0, 0.5, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308]
    yield from edges
    for _ in range(count):
        yield struct.unpack("<d", struct.pack("<Q", random.getrandbits(64)))[0]
        yield random.uniform(-20, 20)
        yield random.uniform(-1, 1)


def say(name, results):
    digest = hashlib.sha256()
    for result in results:
        digest.update(result if isinstance(result, bytes) else repr(result).encode())
    print("=", name, digest.hexdigest())


def bits(function, *arguments):
    try:
        result = function(*arguments)
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        return str(error).encode()
    # The sign and the payload of a NaN are nobody's promise.
    return b"nan" if result != result else struct.pack("<d", result)


sample = list(numbers(1200))
for name in (
    "sqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp expm1 exp2 log log1p log2 log10 "
    "erf erfc gamma lgamma fabs cbrt"
).split():
    function = getattr(math, name)
    say(name, (bits(function, x) for x in sample))
pairs = list(zip(sample, random.sample(sample, len(sample))))
for name in "fmod atan2 hypot copysign pow remainder nextafter".split():
    function = getattr(math, name)
    say(name, (bits(function, x, y) for x, y in pairs))
for name, function in {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
}.items():
    say(name, (bits(function, x, y) for x, y in pairs))
say("float to text", (repr(x).encode() for x in sample))
say("text to float", (bits(float, f"{x:.25e}") for x in sample))
say("single precision", (struct.pack("<f", x) for x in sample if abs(x) < 1e38))
say("half precision", (struct.pack("<e", x) for x in sample if abs(x) < 60000))
say("long division", (divmod(random.getrandbits(900), random.getrandbits(200) | 1) for _ in range(300)))
say("modular power", (pow(random.getrandbits(400), 65537, random.getrandbits(400) | 1) for _ in range(20)))
say("json", [json.dumps([x for x in sample if math.isfinite(x)])])
say("sort", sorted(x for x in sample if x == x))
for algorithm in sorted(hashlib.algorithms_guaranteed):
    if not algorithm.startswith("shake"):
        say(algorithm, [hashlib.new(algorithm, b"tessera" * 9999).digest()])
