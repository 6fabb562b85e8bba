// AVX-512 F, BW, DQ and VL: sixteen floats at a time, tails by mask.
#include <immintrin.h>

#include "convert.hpp"
#include "crc32c.hpp"
#include "dispatch.hpp"
#include "normal.hpp"

namespace edge {
namespace {

constexpr std::size_t kWidth = 16;
constexpr std::size_t kGroups = 4;  // of eight Philox counters, side by side

__mmask16 first_lanes(std::size_t count) {
    return count >= kWidth ? __mmask16{0xffff} : static_cast<__mmask16>((1U << count) - 1U);
}

__m512 quiet_nans(__m512 values) {
    const __mmask16 nans = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    const __m512i bits = _mm512_castps_si512(values);
    return _mm512_castsi512_ps(_mm512_mask_or_epi32(bits, nans, bits, _mm512_set1_epi32(static_cast<int>(kQuietBit))));
}

// Clips to +-65504 and counts what was clipped in `count`'s lanes. The minimum's second operand wins for a NaN.
__m512 clip_to_half(__m512 values, __m512i& count) {
    const __m512 limit = _mm512_set1_ps(kHalfMax);
    const __mmask16 beyond = _mm512_cmp_ps_mask(_mm512_abs_ps(values), limit, _CMP_GT_OQ);
    count = _mm512_mask_add_epi32(count, beyond, count, _mm512_set1_epi32(1));
    return _mm512_max_ps(_mm512_set1_ps(-kHalfMax), _mm512_min_ps(limit, values));
}

__m256i to_half(__m512 values) { return _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

std::size_t total(__m512i count) { return static_cast<std::uint32_t>(_mm512_reduce_add_epi32(count)); }

// bf16 bits in the upper halves of the lanes.
__m512i round_to_brain(__m512 values) {
    const __m512i bits = _mm512_castps_si512(quiet_nans(values));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nans = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(rounded, nans, bits);
}

__m256i to_brain(__m512 values) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_to_brain(values), 16)); }

// Converts 32 floats per turn; `stream` needs an aligned output, so the elements before it go first.
template <class Convert>
void pack_halves(const float* from, std::uint16_t* to, std::size_t size, bool stream, Convert convert) {
    std::size_t i = 0;
    if (stream && size >= 4 * kWidth && reinterpret_cast<std::uintptr_t>(to) % sizeof(Half) == 0) {
        const std::size_t before = (64 - reinterpret_cast<std::uintptr_t>(to) % 64) % 64 / sizeof(Half);
        for (; i < before; i += kWidth) {
            const __mmask16 lanes = first_lanes(before - i);
            _mm256_mask_storeu_epi16(to + i, lanes, convert(_mm512_maskz_loadu_ps(lanes, from + i)));
        }
        for (i = before; i + 2 * kWidth <= size; i += 2 * kWidth) {
            const __m256i low = convert(_mm512_loadu_ps(from + i));
            const __m256i high = convert(_mm512_loadu_ps(from + i + kWidth));
            _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i),
                                _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
        }
        _mm_sfence();
    }
    for (; i + kWidth <= size; i += kWidth)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), convert(_mm512_loadu_ps(from + i)));
    if (i < size) {
        const __mmask16 lanes = first_lanes(size - i);
        _mm256_mask_storeu_epi16(to + i, lanes, convert(_mm512_maskz_loadu_ps(lanes, from + i)));
    }
}

std::size_t pack_half(const float* from, Half* to, std::size_t size, bool stream) {
    __m512i clipped = _mm512_setzero_si512();
    pack_halves(from, to, size, stream, [&](__m512 values) { return to_half(clip_to_half(values, clipped)); });
    return total(clipped);
}

void pack_brain(const float* from, Brain* to, std::size_t size, bool stream) {
    pack_halves(from, to, size, stream, [](__m512 values) { return to_brain(values); });
}

template <class Convert>
void unpack_halves(const std::uint16_t* from, float* to, std::size_t size, Convert convert) {
    std::size_t i = 0;
    for (; i + kWidth <= size; i += kWidth)
        _mm512_storeu_ps(to + i, convert(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
    if (i < size) {
        const __mmask16 lanes = first_lanes(size - i);
        _mm512_mask_storeu_ps(to + i, lanes, convert(_mm256_maskz_loadu_epi16(lanes, from + i)));
    }
}

void unpack_half(const Half* from, float* to, std::size_t size) {
    unpack_halves(from, to, size, [](__m256i halves) { return _mm512_cvtph_ps(halves); });
}

void unpack_brain(const Brain* from, float* to, std::size_t size) {
    unpack_halves(from, to, size, [](__m256i brains) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(brains), 16));
    });
}

