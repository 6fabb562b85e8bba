// Lost elements of hidden states, replaced by what they most likely are, given the elements that came.
//
// For a vector with covariance C and precision P = C^-1 the best linear estimate of the lost part m from the received
// part r is  mean_m - P_mm^-1 P_mr (y_r - mean_r)  (Rue, Held: "Gaussian Markov Random Fields", 2005, theorem 2.3): a
// system of as many unknowns as were lost, from one matrix for every pattern of losses. It is solved by conjugate
// gradients (Hestenes, Stiefel: "Methods of conjugate gradients for solving linear systems", 1952): with P scaled to
// ones on its diagonal they converge in five to twenty steps, where a factorisation would cost the cube.
#pragma once

#include "dispatch.hpp"

namespace edge {

// What is known of the elements of hidden states at one boundary.
struct Knowledge {
    const float* mean;       // [width]
    const float* spread;     // [width], 1 / sqrt(P_ii): an element's standard deviation given all others
    const float* precision;  // [width, width], P_ij * spread_i * spread_j
};

// In place in each of the `tokens` rows of `values`: elements whose `lost` is not zero. The others are only read.
void conceal(const KernelSet& kernels, float* values, const std::uint8_t* lost, std::size_t tokens, std::size_t width,
             const Knowledge& known);

}  // namespace edge
