// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a counter and a
// key in, four random words out, nothing remembered. The damage of an element is therefore a function of where the
// element is, not of who computes it, in which batch, or on which machine.
//
//   key       the session's damage seed, low word first
//   counter   [block of the token's elements, position of the token, layer boundary, stream]
//
// Erasure draws 16 bits per element: element e is half e % 8 of block e / 8, low halves first.
// Noise draws 32 bits per element: element e is word e % 4 of block e / 4.
#pragma once

#include "types.hpp"

namespace edge {

enum class Stream : std::uint32_t {
    erasure = 1,      // upper 16 bits of an element's uniform number
    erasure_tie = 2,  // its lower 16 bits, drawn only when the upper ones equal the threshold's
    noise = 3,
};

struct Place {  // where a token is: everything of key and counter but the block and the stream
    std::uint64_t seed;
    std::uint32_t layer;
    std::uint32_t position;
};

static constexpr std::uint32_t kPhiloxMultiplier0 = 0xD2511F53U;
static constexpr std::uint32_t kPhiloxMultiplier1 = 0xCD9E8D57U;
static constexpr std::uint32_t kPhiloxWeyl0 = 0x9E3779B9U;
static constexpr std::uint32_t kPhiloxWeyl1 = 0xBB67AE85U;
static constexpr int kPhiloxRounds = 10;

// The key of each round, in all lanes.
template <class Lanes>
struct RoundKeys {
    explicit RoundKeys(std::uint64_t key) {
        auto key0 = static_cast<std::uint32_t>(key);
        auto key1 = static_cast<std::uint32_t>(key >> 32);
        for (int round = 0; round < kPhiloxRounds; ++round, key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1) {
            first[round] = Lanes::fill(key0);
            second[round] = Lanes::fill(key1);
        }
    }
    typename Lanes::Word first[kPhiloxRounds];
    typename Lanes::Word second[kPhiloxRounds];
};

// Ten rounds on `groups` vectors of counters side by side: a round waits for two multiplications, and one group alone
// would leave the multipliers idle. Lanes supplies fill, multiply (32 x 32 to 64 bits), high and low.
template <class Lanes, std::size_t groups>
static inline void philox_rounds(typename Lanes::Word (&counters)[groups][4], const RoundKeys<Lanes>& keys) {
    const auto multiplier0 = Lanes::fill(kPhiloxMultiplier0);
    const auto multiplier1 = Lanes::fill(kPhiloxMultiplier1);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        for (auto& counter : counters) {
            const auto product0 = Lanes::multiply(counter[0], multiplier0);
            const auto product1 = Lanes::multiply(counter[2], multiplier1);
            counter[0] = Lanes::high(product1) ^ (counter[1] ^ keys.first[round]);  // the product comes last
            counter[1] = Lanes::low(product1);
            counter[2] = Lanes::high(product0) ^ (counter[3] ^ keys.second[round]);
            counter[3] = Lanes::low(product0);
        }
    }
}

struct ScalarPhilox {
    using Word = std::uint32_t;
    static Word fill(std::uint32_t value) { return value; }
    static std::uint64_t multiply(Word a, Word b) { return static_cast<std::uint64_t>(a) * b; }
    static Word high(std::uint64_t product) { return static_cast<Word>(product >> 32); }
    static Word low(std::uint64_t product) { return static_cast<Word>(product); }
};

}  // namespace edge
