// Which kernels this CPU can run: one KernelSet per instruction set, best first, scalar last.
//
// A KernelSet holds the inner loops only; rows, tokens and tiles are walked in pack.cpp and damage.cpp, once for all.
#pragma once

#include <string>
#include <vector>

#include "philox.hpp"
#include "types.hpp"

namespace edge {

struct KernelSet {
    const char* name;

    // fp32 to fp16; returns how many elements were clipped. `stream` writes past the caches.
    std::size_t (*pack_half)(const float* from, Half* to, std::size_t size, bool stream);
    void (*unpack_half)(const Half* from, float* to, std::size_t size);
    std::size_t (*round_half)(float* values, std::size_t size);

    void (*pack_brain)(const float* from, Brain* to, std::size_t size, bool stream);
    void (*unpack_brain)(const Brain* from, float* to, std::size_t size);
    void (*round_brain)(float* values, std::size_t size);

    // Largest magnitude of a row as bits, which order like unsigned integers: a NaN comes out on top.
    std::uint32_t (*largest_magnitude)(const float* row, std::size_t size);
    void (*quantize)(const float* row, std::int8_t* to, std::size_t size, float scale);
    void (*dequantize)(const std::int8_t* from, float* row, std::size_t size, float scale);

    // `blocks` Philox blocks from `first` on, four words each, in order. May write up to kPadBlocks more.
    void (*random_blocks)(std::uint32_t* words, std::size_t blocks, std::uint32_t first, const Place& place, Stream);
    // Zeroes each element whose draw is below `threshold` and multiplies the others; true if a draw equals it.
    bool (*erase_tile)(float* values, const std::uint16_t* draws, std::size_t size, std::uint16_t threshold,
                       float scale);
    // values += sigma * z, z normal.
    void (*noise_tile)(float* values, const std::uint32_t* words, std::size_t size, float sigma);

    std::uint32_t (*crc32c)(const std::uint8_t* data, std::size_t size, std::uint32_t crc);

    // Sum of products, in an order that is the same everywhere: kDotLanes sums side by side, element i in sum
    // i % kDotLanes, zeros behind the last one; then the upper half of the sums is added to the lower until one is
    // left.
    float (*dot)(const float* a, const float* b, std::size_t size);
};

static constexpr std::size_t kPadBlocks = 32;
static constexpr std::size_t kDotLanes = 32;

// Kernel sets this CPU can run, best first; the scalar one is always there and last.
std::vector<const KernelSet*> runnable_kernels();

// One of them by name, or nullptr.
const KernelSet* find_kernels(const std::string& name);

}  // namespace edge
