// The reference: one element at a time, any CPU. Every other set must give the same bits.
#include <cmath>

#include "convert.hpp"
#include "crc32c.hpp"
#include "dispatch.hpp"
#include "normal.hpp"

namespace edge {
namespace {

struct ScalarLanes {
    using Double = double;
    static double fill(double value) { return value; }
    static std::uint64_t fill_bits(std::uint64_t value) { return value; }
    static std::uint64_t to_bits(double value) { return bits_as<std::uint64_t>(value); }
    static double from_bits(std::uint64_t bits) { return bits_as<double>(bits); }
    static bool less(double a, double b) { return a < b; }
    static double select(bool mask, double yes, double no) { return mask ? yes : no; }
    static double choose(bool second, const double (&pair)[2]) { return pair[second ? 1 : 0]; }
    static double square_root(double value) { return std::sqrt(value); }
};

std::size_t pack_half(const float* from, Half* to, std::size_t size, bool /*stream*/) {
    std::size_t clipped = 0;
    for (std::size_t i = 0; i < size; ++i) {
        const float value = load(from, i);
        clipped += exceeds_half(bits_as<std::uint32_t>(value)) ? 1U : 0U;
        store(to, i, float_to_half(value));
    }
    return clipped;
}

void unpack_half(const Half* from, float* to, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) store(to, i, half_to_float(load(from, i)));
}

std::size_t round_half(float* values, std::size_t size) {
    std::size_t clipped = 0;
    for (std::size_t i = 0; i < size; ++i) {
        const float value = load(values, i);
        clipped += exceeds_half(bits_as<std::uint32_t>(value)) ? 1U : 0U;
        store(values, i, half_to_float(float_to_half(value)));
    }
    return clipped;
}

void pack_brain(const float* from, Brain* to, std::size_t size, bool /*stream*/) {
    for (std::size_t i = 0; i < size; ++i) store(to, i, float_to_brain(load(from, i)));
}

void unpack_brain(const Brain* from, float* to, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) store(to, i, brain_to_float(load(from, i)));
}

void round_brain(float* values, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) store(values, i, brain_to_float(float_to_brain(load(values, i))));
}

std::uint32_t largest_magnitude(const float* row, std::size_t size) {
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < size; ++i) {
        const std::uint32_t magnitude = bits_as<std::uint32_t>(load(row, i)) & kMagnitude;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

void quantize(const float* row, std::int8_t* to, std::size_t size, float scale) {
    for (std::size_t i = 0; i < size; ++i) to[i] = float_to_int8(load(row, i), scale);
}

void dequantize(const std::int8_t* from, float* row, std::size_t size, float scale) {
    for (std::size_t i = 0; i < size; ++i) store(row, i, static_cast<float>(from[i]) * scale);
}

void random_blocks(std::uint32_t* words, std::size_t blocks, std::uint32_t first, const Place& place, Stream stream) {
    const RoundKeys<ScalarPhilox> keys(place.seed);
    for (std::size_t i = 0; i < blocks; ++i) {
        std::uint32_t counter[1][4] = {
            {first + static_cast<std::uint32_t>(i), place.position, place.layer, static_cast<std::uint32_t>(stream)}};
        philox_rounds(counter, keys);
        std::memcpy(words + 4 * i, counter, sizeof(counter));
    }
}

bool erase_tile(float* values, const std::uint16_t* draws, std::size_t size, std::uint16_t threshold, float scale) {
    bool tied = false;
    for (std::size_t i = 0; i < size; ++i) {
        const std::uint16_t draw = load(draws, i);
        tied |= draw == threshold;
        if (draw < threshold) {
            store(values, i, 0.0F);
        } else if (scale != 1.0F) {
            store(values, i, load(values, i) * scale);
        }
    }
    return tied;
}

void noise_tile(float* values, const std::uint32_t* words, std::size_t size, float sigma) {
    for (std::size_t i = 0; i < size; ++i) {
        const auto normal = static_cast<float>(standard_normal<ScalarLanes>(static_cast<double>(words[i])));
        const float noise = sigma * normal;
        store(values, i, load(values, i) + noise);
    }
}

float dot(const float* a, const float* b, std::size_t size) {
    float sums[kDotLanes] = {};
    for (std::size_t i = 0; i < size; ++i) sums[i % kDotLanes] += load(a, i) * load(b, i);
    // What pads the last turn adds +0, which changes no sum: none is -0.
    for (std::size_t half = kDotLanes / 2; half != 0; half /= 2)
        for (std::size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

}  // namespace

extern const KernelSet kScalar;
const KernelSet kScalar = {
    "scalar", pack_half,  unpack_half,   round_half, pack_brain, unpack_brain,  round_brain, largest_magnitude,
    quantize, dequantize, random_blocks, erase_tile, noise_tile, crc32c_sliced, dot,
};

}  // namespace edge
