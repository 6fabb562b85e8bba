#include "conceal.hpp"

#include <algorithm>
#include <vector>

namespace edge {

// The residual's energy that is left: an error of one part in a thousand, far below what the estimate can know.
static constexpr float kResidualLeft = 1e-6F;
static constexpr std::size_t kMostSteps = 64;
// Any finite energy above this would overflow in the steps; such a token's lost elements become the mean.
static constexpr float kMostEnergy = 1e30F;

namespace {

struct Workspace {
    std::vector<std::size_t> index;  // of the lost elements
    std::vector<float> deviation;    // of all elements from the mean, in units of the spread; 0 where lost
    std::vector<float> matrix;       // precision among the lost elements, rows padded to kDotLanes
    std::vector<float> solution;
    std::vector<float> residual;
    std::vector<float> direction;
    std::vector<float> image;
};

void multiply_add(std::vector<float>& to, float factor, const std::vector<float>& by) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += factor * by[i];
}

void solve(const KernelSet& kernels, Workspace& work, std::size_t padded) {
    const std::size_t size = work.index.size();
    work.solution.assign(padded, 0.0F);
    work.direction = work.residual;
    work.image.assign(padded, 0.0F);
    float energy = kernels.dot(work.residual.data(), work.residual.data(), padded);
    const float enough = energy * kResidualLeft;
    if (!(energy < kMostEnergy)) return;
    for (std::size_t step = 0; step < kMostSteps && energy > enough; ++step) {
        for (std::size_t i = 0; i < size; ++i)
            work.image[i] = kernels.dot(work.matrix.data() + i * padded, work.direction.data(), padded);
        const float curvature = kernels.dot(work.direction.data(), work.image.data(), padded);
        if (!(curvature > 0.0F)) return;
        const float length = energy / curvature;
        multiply_add(work.solution, length, work.direction);
        multiply_add(work.residual, -length, work.image);
        const float left = kernels.dot(work.residual.data(), work.residual.data(), padded);
        const float turn = left / energy;
        for (std::size_t i = 0; i < padded; ++i) work.direction[i] = work.residual[i] + turn * work.direction[i];
        energy = left;
    }
}

void conceal_token(const KernelSet& kernels, float* values, const std::uint8_t* lost, std::size_t width,
                   const Knowledge& known, Workspace& work) {
    work.index.clear();
    work.deviation.assign(width, 0.0F);
    for (std::size_t i = 0; i < width; ++i) {
        if (lost[i] != 0) {
            work.index.push_back(i);
        } else {
            work.deviation[i] = (load(values, i) - load(known.mean, i)) / load(known.spread, i);
        }
    }
    const std::size_t size = work.index.size();
    if (size == 0) return;
    const std::size_t padded = (size + kDotLanes - 1) / kDotLanes * kDotLanes;
    work.matrix.assign(size * padded, 0.0F);
    work.residual.assign(padded, 0.0F);
    for (std::size_t i = 0; i < size; ++i) {
        const float* const row = known.precision + work.index[i] * width;
        work.residual[i] = 0.0F - kernels.dot(row, work.deviation.data(), width);
        for (std::size_t j = 0; j < size; ++j) work.matrix[i * padded + j] = load(row, work.index[j]);
    }
    solve(kernels, work, padded);
    for (std::size_t i = 0; i < size; ++i) {
        const std::size_t at = work.index[i];
        const float moved = work.solution[i] * load(known.spread, at);
        store(values, at, load(known.mean, at) + moved);
    }
}

}  // namespace

void conceal(const KernelSet& kernels, float* values, const std::uint8_t* lost, std::size_t tokens, std::size_t width,
             const Knowledge& known) {
    Workspace work;
    for (std::size_t token = 0; token < tokens; ++token)
        conceal_token(kernels, values + token * width, lost + token * width, width, known, work);
}

}  // namespace edge
