// Every kernel set this CPU can run against the scalar one, bit for bit, and the scalar one against known answers.
// No framework: it also runs under an emulator on the build machine.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "conceal.hpp"
#include "convert.hpp"
#include "crc32c.hpp"
#include "damage.hpp"
#include "dispatch.hpp"
#include "pack.hpp"

namespace {

using edge::KernelSet;

int failures = 0;

constexpr std::uint32_t kErasedSum = 0x614f4a4fU;
constexpr std::uint32_t kNoiseSum = 0x9e82af28U;

void expect(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// Subnormals so small that absmax / 127 is off by half a step: quotients beyond +-127 must be clipped.
std::vector<float> tiny_values() {
    std::vector<float> values;
    for (std::uint32_t size = 0; size < 191; ++size)
        values.push_back(edge::bits_as<float>(size | (size % 2 == 0 ? 0x80000000U : 0U)));
    values.push_back(values[190]);
    return values;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

const KernelSet& scalar() { return *edge::find_kernels("scalar"); }

// Values that go wrong first: zeros, subnormals, halfway cases, limits, infinities, NaNs quiet and signalling.
std::vector<float> awkward_values() {
    std::vector<float> values;
    for (const std::uint32_t bits :
         {0U,          1U,          0x007fffffU, 0x00800000U, 0x33000000U, 0x33000001U, 0x32ffffffU, 0x33c00000U,
          0x387fc000U, 0x387fe000U, 0x387fffffU, 0x38800000U, 0x3f801000U, 0x3f803000U, 0x3f808000U, 0x3f818000U,
          0x3f808001U, 0x477fe000U, 0x477fe001U, 0x477fefffU, 0x477ff000U, 0x47800000U, 0x7f7f7fffU, 0x7f7f8000U,
          0x7f7fffffU, 0x7f800000U, 0x7f800001U, 0x7f801fffU, 0x7fbfffffU, 0x7fc00000U, 0x7fc12345U, 0x7fffffffU}) {
        values.push_back(edge::bits_as<float>(bits));
        values.push_back(edge::bits_as<float>(bits | 0x80000000U));
    }
    return values;
}

std::vector<float> random_values(std::size_t size, unsigned seed, bool any_bits) {
    std::mt19937 generator(seed);
    const std::vector<float> awkward = awkward_values();
    std::vector<float> values(size);
    for (float& value : values) {
        const auto drawn = static_cast<std::uint32_t>(generator());
        if (any_bits && drawn % 3 == 0) {
            value = awkward[generator() % awkward.size()];
        } else if (any_bits) {
            value = edge::bits_as<float>(static_cast<std::uint32_t>(generator()));
        } else {
            value = static_cast<float>(static_cast<std::int32_t>(drawn)) * 0x1p-28F;
        }
    }
    return values;
}

// Packs, unpacks and rounds at every length and at an odd address.
void check_half(const KernelSet& set, const std::vector<float>& values) {
    const std::size_t size = values.size();
    const std::string where = std::string(set.name) + " fp16 size " + std::to_string(size);
    std::vector<edge::Half> expected(size);
    std::size_t clipped = 0;
    for (std::size_t i = 0; i < size; ++i) {
        expected[i] = edge::float_to_half(values[i]);
        clipped += edge::exceeds_half(edge::bits_as<std::uint32_t>(values[i])) ? 1U : 0U;
    }
    for (const bool stream : {false, true}) {
        for (const std::size_t offset : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{6}}) {
            std::vector<char> from(size * sizeof(float) + offset + 1);
            std::vector<char> to(size * sizeof(edge::Half) + offset + 1, char{0x55});
            if (size != 0) std::memcpy(from.data() + offset, values.data(), size * sizeof(float));
            auto* const halves = reinterpret_cast<edge::Half*>(to.data() + offset);
            const std::size_t count =
                set.pack_half(reinterpret_cast<const float*>(from.data() + offset), halves, size, stream);
            expect(count == clipped, where + ": clipped");
            expect(size == 0 || std::memcmp(halves, expected.data(), size * sizeof(edge::Half)) == 0, where + ": pack");
            expect(to.back() == char{0x55}, where + ": wrote past the end");
        }
    }
    std::vector<float> rounded = values;
    expect(set.round_half(rounded.data(), size) == clipped, where + ": clipped by rounding");
    std::vector<float> unpacked(size);
    set.unpack_half(expected.data(), unpacked.data(), size);
    expect(same(rounded, unpacked), where + ": rounding is not pack and unpack");
    scalar().unpack_half(expected.data(), rounded.data(), size);
    expect(same(rounded, unpacked), where + ": unpack");
}

void check_brain(const KernelSet& set, const std::vector<float>& values) {
    const std::size_t size = values.size();
    const std::string where = std::string(set.name) + " bf16 size " + std::to_string(size);
    std::vector<edge::Brain> expected(size);
    for (std::size_t i = 0; i < size; ++i) expected[i] = edge::float_to_brain(values[i]);
    for (const bool stream : {false, true}) {
        std::vector<edge::Brain> packed(size);
        set.pack_brain(values.data(), packed.data(), size, stream);
        expect(same(packed, expected), where + ": pack");
    }
    std::vector<float> rounded = values;
    set.round_brain(rounded.data(), size);
    std::vector<float> unpacked(size);
    set.unpack_brain(expected.data(), unpacked.data(), size);
    expect(same(rounded, unpacked), where + ": rounding is not pack and unpack");
}

void check_int8(const KernelSet& set, const std::vector<float>& values) {
    const std::string where = std::string(set.name) + " int8 size " + std::to_string(values.size());
    const std::size_t rows = 3;
    const std::size_t width = values.size() / rows;
    std::vector<std::uint8_t> expected(rows * (width + sizeof(float)));
    std::vector<std::uint8_t> packed(expected.size());
    edge::pack_int8(scalar(), values.data(), expected.data(), rows, width);
    edge::pack_int8(set, values.data(), packed.data(), rows, width);
    expect(packed == expected, where + ": pack");
    std::vector<float> expected_values(rows * width);
    std::vector<float> unpacked(rows * width);
    edge::unpack_int8(scalar(), packed.data(), expected_values.data(), rows, width);
    edge::unpack_int8(set, packed.data(), unpacked.data(), rows, width);
    expect(same(unpacked, expected_values), where + ": unpack");
}

void check_int4(const KernelSet& set, const std::vector<float>& values) {
    const std::string where = std::string(set.name) + " int4 size " + std::to_string(values.size());
    const std::size_t rows = 3;
    const std::size_t width = values.size() / rows;
    std::vector<std::uint8_t> expected(edge::int4_bytes(rows, width));
    std::vector<std::uint8_t> packed(expected.size());
    edge::pack_int4(scalar(), values.data(), expected.data(), rows, width);
    edge::pack_int4(set, values.data(), packed.data(), rows, width);
    expect(packed == expected, where + ": pack");
    std::vector<float> expected_values(rows * width);
    std::vector<float> unpacked(rows * width);
    edge::unpack_int4(scalar(), packed.data(), expected_values.data(), rows, width);
    edge::unpack_int4(set, packed.data(), unpacked.data(), rows, width);
    expect(same(unpacked, expected_values), where + ": unpack");
}

// Three tokens of which the first lost nothing and the last everything.
void check_conceal(const KernelSet& set, const std::vector<float>& values) {
    const std::string where = std::string(set.name) + " conceal size " + std::to_string(values.size());
    const std::size_t tokens = 3;
    const std::size_t width = values.size() / tokens;
    std::vector<std::uint8_t> lost(tokens * width, 0);
    for (std::size_t i = 0; i < width; ++i) {
        lost[width + i] = i % 3 == 0 ? 1 : 0;
        lost[2 * width + i] = 1;
    }
    std::vector<float> mean(width, 0.5F);
    std::vector<float> spread(width, 2.0F);
    std::vector<float> precision(width * width);
    for (std::size_t i = 0; i < width; ++i)
        for (std::size_t j = 0; j < width; ++j)
            precision[i * width + j] = i == j ? 1.0F : 0.3F / static_cast<float>(1 + (i + j) % 97 + (i ^ j) % 7);
    const edge::Knowledge known{mean.data(), spread.data(), precision.data()};
    std::vector<float> expected = values;
    std::vector<float> mended = values;
    edge::conceal(scalar(), expected.data(), lost.data(), tokens, width, known);
    edge::conceal(set, mended.data(), lost.data(), tokens, width, known);
    expect(same(mended, expected), where + ": mended");
    expect(width == 0 || std::memcmp(expected.data(), values.data(), width * sizeof(float)) == 0,
           where + ": nothing was lost");
    for (std::size_t i = 0; i < width; ++i) expect(expected[2 * width + i] == 0.5F, where + ": nothing came");
}

void check_damage(const KernelSet& set, const std::vector<float>& values) {
    const std::string where = std::string(set.name) + " damage size " + std::to_string(values.size());
    const std::size_t tokens = 3;
    const std::size_t width = values.size() / tokens;
    const edge::Place place{0x0123456789abcdefU, 7, 0xfffffff0U};
    // Few upper halves make ties common: 0x7fff8000 splits the draws 0x7fff, 0x00004000 those of 0.
    for (const std::uint64_t threshold : {std::uint64_t{0}, std::uint64_t{0x4000}, std::uint64_t{0x7fff8000},
                                          std::uint64_t{0xffffffff}, std::uint64_t{1} << 32}) {
        for (const float scale : {1.0F, 1.25F}) {
            std::vector<float> expected = values;
            std::vector<float> damaged = values;
            edge::erase(scalar(), expected.data(), tokens, width, threshold, scale, place);
            edge::erase(set, damaged.data(), tokens, width, threshold, scale, place);
            expect(same(damaged, expected), where + ": erase " + std::to_string(threshold));
        }
    }
    std::vector<float> expected = values;
    std::vector<float> noisy = values;
    edge::add_noise(scalar(), expected.data(), tokens, width, 0.5F, place);
    edge::add_noise(set, noisy.data(), tokens, width, 0.5F, place);
    expect(same(noisy, expected), where + ": noise");
}

void check_crc(const KernelSet& set) {
    const std::string where = std::string(set.name) + " crc32c";
    std::vector<std::uint8_t> data(20000);
    std::mt19937 generator(5);
    for (std::uint8_t& byte : data) byte = static_cast<std::uint8_t>(generator());
    const auto* const digits = reinterpret_cast<const std::uint8_t*>("123456789");
    expect(set.crc32c(digits, 9, 0) == 0xE3069283U, where + ": check value");
    const std::vector<std::uint8_t> zeros(32, 0);  // RFC 3720 B.4
    expect(set.crc32c(zeros.data(), zeros.size(), 0) == 0x8A9136AAU, where + ": 32 zero bytes");
    for (std::size_t size = 0; size < data.size(); size += size < 800 ? 1 : 97) {
        const std::uint8_t* const from = data.data() + size % 7;
        const std::size_t length = size - size % 7;
        expect(set.crc32c(from, length, 42) == edge::crc32c_sliced(from, length, 42),
               where + " of " + std::to_string(length) + " bytes");
    }
    const std::uint32_t front = set.crc32c(data.data(), 7001, 0);
    expect(set.crc32c(data.data() + 7001, data.size() - 7001, front) == set.crc32c(data.data(), data.size(), 0),
           where + ": chained");
}

// The same on every machine: these sums are also in tests/agent/compute/test_kernels.py.
void check_stored_sums(const KernelSet& set) {
    const edge::Place place{0x123456789abcdef0U, 17, 1000};
    const auto sum = [&](const std::vector<float>& values) {
        return set.crc32c(reinterpret_cast<const std::uint8_t*>(values.data()), values.size() * sizeof(float), 0);
    };
    std::vector<float> values(3 * 1001, 1.0F);
    edge::erase(set, values.data(), 3, 1001, 1288490189, 1.5F, place);
    expect(sum(values) == kErasedSum, std::string(set.name) + ": stored sum of erasure");
    values.assign(3 * 1001, 0.0F);
    edge::add_noise(set, values.data(), 3, 1001, 0.7F, place);
    expect(sum(values) == kNoiseSum, std::string(set.name) + ": stored sum of noise");
}

// Random123's known answers for philox4x32-10: the counter is split so that random_blocks produces it.
void check_philox(const KernelSet& set) {
    struct Answer {
        std::uint32_t counter[4];
        std::uint64_t key;
        std::uint32_t words[4];
    };
    const Answer answers[] = {
        {{0, 0, 0, 0}, 0, {0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}},
        {{0xffffffffU, 0xffffffffU, 0xffffffffU, 0xffffffffU},
         0xffffffffffffffffU,
         {0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU}},
        {{0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U},
         0x299f31d0a4093822U,
         {0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U}},
    };
    for (const Answer& answer : answers) {
        std::vector<std::uint32_t> words(4 * (1 + edge::kPadBlocks));
        set.random_blocks(words.data(), 1, answer.counter[0], {answer.key, answer.counter[2], answer.counter[1]},
                          static_cast<edge::Stream>(answer.counter[3]));
        expect(std::memcmp(words.data(), answer.words, sizeof(answer.words)) == 0,
               std::string(set.name) + ": philox known answer");
    }
}

}  // namespace

int main() {
    for (const KernelSet* set : edge::runnable_kernels()) {
        std::printf("%s\n", set->name);
        for (std::size_t size = 0; size <= 200; ++size) {
            const auto seed = static_cast<unsigned>(size);
            check_half(*set, random_values(size, seed, true));
            check_brain(*set, random_values(size, seed, true));
            check_int8(*set, random_values(size, seed, true));
            check_int8(*set, random_values(size, seed, false));
            check_int4(*set, random_values(size, seed, true));
            check_int4(*set, random_values(size, seed, false));
            check_conceal(*set, random_values(size, seed, false));
            check_damage(*set, random_values(size, seed, false));
        }
        check_half(*set, awkward_values());
        check_brain(*set, awkward_values());
        check_int8(*set, tiny_values());
        check_int4(*set, tiny_values());
        check_conceal(*set, random_values(3 * 700, 2, false));
        check_damage(*set, random_values(150003, 1, false));
        check_stored_sums(*set);
        check_crc(*set);
        check_philox(*set);
    }
    std::printf("%d failures\n", failures);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
