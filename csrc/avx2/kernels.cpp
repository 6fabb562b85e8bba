// AVX2 and F16C: eight floats at a time.
#include <immintrin.h>

#include "convert.hpp"
#include "crc32c.hpp"
#include "dispatch.hpp"
#include "normal.hpp"

namespace edge {
namespace {

constexpr std::size_t kWidth = 8;
constexpr std::size_t kGroups = 2;  // of four Philox counters, side by side

__m256 magnitude(__m256 values) {
    return _mm256_and_ps(values, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(kMagnitude))));
}

// Clips to +-65504 and counts what was clipped in `count`'s lanes. The minimum's second operand wins for a NaN.
__m256 clip_to_half(__m256 values, __m256i& count) {
    const __m256 limit = _mm256_set1_ps(kHalfMax);
    const __m256 beyond = _mm256_cmp_ps(magnitude(values), limit, _CMP_GT_OQ);
    count = _mm256_sub_epi32(count, _mm256_castps_si256(beyond));
    return _mm256_max_ps(_mm256_set1_ps(-kHalfMax), _mm256_min_ps(limit, values));
}

__m128i to_half(__m256 values) { return _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

std::size_t total(__m256i count) {
    alignas(32) std::uint32_t lanes[kWidth];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), count);
    std::size_t sum = 0;
    for (const std::uint32_t lane : lanes) sum += lane;
    return sum;
}

// bf16 bits in the upper halves of the lanes; the lower halves are to be dropped.
__m256i round_to_brain(__m256 values) {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(static_cast<int>(kQuietBit)));
    const __m256i nans = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nans);
}

__m128i to_brain(__m256 values) {
    const __m256i brains = _mm256_srli_epi32(round_to_brain(values), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(brains), _mm256_extracti128_si256(brains, 1));
}

// Calls `change` on eight floats at a time; the last few go through a padded copy.
template <class Change>
void change_floats(float* values, std::size_t size, Change change) {
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth) _mm256_storeu_ps(values + i, change(_mm256_loadu_ps(values + i), i));
    if (i == size) return;
    float last[kWidth] = {};
    std::memcpy(last, values + i, (size - i) * sizeof(float));
    _mm256_storeu_ps(last, change(_mm256_loadu_ps(last), i));
    std::memcpy(values + i, last, (size - i) * sizeof(float));
}

// `stream` needs an aligned output, so the elements before it go first.
template <class Convert>
void pack_halves(const float* from, std::uint16_t* to, std::size_t size, bool stream, Convert convert) {
    const auto convert_few = [&](std::size_t at, std::size_t count) {
        float values[kWidth] = {};
        Half halves[kWidth];
        std::memcpy(values, from + at, count * sizeof(float));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(halves), convert(_mm256_loadu_ps(values)));
        std::memcpy(reinterpret_cast<char*>(to) + at * sizeof(Half), halves, count * sizeof(Half));
    };
    std::size_t i = 0;
    if (stream && size >= 2 * kWidth && reinterpret_cast<std::uintptr_t>(to) % sizeof(Half) == 0) {
        i = (16 - reinterpret_cast<std::uintptr_t>(to) % 16) % 16 / sizeof(Half);
        convert_few(0, i);
        for (; i + kWidth <= size; i += kWidth)
            _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), convert(_mm256_loadu_ps(from + i)));
        _mm_sfence();
    }
    for (; i + kWidth <= size; i += kWidth)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), convert(_mm256_loadu_ps(from + i)));
    if (i < size) convert_few(i, size - i);
}

std::size_t pack_half(const float* from, Half* to, std::size_t size, bool stream) {
    __m256i clipped = _mm256_setzero_si256();
    pack_halves(from, to, size, stream, [&](__m256 values) { return to_half(clip_to_half(values, clipped)); });
    return total(clipped);
}

void pack_brain(const float* from, Brain* to, std::size_t size, bool stream) {
    pack_halves(from, to, size, stream, [](__m256 values) { return to_brain(values); });
}

void unpack_half(const Half* from, float* to, std::size_t size) {
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    for (; i < size; ++i) store(to, i, half_to_float(load(from, i)));
}

void unpack_brain(const Brain* from, float* to, std::size_t size) {
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth) {
        const __m128i brains = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(brains), 16);
        _mm256_storeu_ps(to + i, _mm256_castsi256_ps(bits));
    }
    for (; i < size; ++i) store(to, i, brain_to_float(load(from, i)));
}

