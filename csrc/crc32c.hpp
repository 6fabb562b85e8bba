// CRC-32C (Castagnoli; RFC 3720 appendix B.4): slicing by eight, and the three-way interleave around a CPU's own
// CRC instruction, which has a latency of three cycles and a throughput of one per cycle.
#pragma once

#include <array>

#include "types.hpp"

namespace edge {

static constexpr std::uint32_t kCastagnoli = 0x82F63B78U;  // the polynomial, bits reversed
static constexpr std::size_t kLongLane = 2048;
static constexpr std::size_t kShortLane = 256;

using CrcTable = std::array<std::array<std::uint32_t, 256>, 8>;
using ShiftTable = std::array<std::array<std::uint32_t, 256>, 4>;

// Row k of the table is the CRC of a byte followed by k zero bytes.
constexpr CrcTable make_crc_table() {
    CrcTable table{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? kCastagnoli : 0U);
        table[0][byte] = crc;
    }
    for (std::size_t k = 1; k < 8; ++k)
        for (std::size_t byte = 0; byte < 256; ++byte)
            table[k][byte] = (table[k - 1][byte] >> 8) ^ table[0][table[k - 1][byte] & 0xffU];
    return table;
}

constexpr std::uint32_t times(const std::array<std::uint32_t, 32>& matrix, std::uint32_t vector) {
    std::uint32_t sum = 0;
    for (std::size_t row = 0; vector != 0; ++row, vector >>= 1)
        if ((vector & 1U) != 0) sum ^= matrix[row];
    return sum;
}

// Appending zero bytes is linear over GF(2): the matrix of one zero bit, squared until it means `bytes` (a power of
// two) zero bytes, then tabulated per byte of the CRC.
constexpr ShiftTable make_shift_table(std::size_t bytes) {
    std::array<std::uint32_t, 32> matrix{};
    matrix[0] = kCastagnoli;
    for (std::size_t bit = 1; bit < 32; ++bit) matrix[bit] = 1U << (bit - 1);
    for (std::size_t bits = 1; bits < 8 * bytes; bits *= 2) {
        std::array<std::uint32_t, 32> square{};
        for (std::size_t bit = 0; bit < 32; ++bit) square[bit] = times(matrix, matrix[bit]);
        matrix = square;
    }
    ShiftTable table{};
    for (std::uint32_t k = 0; k < 4; ++k)
        for (std::uint32_t byte = 0; byte < 256; ++byte) table[k][byte] = times(matrix, byte << (8 * k));
    return table;
}

inline constexpr CrcTable kCrcTable = make_crc_table();
inline constexpr ShiftTable kLongShift = make_shift_table(kLongLane);
inline constexpr ShiftTable kShortShift = make_shift_table(kShortLane);

static inline std::uint32_t append_zeros(const ShiftTable& table, std::uint32_t crc) {
    return table[0][crc & 0xffU] ^ table[1][(crc >> 8) & 0xffU] ^ table[2][(crc >> 16) & 0xffU] ^ table[3][crc >> 24];
}

static inline std::uint32_t crc32c_sliced(const std::uint8_t* data, std::size_t size, std::uint32_t crc) {
    crc = ~crc;
    for (; size >= 8; data += 8, size -= 8) {
        const std::uint32_t low = load(reinterpret_cast<const std::uint32_t*>(data), 0) ^ crc;
        const std::uint32_t high = load(reinterpret_cast<const std::uint32_t*>(data), 1);
        crc = kCrcTable[7][low & 0xffU] ^ kCrcTable[6][(low >> 8) & 0xffU] ^ kCrcTable[5][(low >> 16) & 0xffU] ^
              kCrcTable[4][low >> 24] ^ kCrcTable[3][high & 0xffU] ^ kCrcTable[2][(high >> 8) & 0xffU] ^
              kCrcTable[1][(high >> 16) & 0xffU] ^ kCrcTable[0][high >> 24];
    }
    for (; size > 0; ++data, --size) crc = (crc >> 8) ^ kCrcTable[0][(crc ^ *data) & 0xffU];
    return ~crc;
}

// Three lanes of `lane` bytes at a time; Step::eight and Step::one are the CPU's instructions.
template <class Step>
static inline std::uint32_t crc32c_lanes(const std::uint8_t*& data, std::size_t& size, std::uint32_t crc,
                                         std::size_t lane, const ShiftTable& shift) {
    for (; size >= 3 * lane; data += 3 * lane, size -= 3 * lane) {
        std::uint64_t first = crc;
        std::uint64_t second = 0;
        std::uint64_t third = 0;
        for (std::size_t i = 0; i < lane; i += 8) {
            first = Step::eight(first, load(reinterpret_cast<const std::uint64_t*>(data + i), 0));
            second = Step::eight(second, load(reinterpret_cast<const std::uint64_t*>(data + lane + i), 0));
            third = Step::eight(third, load(reinterpret_cast<const std::uint64_t*>(data + 2 * lane + i), 0));
        }
        crc = append_zeros(shift, static_cast<std::uint32_t>(first)) ^ static_cast<std::uint32_t>(second);
        crc = append_zeros(shift, crc) ^ static_cast<std::uint32_t>(third);
    }
    return crc;
}

template <class Step>
static inline std::uint32_t crc32c_interleaved(const std::uint8_t* data, std::size_t size, std::uint32_t crc) {
    crc = ~crc;
    crc = crc32c_lanes<Step>(data, size, crc, kLongLane, kLongShift);
    crc = crc32c_lanes<Step>(data, size, crc, kShortLane, kShortShift);
    std::uint64_t wide = crc;
    for (; size >= 8; data += 8, size -= 8)
        wide = Step::eight(wide, load(reinterpret_cast<const std::uint64_t*>(data), 0));
    crc = static_cast<std::uint32_t>(wide);
    for (; size > 0; ++data, --size) crc = Step::one(crc, *data);
    return ~crc;
}

}  // namespace edge
