#include "damage.hpp"

#include <algorithm>

namespace edge {

// A tile's draws stay in the first-level cache: 64 blocks are 1 KiB.
static constexpr std::size_t kTileBlocks = 64;
static constexpr std::size_t kDrawsPerBlock = 8;
static constexpr std::size_t kWordsPerBlock = 4;

struct Tile {
    alignas(64) std::uint32_t words[kWordsPerBlock * (kTileBlocks + kPadBlocks)];
};

static std::size_t blocks_for(std::size_t elements, std::size_t per_block) {
    return (elements + per_block - 1) / per_block;
}

static std::uint16_t draw(const std::uint32_t* words, std::size_t element) {
    return static_cast<std::uint16_t>(words[element / 2] >> (16 * (element % 2)));
}

// An element whose 16 bits equal the threshold's upper half is decided by 16 more; one in 65536 is.
static void settle_ties(const KernelSet& kernels, float* values, const std::uint32_t* words, std::size_t size,
                        std::uint32_t threshold, std::uint32_t first_block, const Place& place) {
    Tile ties;
    kernels.random_blocks(ties.words, blocks_for(size, kDrawsPerBlock), first_block, place, Stream::erasure_tie);
    for (std::size_t i = 0; i < size; ++i) {
        if (draw(words, i) != threshold >> 16) continue;
        if (draw(ties.words, i) < (threshold & 0xffffU)) store(values, i, 0.0F);
    }
}

void erase(const KernelSet& kernels, float* values, std::size_t tokens, std::size_t width, std::uint64_t threshold,
           float scale, Place place) {
    if (threshold > UINT32_MAX) {  // probability one
        std::fill_n(reinterpret_cast<char*>(values), tokens * width * sizeof(float), char{0});
        return;
    }
    const auto limit = static_cast<std::uint32_t>(threshold);
    constexpr std::size_t kTileElements = kTileBlocks * kDrawsPerBlock;
    Tile tile;
    for (std::size_t token = 0; token < tokens; ++token, ++place.position) {
        for (std::size_t start = 0; start < width; start += kTileElements) {
            float* const part = values + token * width + start;
            const std::size_t size = std::min(kTileElements, width - start);
            const auto first = static_cast<std::uint32_t>(start / kDrawsPerBlock);
            kernels.random_blocks(tile.words, blocks_for(size, kDrawsPerBlock), first, place, Stream::erasure);
            const auto* const draws = reinterpret_cast<const std::uint16_t*>(tile.words);
            const bool tied = kernels.erase_tile(part, draws, size, static_cast<std::uint16_t>(limit >> 16), scale);
            if (tied) settle_ties(kernels, part, tile.words, size, limit, first, place);
        }
    }
}

void add_noise(const KernelSet& kernels, float* values, std::size_t tokens, std::size_t width, float sigma,
               Place place) {
    constexpr std::size_t kTileElements = kTileBlocks * kWordsPerBlock;
    Tile tile;
    for (std::size_t token = 0; token < tokens; ++token, ++place.position) {
        for (std::size_t start = 0; start < width; start += kTileElements) {
            const std::size_t size = std::min(kTileElements, width - start);
            const auto first = static_cast<std::uint32_t>(start / kWordsPerBlock);
            kernels.random_blocks(tile.words, blocks_for(size, kWordsPerBlock), first, place, Stream::noise);
            kernels.noise_tile(values + token * width + start, tile.words, size, sigma);
        }
    }
}

}  // namespace edge
