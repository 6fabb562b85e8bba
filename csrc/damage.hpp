// Damage of hidden states as a lossy or noisy link would do it, reproducible from (seed, layer, position, element).
#pragma once

#include "dispatch.hpp"

namespace edge {

// Zeroes each element with probability threshold / 2^32 (threshold up to 2^32) and multiplies the others by `scale`.
// Token t of `values` [tokens, width] is at position place.position + t.
void erase(const KernelSet& kernels, float* values, std::size_t tokens, std::size_t width, std::uint64_t threshold,
           float scale, Place place);

// Adds sigma * z, z standard normal, to each element.
void add_noise(const KernelSet& kernels, float* values, std::size_t tokens, std::size_t width, float sigma,
               Place place);

}  // namespace edge
