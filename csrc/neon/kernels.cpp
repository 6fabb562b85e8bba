// AArch64 NEON with the CRC instructions: four floats at a time.
#include <arm_acle.h>
#include <arm_neon.h>

#include "convert.hpp"
#include "crc32c.hpp"
#include "dispatch.hpp"
#include "normal.hpp"

namespace edge {
namespace {

constexpr std::size_t kWidth = 4;
constexpr std::size_t kGroups = 2;  // of four Philox counters, side by side

float32x4_t load4(const float* from) {
    return vreinterpretq_f32_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(from)));
}
void store4(float* to, float32x4_t values) {
    vst1q_u8(reinterpret_cast<std::uint8_t*>(to), vreinterpretq_u8_f32(values));
}

// Clips to +-65504 and counts what was clipped in `count`'s lanes. A NaN is neither beyond the limit nor changed, but
// made quiet.
float32x4_t clip_to_half(float32x4_t values, uint32x4_t& count) {
    const float32x4_t limit = vdupq_n_f32(kHalfMax);
    count = vsubq_u32(count, vcagtq_f32(values, limit));
    return vmaxq_f32(vminq_f32(values, limit), vnegq_f32(limit));
}

uint16x4_t to_half(float32x4_t values) { return vreinterpret_u16_f16(vcvt_f16_f32(values)); }

// bf16 bits in the upper halves of the lanes; the lower halves are to be dropped.
uint32x4_t round_to_brain(float32x4_t values) {
    const uint32x4_t bits = vreinterpretq_u32_f32(values);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    return vbslq_u32(vceqq_f32(values, values), rounded, vorrq_u32(bits, vdupq_n_u32(kQuietBit)));
}

// Calls `change` on four floats at a time; the last few go through a padded copy.
template <class Change>
void change_floats(float* values, std::size_t size, Change change) {
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth) store4(values + i, change(load4(values + i), i));
    if (i == size) return;
    float last[kWidth] = {};
    std::memcpy(last, values + i, (size - i) * sizeof(float));
    store4(last, change(load4(last), i));
    std::memcpy(values + i, last, (size - i) * sizeof(float));
}

template <class Convert>
void pack_halves(const float* from, std::uint16_t* to, std::size_t size, Convert convert) {
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth)
        vst1_u8(reinterpret_cast<std::uint8_t*>(to + i), vreinterpret_u8_u16(convert(load4(from + i))));
    if (i == size) return;
    float values[kWidth] = {};
    Half halves[kWidth];
    std::memcpy(values, from + i, (size - i) * sizeof(float));
    vst1_u16(halves, convert(load4(values)));
    std::memcpy(reinterpret_cast<char*>(to) + i * sizeof(Half), halves, (size - i) * sizeof(Half));
}

std::size_t pack_half(const float* from, Half* to, std::size_t size, bool /*stream*/) {
    uint32x4_t clipped = vdupq_n_u32(0);
    pack_halves(from, to, size, [&](float32x4_t values) { return to_half(clip_to_half(values, clipped)); });
    return vaddvq_u32(clipped);
}

void pack_brain(const float* from, Brain* to, std::size_t size, bool /*stream*/) {
    pack_halves(from, to, size, [](float32x4_t values) { return vshrn_n_u32(round_to_brain(values), 16); });
}

uint16x4_t load_halves(const std::uint16_t* from) {
    return vreinterpret_u16_u8(vld1_u8(reinterpret_cast<const std::uint8_t*>(from)));
}

void unpack_half(const Half* from, float* to, std::size_t size) {
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth) store4(to + i, vcvt_f32_f16(vreinterpret_f16_u16(load_halves(from + i))));
    for (; i < size; ++i) store(to, i, half_to_float(load(from, i)));
}

void unpack_brain(const Brain* from, float* to, std::size_t size) {
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth)
        store4(to + i, vreinterpretq_f32_u32(vshll_n_u16(load_halves(from + i), 16)));
    for (; i < size; ++i) store(to, i, brain_to_float(load(from, i)));
}

