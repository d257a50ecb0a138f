// What lets a kernel's source compile as plain C++17: its qualifiers mean nothing there, and the instructions that CUDA
// has and C++ has not are spelt out. Everything else of a kernel is the same lines on a device and on a host.
#pragma once
#include <cmath>
#include <cstring>

#define __device__
#define __forceinline__ inline
#define __restrict__

static inline unsigned int bits_of(float value) {
    unsigned int bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline void fetch(const unsigned char *) {}

// Bytes of the eight of (a, b), a's first, picked by the nibbles of `picks`.
static inline unsigned int __byte_perm(unsigned int a, unsigned int b, unsigned int picks) {
    const unsigned long long all = a | (unsigned long long)b << 32;
    unsigned int picked = 0;
    for (int i = 0; i < 4; ++i) picked |= (unsigned int)(all >> 8 * (picks >> 4 * i & 7) & 255) << 8 * i;
    return picked;
}

// sum + the two halves of `pair` times two bytes of `bytes`, the lower or the upper ones.
static inline unsigned int dot_low(unsigned int pair, unsigned int bytes, unsigned int sum) {
    return sum + (pair & 0xFFFF) * (bytes & 255) + (pair >> 16) * (bytes >> 8 & 255);
}
static inline unsigned int dot_high(unsigned int pair, unsigned int bytes, unsigned int sum) {
    return dot_low(pair, bytes >> 16, sum);
}

// To nearest, ties to even; not NaN.
static inline unsigned short float16_of(float value) {
    const unsigned int bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
    if (size >= 0x477FF000) return (unsigned short)(sign | 0x7C00);  // rounds to 65536 or more
    if (size < 0x38800000) {                                         // subnormal: in steps of 2^-24
        return (unsigned short)(sign | (unsigned int)std::nearbyint(std::fabs((double)value) * 16777216.0));
    }
    return (unsigned short)(sign | ((size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13));
}
