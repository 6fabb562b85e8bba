// Hidden states to and from the bytes of the wire, and rounding to the boundary type.
#pragma once

#include "dispatch.hpp"

namespace edge {

// Returns the number of elements clipped to +-65504.
std::size_t pack_half(const KernelSet& kernels, const float* from, Half* to, std::size_t size);
void pack_brain(const KernelSet& kernels, const float* from, Brain* to, std::size_t size);

// Layout: rows * width int8 elements, then one fp32 scale per row, absmax / 127. A row with a NaN or an infinity gets
// the scale NaN and so comes out as NaN throughout: nothing is made up for it.
void pack_int8(const KernelSet& kernels, const float* from, std::uint8_t* to, std::size_t rows, std::size_t width);
void unpack_int8(const KernelSet& kernels, const std::uint8_t* from, float* to, std::size_t rows, std::size_t width);

// int4: elements in -7 .. 7, two per byte, the earlier one in the lower half; behind them one fp16 scale for each
// kInt4Group elements of a row, absmax / 7. A row's elements take whole bytes. A group with a NaN or an infinity gets
// the scale NaN; one beyond 7 * 65504 saturates there.
static constexpr std::size_t kInt4Group = 32;
std::size_t int4_bytes(std::size_t rows, std::size_t width);
void pack_int4(const KernelSet& kernels, const float* from, std::uint8_t* to, std::size_t rows, std::size_t width);
void unpack_int4(const KernelSet& kernels, const std::uint8_t* from, float* to, std::size_t rows, std::size_t width);

}  // namespace edge
