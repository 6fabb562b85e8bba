#include "pack.hpp"

#include <algorithm>

#include "convert.hpp"

namespace edge {

// Beyond this many elements the output would only push the model out of the cache it shares with us.
static constexpr std::size_t kStreamElements = std::size_t{2} << 20;

std::size_t pack_half(const KernelSet& kernels, const float* from, Half* to, std::size_t size) {
    return kernels.pack_half(from, to, size, size >= kStreamElements);
}

void pack_brain(const KernelSet& kernels, const float* from, Brain* to, std::size_t size) {
    kernels.pack_brain(from, to, size, size >= kStreamElements);
}

void pack_int8(const KernelSet& kernels, const float* from, std::uint8_t* to, std::size_t rows, std::size_t width) {
    auto* const elements = reinterpret_cast<std::int8_t*>(to);
    auto* const scales = reinterpret_cast<float*>(to + rows * width);
    for (std::size_t row = 0; row < rows; ++row) {
        const float* const values = from + row * width;
        std::int8_t* const quantized = elements + row * width;
        const std::uint32_t largest = kernels.largest_magnitude(values, width);
        float scale = bits_as<float>(largest) / 127.0F;
        if (largest >= kInfinityBits) scale = bits_as<float>(kInfinityBits | kQuietBit);
        store(scales, row, scale);
        if (scale > 0.0F) {
            kernels.quantize(values, quantized, width, scale);
        } else {
            std::memset(quantized, 0, width);
        }
    }
}

void unpack_int8(const KernelSet& kernels, const std::uint8_t* from, float* to, std::size_t rows, std::size_t width) {
    const auto* const elements = reinterpret_cast<const std::int8_t*>(from);
    const auto* const scales = reinterpret_cast<const float*>(from + rows * width);
    for (std::size_t row = 0; row < rows; ++row)
        kernels.dequantize(elements + row * width, to + row * width, width, load(scales, row));
}

static std::size_t int4_groups(std::size_t width) { return (width + kInt4Group - 1) / kInt4Group; }

std::size_t int4_bytes(std::size_t rows, std::size_t width) {
    return rows * ((width + 1) / 2 + sizeof(Half) * int4_groups(width));
}

// Half of the scale in use: what is divided by is what will be multiplied with.
static Half int4_scale(const KernelSet& kernels, const float* group, std::size_t size) {
    const std::uint32_t largest = kernels.largest_magnitude(group, size);
    return largest >= kInfinityBits ? Half{0x7e00} : float_to_half(bits_as<float>(largest) / 7.0F);
}

static void quantize_group(const KernelSet& kernels, const float* group, std::int8_t* to, std::size_t size,
                           float scale) {
    if (!(scale > 0.0F)) return;
    if (scale < kHalfMax) return kernels.quantize(group, to, size, scale);
    // A scale that has saturated: kernels convert quotients to integers, which must not overflow.
    float limited[kInt4Group];
    for (std::size_t i = 0; i < size; ++i) limited[i] = std::clamp(load(group, i), -7.0F * scale, 7.0F * scale);
    kernels.quantize(limited, to, size, scale);
}

void pack_int4(const KernelSet& kernels, const float* from, std::uint8_t* to, std::size_t rows, std::size_t width) {
    auto* const scales = reinterpret_cast<Half*>(to + rows * ((width + 1) / 2));
    for (std::size_t row = 0; row < rows; ++row) {
        for (std::size_t group = 0; group < int4_groups(width); ++group) {
            const std::size_t start = group * kInt4Group;
            const std::size_t size = std::min(kInt4Group, width - start);
            const float* const values = from + row * width + start;
            const Half half = int4_scale(kernels, values, size);
            store(scales, row * int4_groups(width) + group, half);
            std::int8_t wide[kInt4Group] = {};
            quantize_group(kernels, values, wide, size, half_to_float(half));
            std::uint8_t* const packed = to + row * ((width + 1) / 2) + start / 2;
            for (std::size_t i = 0; i < (size + 1) / 2; ++i) {
                const int low = std::clamp<int>(wide[2 * i], -7, 7);
                const int high = std::clamp<int>(wide[2 * i + 1], -7, 7);
                packed[i] = static_cast<std::uint8_t>((low & 0xf) | (high & 0xf) << 4);
            }
        }
    }
}

void unpack_int4(const KernelSet& kernels, const std::uint8_t* from, float* to, std::size_t rows, std::size_t width) {
    const auto* const scales = reinterpret_cast<const Half*>(from + rows * ((width + 1) / 2));
    for (std::size_t row = 0; row < rows; ++row) {
        for (std::size_t group = 0; group < int4_groups(width); ++group) {
            const std::size_t start = group * kInt4Group;
            const std::size_t size = std::min(kInt4Group, width - start);
            const std::uint8_t* const packed = from + row * ((width + 1) / 2) + start / 2;
            std::int8_t wide[kInt4Group] = {};
            for (std::size_t i = 0; i < (size + 1) / 2; ++i) {  // the exclusive or extends the sign of four bits
                wide[2 * i] = static_cast<std::int8_t>(((packed[i] & 0xf) ^ 8) - 8);
                wide[2 * i + 1] = static_cast<std::int8_t>((packed[i] >> 4 ^ 8) - 8);
            }
            const float scale = half_to_float(load(scales, row * int4_groups(width) + group));
            kernels.dequantize(wide, to + row * width + start, size, scale);
        }
    }
}

}  // namespace edge