template <class Change>
void change_floats(float* values, std::size_t size, Change change) {
    for (std::size_t i = 0; i < size; i += kWidth) {
        const __mmask16 lanes = first_lanes(size - i);
        _mm512_mask_storeu_ps(values + i, lanes, change(_mm512_maskz_loadu_ps(lanes, values + i)));
    }
}

std::size_t round_half(float* values, std::size_t size) {
    __m512i clipped = _mm512_setzero_si512();
    change_floats(values, size, [&](__m512 v) { return _mm512_cvtph_ps(to_half(clip_to_half(v, clipped))); });
    return total(clipped);
}

void round_brain(float* values, std::size_t size) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
    change_floats(values, size,
                  [&](__m512 v) { return _mm512_castsi512_ps(_mm512_and_si512(round_to_brain(v), upper)); });
}

std::uint32_t largest_magnitude(const float* row, std::size_t size) {
    __m512i largest = _mm512_setzero_si512();
    for (std::size_t i = 0; i < size; i += kWidth) {
        const __m512 values = _mm512_maskz_loadu_ps(first_lanes(size - i), row + i);
        largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(values)));
    }
    return _mm512_reduce_max_epu32(largest);
}

void quantize(const float* row, std::int8_t* to, std::size_t size, float scale) {
    const __m512 divisor = _mm512_set1_ps(scale);
    for (std::size_t i = 0; i < size; i += kWidth) {
        const __mmask16 lanes = first_lanes(size - i);
        const __m512 quotient = _mm512_div_ps(_mm512_maskz_loadu_ps(lanes, row + i), divisor);
        __m512i rounded = _mm512_cvt_roundps_epi32(quotient, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        rounded = _mm512_max_epi32(_mm512_min_epi32(rounded, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
        _mm_mask_storeu_epi8(to + i, lanes, _mm512_cvtepi32_epi8(rounded));
    }
}

void dequantize(const std::int8_t* from, float* row, std::size_t size, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (std::size_t i = 0; i < size; i += kWidth) {
        const __mmask16 lanes = first_lanes(size - i);
        const __m512i wide = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, from + i));
        _mm512_mask_storeu_ps(row + i, lanes, _mm512_mul_ps(_mm512_cvtepi32_ps(wide), factor));
    }
}

// Eight counters at a time, one in each 64-bit lane, so that a product needs no shuffling; the upper halves hold
// whatever the rounds leave there.
struct Philox {
    using Word = __m512i;
    static Word fill(std::uint32_t value) { return _mm512_set1_epi64(value); }
    static Word multiply(Word a, Word b) { return _mm512_mul_epu32(a, b); }
    static Word high(Word product) { return _mm512_srli_epi64(product, 32); }
    static Word low(Word product) { return product; }
};

__m512i join(__m512i low, __m512i high) { return _mm512_mask_shuffle_epi32(low, 0xaaaa, high, _MM_PERM_CCAA); }

// Words apart to blocks in order.
void store_blocks(std::uint32_t* words, const __m512i (&counter)[4]) {
    const __m512i even = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i odd = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    const __m512i front = join(counter[0], counter[1]);
    const __m512i back = join(counter[2], counter[3]);
    _mm512_storeu_si512(words, _mm512_permutex2var_epi64(front, even, back));
    _mm512_storeu_si512(words + 16, _mm512_permutex2var_epi64(front, odd, back));
}

void random_blocks(std::uint32_t* words, std::size_t blocks, std::uint32_t first, const Place& place, Stream stream) {
    const RoundKeys<Philox> keys(place.seed);
    for (std::size_t i = 0; i < blocks; i += 8 * kGroups) {
        __m512i counters[kGroups][4];
        for (std::size_t group = 0; group < kGroups; ++group) {
            const __m512i start = _mm512_set1_epi64(first + static_cast<std::uint32_t>(i + 8 * group));
            counters[group][0] = _mm512_add_epi64(start, _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
            counters[group][1] = Philox::fill(place.position);
            counters[group][2] = Philox::fill(place.layer);
            counters[group][3] = Philox::fill(static_cast<std::uint32_t>(stream));
        }
        philox_rounds(counters, keys);
        for (std::size_t group = 0; group < kGroups; ++group) store_blocks(words + 4 * i + 32 * group, counters[group]);
    }
}

void erase_lanes(float* values, std::size_t size, __mmask16 keep, __m512 scale, bool scaled) {
    const __mmask16 lanes = first_lanes(size);
    __m512 kept = _mm512_maskz_loadu_ps(lanes & keep, values);
    if (scaled) kept = _mm512_maskz_mul_ps(keep, kept, scale);
    _mm512_mask_storeu_ps(values, lanes, kept);
}

bool erase_tile(float* values, const std::uint16_t* draws, std::size_t size, std::uint16_t threshold, float scale) {
    const __m512i limit = _mm512_set1_epi16(static_cast<short>(threshold));
    const __m512 factor = _mm512_set1_ps(scale);
    const bool scaled = scale != 1.0F;
    __mmask32 ties = 0;
    for (std::size_t i = 0; i < size; i += 2 * kWidth) {
        const __m512i drawn = _mm512_loadu_si512(draws + i);
        const __mmask32 keep = _mm512_cmpge_epu16_mask(drawn, limit);
        ties |= _mm512_cmpeq_epi16_mask(drawn, limit);
        erase_lanes(values + i, size - i, static_cast<__mmask16>(keep), factor, scaled);
        if (size - i > kWidth)
            erase_lanes(values + i + kWidth, size - i - kWidth, static_cast<__mmask16>(keep >> 16), factor, scaled);
    }
    return ties != 0;
}

struct Lanes {
    using Double = __m512d;
    using Bits = std::uint64_t __attribute__((vector_size(64)));
    static Double fill(double value) { return _mm512_set1_pd(value); }
    static Bits fill_bits(std::uint64_t value) {
        return reinterpret_cast<Bits>(_mm512_set1_epi64(static_cast<long long>(value)));
    }
    static Bits to_bits(Double value) { return reinterpret_cast<Bits>(value); }
    static Double from_bits(Bits bits) { return reinterpret_cast<Double>(bits); }
    static __mmask8 less(Double a, Double b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
    static Double select(__mmask8 mask, Double yes, Double no) { return _mm512_mask_blend_pd(mask, no, yes); }
    static Double choose(__mmask8 second, const double (&pair)[2]) {
        return select(second, fill(pair[1]), fill(pair[0]));
    }
    static Double square_root(Double value) { return _mm512_sqrt_pd(value); }
};

void noise_tile(float* values, const std::uint32_t* words, std::size_t size, float sigma) {
    for (std::size_t i = 0; i < size; i += 8) {
        const __mmask8 lanes = static_cast<__mmask8>(first_lanes(size - i));
        const __m256i drawn = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + i));
        const __m256 normal = _mm512_cvtpd_ps(standard_normal<Lanes>(_mm512_cvtepu32_pd(drawn)));
        const __m256 noise = _mm256_mul_ps(_mm256_set1_ps(sigma), normal);
        _mm256_mask_storeu_ps(values + i, lanes, _mm256_add_ps(_mm256_maskz_loadu_ps(lanes, values + i), noise));
    }
}

float dot(const float* a, const float* b, std::size_t size) {
    __m512 low = _mm512_setzero_ps();
    __m512 high = _mm512_setzero_ps();
    std::size_t i = 0;
    for (; i + kDotLanes <= size; i += kDotLanes) {
        low = _mm512_add_ps(low, _mm512_mul_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i)));
        high = _mm512_add_ps(high, _mm512_mul_ps(_mm512_loadu_ps(a + i + kWidth), _mm512_loadu_ps(b + i + kWidth)));
    }
    if (i < size) {
        const __mmask16 front = first_lanes(size - i);
        low =
            _mm512_add_ps(low, _mm512_mul_ps(_mm512_maskz_loadu_ps(front, a + i), _mm512_maskz_loadu_ps(front, b + i)));
        if (size - i > kWidth) {
            const __mmask16 back = first_lanes(size - i - kWidth);
            high = _mm512_add_ps(high, _mm512_mul_ps(_mm512_maskz_loadu_ps(back, a + i + kWidth),
                                                     _mm512_maskz_loadu_ps(back, b + i + kWidth)));
        }
    }
    const __m512 sums = _mm512_add_ps(low, high);
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

struct CrcStep {
    static std::uint64_t eight(std::uint64_t crc, std::uint64_t data) { return _mm_crc32_u64(crc, data); }
    static std::uint32_t one(std::uint32_t crc, std::uint8_t data) { return _mm_crc32_u8(crc, data); }
};

}  // namespace

extern const KernelSet kAvx512;
const KernelSet kAvx512 = {
    "avx512",      pack_half,
    unpack_half,   round_half,
    pack_brain,    unpack_brain,
    round_brain,   largest_magnitude,
    quantize,      dequantize,
    random_blocks, erase_tile,
    noise_tile,    crc32c_interleaved<CrcStep>,
    dot,
};

}  // namespace edge