std::size_t round_half(float* values, std::size_t size) {
    __m256i clipped = _mm256_setzero_si256();
    change_floats(values, size,
                  [&](__m256 v, std::size_t) { return _mm256_cvtph_ps(to_half(clip_to_half(v, clipped))); });
    return total(clipped);
}

void round_brain(float* values, std::size_t size) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
    change_floats(values, size, [&](__m256 v, std::size_t) {
        return _mm256_castsi256_ps(_mm256_and_si256(round_to_brain(v), upper));
    });
}

std::uint32_t largest_magnitude(const float* row, std::size_t size) {
    __m256i largest = _mm256_setzero_si256();
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth)
        largest = _mm256_max_epu32(largest, _mm256_castps_si256(magnitude(_mm256_loadu_ps(row + i))));
    alignas(32) std::uint32_t lanes[kWidth];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
    std::uint32_t result = 0;
    for (const std::uint32_t lane : lanes) result = lane > result ? lane : result;
    for (; i < size; ++i) {
        const std::uint32_t bits = bits_as<std::uint32_t>(load(row, i)) & kMagnitude;
        result = bits > result ? bits : result;
    }
    return result;
}

void quantize(const float* row, std::int8_t* to, std::size_t size, float scale) {
    const __m256 divisor = _mm256_set1_ps(scale);
    const __m128i smallest = _mm_set1_epi8(-127);
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth) {
        const __m256 quotient = _mm256_div_ps(_mm256_loadu_ps(row + i), divisor);
        const __m256i wide =
            _mm256_cvtps_epi32(_mm256_round_ps(quotient, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        const __m128i bytes = _mm_max_epi8(_mm_packs_epi16(words, words), smallest);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i), bytes);
    }
    for (; i < size; ++i) to[i] = float_to_int8(load(row, i), scale);
}

void dequantize(const std::int8_t* from, float* row, std::size_t size, float scale) {
    const __m256 factor = _mm256_set1_ps(scale);
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i));
        _mm256_storeu_ps(row + i, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), factor));
    }
    for (; i < size; ++i) store(row, i, static_cast<float>(from[i]) * scale);
}

// Four counters at a time, one in each 64-bit lane, so that a product needs no shuffling; the upper halves hold
// whatever the rounds leave there.
struct Philox {
    using Word = __m256i;
    static Word fill(std::uint32_t value) { return _mm256_set1_epi64x(value); }
    static Word multiply(Word a, Word b) { return _mm256_mul_epu32(a, b); }
    static Word high(Word product) { return _mm256_srli_epi64(product, 32); }
    static Word low(Word product) { return product; }
};

__m256i join(__m256i low, __m256i high) { return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xaa); }

// Words apart to blocks in order.
void store_blocks(std::uint32_t* words, const __m256i (&counter)[4]) {
    const __m256i front = join(counter[0], counter[1]);
    const __m256i back = join(counter[2], counter[3]);
    const __m256i blocks02 = _mm256_unpacklo_epi64(front, back);
    const __m256i blocks13 = _mm256_unpackhi_epi64(front, back);
    auto* const to = reinterpret_cast<__m256i*>(words);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(blocks02, blocks13, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(blocks02, blocks13, 0x31));
}

void random_blocks(std::uint32_t* words, std::size_t blocks, std::uint32_t first, const Place& place, Stream stream) {
    const RoundKeys<Philox> keys(place.seed);
    for (std::size_t i = 0; i < blocks; i += 4 * kGroups) {
        __m256i counters[kGroups][4];
        for (std::size_t group = 0; group < kGroups; ++group) {
            const __m256i start = _mm256_set1_epi64x(first + static_cast<std::uint32_t>(i + 4 * group));
            counters[group][0] = _mm256_add_epi64(start, _mm256_set_epi64x(3, 2, 1, 0));
            counters[group][1] = Philox::fill(place.position);
            counters[group][2] = Philox::fill(place.layer);
            counters[group][3] = Philox::fill(static_cast<std::uint32_t>(stream));
        }
        philox_rounds(counters, keys);
        for (std::size_t group = 0; group < kGroups; ++group) store_blocks(words + 4 * i + 16 * group, counters[group]);
    }
}

