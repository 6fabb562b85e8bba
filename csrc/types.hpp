// What every kernel shares: names of the formats, and access to memory of any alignment.
//
// Everything here and in the other headers that more than one instruction set includes is `static`: each translation
// unit is compiled with its own flags, and the linker must never hand AVX-512 code of one to another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace edge {

using Half = std::uint16_t;   // bits of IEEE 754 binary16
using Brain = std::uint16_t;  // bits of bfloat16: the upper half of binary32

static_assert(sizeof(float) == 4 && sizeof(double) == 8, "IEEE 754 formats expected");
#if defined(__BYTE_ORDER__)
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian and so are the kernels");
#endif

// A payload starts wherever the message happened to be received, so no pointer is assumed to be aligned.
template <class T>
static inline T load(const T* base, std::size_t index) {
    T value;
    std::memcpy(&value, reinterpret_cast<const char*>(base) + index * sizeof(T), sizeof(T));
    return value;
}

template <class T>
static inline void store(T* base, std::size_t index, T value) {
    std::memcpy(reinterpret_cast<char*>(base) + index * sizeof(T), &value, sizeof(T));
}

template <class To, class From>
static inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size expected");
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

}  // namespace edge