std::size_t round_half(float* values, std::size_t size) {
    uint32x4_t clipped = vdupq_n_u32(0);
    change_floats(values, size,
                  [&](float32x4_t v, std::size_t) { return vcvt_f32_f16(vcvt_f16_f32(clip_to_half(v, clipped))); });
    return vaddvq_u32(clipped);
}

void round_brain(float* values, std::size_t size) {
    const uint32x4_t upper = vdupq_n_u32(0xffff0000U);
    change_floats(values, size, [&](float32x4_t v, std::size_t) {
        return vreinterpretq_f32_u32(vandq_u32(round_to_brain(v), upper));
    });
}

std::uint32_t largest_magnitude(const float* row, std::size_t size) {
    uint32x4_t lanes = vdupq_n_u32(0);
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth)
        lanes = vmaxq_u32(lanes, vandq_u32(vreinterpretq_u32_f32(load4(row + i)), vdupq_n_u32(kMagnitude)));
    std::uint32_t largest = vmaxvq_u32(lanes);
    for (; i < size; ++i) {
        const std::uint32_t magnitude = bits_as<std::uint32_t>(load(row, i)) & kMagnitude;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

void quantize(const float* row, std::int8_t* to, std::size_t size, float scale) {
    const float32x4_t divisor = vdupq_n_f32(scale);
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth) {
        const int32x4_t rounded = vcvtnq_s32_f32(vdivq_f32(load4(row + i), divisor));
        const int32x4_t limited = vmaxq_s32(vminq_s32(rounded, vdupq_n_s32(127)), vdupq_n_s32(-127));
        const int16x4_t words = vmovn_s32(limited);
        const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
        const std::int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
        std::memcpy(to + i, &four, sizeof(four));
    }
    for (; i < size; ++i) to[i] = float_to_int8(load(row, i), scale);
}

void dequantize(const std::int8_t* from, float* row, std::size_t size, float scale) {
    std::size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        const int16x8_t words = vmovl_s8(vld1_s8(from + i));
        store4(row + i, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))), scale));
        store4(row + i + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(words)), scale));
    }
    for (; i < size; ++i) store(row, i, static_cast<float>(from[i]) * scale);
}

// Four counters at a time.
struct Philox {
    using Word = uint32x4_t;
    struct Product {
        uint32x4_t front;  // two 64-bit products each
        uint32x4_t back;
    };
    static Word fill(std::uint32_t value) { return vdupq_n_u32(value); }
    static Product multiply(Word a, Word b) {
        return {vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(b))),
                vreinterpretq_u32_u64(vmull_high_u32(a, b))};
    }
    static Word high(const Product& product) { return vuzp2q_u32(product.front, product.back); }
    static Word low(const Product& product) { return vuzp1q_u32(product.front, product.back); }
};

void random_blocks(std::uint32_t* words, std::size_t blocks, std::uint32_t first, const Place& place, Stream stream) {
    const uint32x4_t offsets = {0, 1, 2, 3};
    const RoundKeys<Philox> keys(place.seed);
    for (std::size_t i = 0; i < blocks; i += 4 * kGroups) {
        uint32x4_t counters[kGroups][4];
        for (std::size_t group = 0; group < kGroups; ++group) {
            counters[group][0] = vaddq_u32(vdupq_n_u32(first + static_cast<std::uint32_t>(i + 4 * group)), offsets);
            counters[group][1] = Philox::fill(place.position);
            counters[group][2] = Philox::fill(place.layer);
            counters[group][3] = Philox::fill(static_cast<std::uint32_t>(stream));
        }
        philox_rounds(counters, keys);
        for (std::size_t group = 0; group < kGroups; ++group) {
            const uint32x4_t(&word)[4] = counters[group];
            vst4q_u32(words + 4 * i + 16 * group, (uint32x4x4_t{{word[0], word[1], word[2], word[3]}}));
        }
    }
}