bool erase_tile(float* values, const std::uint16_t* draws, std::size_t size, std::uint16_t threshold, float scale) {
    const __m128i limit = _mm_set1_epi16(static_cast<short>(threshold));
    const __m256 factor = _mm256_set1_ps(scale);
    const bool scaled = scale != 1.0F;
    __m128i ties = _mm_setzero_si128();
    change_floats(values, size, [&](__m256 v, std::size_t i) {
        const __m128i drawn = _mm_loadu_si128(reinterpret_cast<const __m128i*>(draws + i));
        const __m128i keep = _mm_cmpeq_epi16(_mm_max_epu16(drawn, limit), drawn);
        ties = _mm_or_si128(ties, _mm_cmpeq_epi16(drawn, limit));
        if (scaled) v = _mm256_mul_ps(v, factor);
        return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cvtepi16_epi32(keep)));
    });
    return _mm_movemask_epi8(ties) != 0;
}

struct Lanes {
    using Double = __m256d;
    using Bits = std::uint64_t __attribute__((vector_size(32)));
    static Double fill(double value) { return _mm256_set1_pd(value); }
    static Bits fill_bits(std::uint64_t value) {
        return reinterpret_cast<Bits>(_mm256_set1_epi64x(static_cast<long long>(value)));
    }
    static Bits to_bits(Double value) { return reinterpret_cast<Bits>(value); }
    static Double from_bits(Bits bits) { return reinterpret_cast<Double>(bits); }
    static Double less(Double a, Double b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
    static Double select(Double mask, Double yes, Double no) { return _mm256_blendv_pd(no, yes, mask); }
    static Double choose(Double second, const double (&pair)[2]) {
        return select(second, fill(pair[1]), fill(pair[0]));
    }
    static Double square_root(Double value) { return _mm256_sqrt_pd(value); }
};

// Four words as doubles: each becomes the mantissa of 2^52.
__m256d to_doubles(const std::uint32_t* words) {
    const __m256i wide = _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
    const __m256i biased = _mm256_or_si256(wide, _mm256_set1_epi64x(static_cast<long long>(kTwo52Bits)));
    return _mm256_sub_pd(_mm256_castsi256_pd(biased), _mm256_set1_pd(0x1p52));
}

void noise_tile(float* values, const std::uint32_t* words, std::size_t size, float sigma) {
    change_floats(values, size, [&](__m256 v, std::size_t i) {
        const __m128 low = _mm256_cvtpd_ps(standard_normal<Lanes>(to_doubles(words + i)));
        const __m128 high = _mm256_cvtpd_ps(standard_normal<Lanes>(to_doubles(words + i + 4)));
        return _mm256_add_ps(v, _mm256_mul_ps(_mm256_set1_ps(sigma), _mm256_set_m128(high, low)));
    });
}

float dot(const float* a, const float* b, std::size_t size) {
    constexpr std::size_t kSums = kDotLanes / kWidth;
    __m256 sums[kSums] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    const auto add = [&](const float* x, const float* y) {
        for (std::size_t k = 0; k < kSums; ++k) {
            const __m256 product = _mm256_mul_ps(_mm256_loadu_ps(x + kWidth * k), _mm256_loadu_ps(y + kWidth * k));
            sums[k] = _mm256_add_ps(sums[k], product);
        }
    };
    std::size_t i = 0;
    for (; i + kDotLanes <= size; i += kDotLanes) add(a + i, b + i);
    if (i < size) {
        float last[2][kDotLanes] = {};
        std::memcpy(last[0], a + i, (size - i) * sizeof(float));
        std::memcpy(last[1], b + i, (size - i) * sizeof(float));
        add(last[0], last[1]);
    }
    const __m256 eight = _mm256_add_ps(_mm256_add_ps(sums[0], sums[2]), _mm256_add_ps(sums[1], sums[3]));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

struct CrcStep {
    static std::uint64_t eight(std::uint64_t crc, std::uint64_t data) { return _mm_crc32_u64(crc, data); }
    static std::uint32_t one(std::uint32_t crc, std::uint8_t data) { return _mm_crc32_u8(crc, data); }
};

}  // namespace

extern const KernelSet kAvx2;
const KernelSet kAvx2 = {
    "avx2",        pack_half,
    unpack_half,   round_half,
    pack_brain,    unpack_brain,
    round_brain,   largest_magnitude,
    quantize,      dequantize,
    random_blocks, erase_tile,
    noise_tile,    crc32c_interleaved<CrcStep>,
    dot,
};

}  // namespace edge
