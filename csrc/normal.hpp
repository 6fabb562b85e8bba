// Standard normal numbers that are the same to the last bit everywhere.
//
// z = inverse of the normal distribution at u = (w + 1/2) / 2^32, by Wichura's PPND16 (algorithm AS 241, Applied
// Statistics 37, 1988, relative error 1e-16). Only +, -, *, / and square root of doubles are used, which IEEE 754
// defines exactly, in this order, with no fused operation and no libm; the logarithm of the tails is our own series.
// AS 241's third branch (u < 1.4e-11) cannot be reached: the smallest u is 2^-33, so |z| stays below 6.34.
#pragma once

#include "types.hpp"

namespace edge {

// Numerator and denominator, highest power first: {centre, tail}.
static constexpr double kNumerator[8][2] = {
    {2.5090809287301226727e3, 7.74545014278341407640e-4}, {3.3430575583588128105e4, 2.27238449892691845833e-2},
    {6.7265770927008700853e4, 2.41780725177450611770e-1}, {4.5921953931549871457e4, 1.27045825245236838258e0},
    {1.3731693765509461125e4, 3.64784832476320460504e0},  {1.9715909503065514427e3, 5.76949722146069140550e0},
    {1.3314166789178437745e2, 4.63033784615654529590e0},  {3.3871328727963666080e0, 1.42343711074968357734e0},
};
static constexpr double kDenominator[8][2] = {
    {5.2264952788528545610e3, 1.05075007164441684324e-9}, {2.8729085735721942674e4, 5.47593808499534494600e-4},
    {3.9307895800092710610e4, 1.51986665636164571966e-2}, {2.1213794301586595867e4, 1.48103976427480074590e-1},
    {5.3941960214247511077e3, 6.89767334985100004550e-1}, {6.8718700749205790830e2, 1.67638483018380384940e0},
    {4.2313330701600911252e1, 2.05319162663775882187e0},  {1.0, 1.0},
};
static constexpr double kLn2 = 0.693147180559945309417;
static constexpr std::uint64_t kSqrtHalfBits = 0x3fe6a09e00000000U;  // just below sqrt(1/2)
static constexpr std::uint64_t kOneBits = 0x3ff0000000000000U;
static constexpr std::uint64_t kMantissa = 0x000fffffffffffffU;
static constexpr std::uint64_t kTwo52Bits = 0x4330000000000000U;

// -ln(x) of a normal x < 1. x = m 2^e with m in [sqrt(1/2), sqrt(2)) and ln m = 2 artanh s, s = (m - 1) / (m + 1);
// |s| < 0.172, so eight terms of the series leave a relative error of 4e-14.
template <class Lanes>
static inline typename Lanes::Double minus_log(typename Lanes::Double x) {
    const auto constant = [](double value) { return Lanes::fill(value); };
    const auto shifted = Lanes::to_bits(x) + Lanes::fill_bits(kOneBits - kSqrtHalfBits);
    const auto m = Lanes::from_bits((shifted & Lanes::fill_bits(kMantissa)) + Lanes::fill_bits(kSqrtHalfBits));
    // The exponent, biased by 1023, becomes a double in the mantissa of 2^52.
    const auto biased = Lanes::from_bits((shifted >> 52) | Lanes::fill_bits(kTwo52Bits));
    const auto e = biased - constant(0x1p52 + 1023.0);
    const auto s = (m - constant(1.0)) / (m + constant(1.0));
    const auto t = s * s;
    auto series = constant(1.0 / 15.0);
    for (int odd = 13; odd >= 1; odd -= 2) series = series * t + constant(1.0 / odd);
    return constant(0.0) - (e * constant(kLn2) + (s + s) * series);
}

// Words as doubles (0 to 2^32 - 1) to standard normal numbers.
template <class Lanes>
static inline typename Lanes::Double standard_normal(typename Lanes::Double word) {
    const auto constant = [](double value) { return Lanes::fill(value); };
    const auto u = (word + constant(0.5)) * constant(0x1p-32);
    const auto q = u - constant(0.5);
    const auto magnitude = Lanes::select(Lanes::less(q, constant(0.0)), constant(0.0) - q, q);
    const auto in_tail = Lanes::less(constant(0.425), magnitude);
    const auto tail_u = constant(0.5) - magnitude;  // exact: the smaller of u and 1 - u
    const auto tail = Lanes::square_root(minus_log<Lanes>(tail_u)) - constant(1.6);
    const auto r = Lanes::select(in_tail, tail, constant(0.180625) - q * q);
    auto above = Lanes::choose(in_tail, kNumerator[0]);
    auto below = Lanes::choose(in_tail, kDenominator[0]);
    for (int i = 1; i < 8; ++i) {
        above = above * r + Lanes::choose(in_tail, kNumerator[i]);
        below = below * r + Lanes::choose(in_tail, kDenominator[i]);
    }
    const auto sign = Lanes::select(Lanes::less(q, constant(0.0)), constant(-1.0), constant(1.0));
    return (above / below) * Lanes::select(in_tail, sign, q);
}

}  // namespace edge
