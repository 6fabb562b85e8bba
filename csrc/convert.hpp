// One element at a time: fp32 to and from fp16, bf16 and int8. The definition that every vector path must meet.
#pragma once

#include "types.hpp"

namespace edge {

static constexpr float kHalfMax = 65504.0F;
static constexpr std::uint32_t kHalfMaxBits = 0x477fe000U;
static constexpr std::uint32_t kInfinityBits = 0x7f800000U;
static constexpr std::uint32_t kQuietBit = 0x00400000U;
static constexpr std::uint32_t kMagnitude = 0x7fffffffU;
// Adding and subtracting 1.5 * 2^23 rounds a float below 2^22 to an integer, half to even.
static constexpr float kRounder = 12582912.0F;

// True for a value, infinities included, that fp16 cannot hold and that is clipped to +-65504. A NaN is none.
static inline bool exceeds_half(std::uint32_t bits) {
    const std::uint32_t magnitude = bits & kMagnitude;
    return magnitude > kHalfMaxBits && magnitude <= kInfinityBits;
}

// Round to nearest even, saturating; a NaN stays a quiet NaN with its sign and the upper bits of its payload. All three
// results are computed and one is selected: without branches compilers turn loops over this into vector code.
static inline Half float_to_half(float value) {
    const auto bits = bits_as<std::uint32_t>(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000U;
    const std::uint32_t magnitude = bits & kMagnitude;
    const std::uint32_t clipped = magnitude > kHalfMaxBits ? kHalfMaxBits : magnitude;
    const std::uint32_t normal = (clipped - 0x38000000U + 0xfffU + ((clipped >> 13) & 1U)) >> 13;
    // Below 2^-14 fp16 counts in steps of 2^-24, which is the spacing of floats just above 0.5.
    const std::uint32_t subnormal = bits_as<std::uint32_t>(bits_as<float>(clipped) + 0.5F) - 0x3f000000U;
    const std::uint32_t nan = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
    const std::uint32_t number = clipped < 0x38800000U ? subnormal : normal;
    return static_cast<Half>(sign | (magnitude > kInfinityBits ? nan : number));
}

static inline float half_to_float(Half half) {
    const std::uint32_t sign = (half & 0x8000U) << 16;
    const std::uint32_t magnitude = half & 0x7fffU;
    const std::uint32_t subnormal = bits_as<std::uint32_t>(static_cast<float>(static_cast<int>(magnitude)) * 0x1p-24F);
    const std::uint32_t normal = (magnitude << 13) + 0x38000000U;
    const std::uint32_t quiet = magnitude > 0x7c00U ? kQuietBit : 0U;
    const std::uint32_t finite = magnitude < 0x0400U ? subnormal : normal;
    return bits_as<float>(sign | (magnitude >= 0x7c00U ? (magnitude << 13) | kInfinityBits | quiet : finite));
}

// Round to nearest even; what is beyond the largest bf16 becomes an infinity, as in IEEE 754.
static inline Brain float_to_brain(float value) {
    const auto bits = bits_as<std::uint32_t>(value);
    if ((bits & kMagnitude) > kInfinityBits) return static_cast<Brain>((bits | kQuietBit) >> 16);
    return static_cast<Brain>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

static inline float brain_to_float(Brain brain) { return bits_as<float>(static_cast<std::uint32_t>(brain) << 16); }

// `scale` is the row's absmax / 127 and not zero; a subnormal one is coarse, hence the clamp.
static inline std::int8_t float_to_int8(float value, float scale) {
    const float rounded = (value / scale + kRounder) - kRounder;
    return static_cast<std::int8_t>(rounded > 127.0F ? 127.0F : rounded < -127.0F ? -127.0F : rounded);
}

}  // namespace edge