bool erase_tile(float* values, const std::uint16_t* draws, std::size_t size, std::uint16_t threshold, float scale) {
    const uint16x4_t limit = vdup_n_u16(threshold);
    const bool scaled = scale != 1.0F;
    uint16x4_t ties = vdup_n_u16(0);
    change_floats(values, size, [&](float32x4_t v, std::size_t i) {
        const uint16x4_t drawn = vld1_u16(draws + i);
        const int32x4_t keep = vmovl_s16(vreinterpret_s16_u16(vcge_u16(drawn, limit)));
        ties = vorr_u16(ties, vceq_u16(drawn, limit));
        if (scaled) v = vmulq_n_f32(v, scale);
        return vreinterpretq_f32_s32(vandq_s32(vreinterpretq_s32_f32(v), keep));
    });
    return vmaxv_u16(ties) != 0;
}

struct Lanes {
    using Double = float64x2_t;
    using Bits = uint64x2_t;
    static Double fill(double value) { return vdupq_n_f64(value); }
    static Bits fill_bits(std::uint64_t value) { return vdupq_n_u64(value); }
    static Bits to_bits(Double value) { return vreinterpretq_u64_f64(value); }
    static Double from_bits(Bits bits) { return vreinterpretq_f64_u64(bits); }
    static Bits less(Double a, Double b) { return vcltq_f64(a, b); }
    static Double select(Bits mask, Double yes, Double no) { return vbslq_f64(mask, yes, no); }
    static Double choose(Bits second, const double (&pair)[2]) { return select(second, fill(pair[1]), fill(pair[0])); }
    static Double square_root(Double value) { return vsqrtq_f64(value); }
};

void noise_tile(float* values, const std::uint32_t* words, std::size_t size, float sigma) {
    change_floats(values, size, [&](float32x4_t v, std::size_t i) {
        const uint32x4_t drawn = vld1q_u32(words + i);
        const float64x2_t low = standard_normal<Lanes>(vcvtq_f64_u64(vmovl_u32(vget_low_u32(drawn))));
        const float64x2_t high = standard_normal<Lanes>(vcvtq_f64_u64(vmovl_high_u32(drawn)));
        return vaddq_f32(v, vmulq_n_f32(vcvt_high_f32_f64(vcvt_f32_f64(low), high), sigma));
    });
}

float dot(const float* a, const float* b, std::size_t size) {
    constexpr std::size_t kSums = kDotLanes / kWidth;
    float32x4_t sums[kSums];
    for (float32x4_t& sum : sums) sum = vdupq_n_f32(0.0F);
    const auto add = [&](const float* x, const float* y) {
        for (std::size_t k = 0; k < kSums; ++k)
            sums[k] = vaddq_f32(sums[k], vmulq_f32(load4(x + kWidth * k), load4(y + kWidth * k)));
    };
    std::size_t i = 0;
    for (; i + kDotLanes <= size; i += kDotLanes) add(a + i, b + i);
    if (i < size) {
        float last[2][kDotLanes] = {};
        std::memcpy(last[0], a + i, (size - i) * sizeof(float));
        std::memcpy(last[1], b + i, (size - i) * sizeof(float));
        add(last[0], last[1]);
    }
    for (std::size_t half = kSums / 2; half != 0; half /= 2)
        for (std::size_t k = 0; k < half; ++k) sums[k] = vaddq_f32(sums[k], sums[k + half]);
    const float32x2_t two = vadd_f32(vget_low_f32(sums[0]), vget_high_f32(sums[0]));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

struct CrcStep {
    static std::uint64_t eight(std::uint64_t crc, std::uint64_t data) {
        return __crc32cd(static_cast<std::uint32_t>(crc), data);
    }
    static std::uint32_t one(std::uint32_t crc, std::uint8_t data) { return __crc32cb(crc, data); }
};

}  // namespace

extern const KernelSet kNeon;
const KernelSet kNeon = {
    "neon",        pack_half,
    unpack_half,   round_half,
    pack_brain,    unpack_brain,
    round_brain,   largest_magnitude,
    quantize,      dequantize,
    random_blocks, erase_tile,
    noise_tile,    crc32c_interleaved<CrcStep>,
    dot,
};

}  // namespace edge
