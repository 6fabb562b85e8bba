#include "pack.hpp"

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

}  // namespace edge
