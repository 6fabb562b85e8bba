#include "dispatch.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace edge {

extern const KernelSet kScalar;

#if defined(__x86_64__)
extern const KernelSet kAvx2;
extern const KernelSet kAvx512;

static bool has_avx2() {
    unsigned int eax = 0;
    unsigned int ebx = 0;
    unsigned int ecx = 0;
    unsigned int edx = 0;
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1U << 29)) != 0;
    return f16c && __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("sse4.2") != 0;
}

static bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
           __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
}
#elif defined(__aarch64__)
extern const KernelSet kNeon;

// Every ARMv8 CPU has NEON; the CRC instructions are optional in 8.0, though all Jetsons and Raspberry Pis have them.
static bool has_neon_and_crc() {
#if defined(__linux__)
    constexpr unsigned long kCrc32 = 1UL << 7;  // HWCAP_CRC32
    return (getauxval(AT_HWCAP) & kCrc32) != 0;
#else
    return true;
#endif
}
#endif

std::vector<const KernelSet*> runnable_kernels() {
    std::vector<const KernelSet*> sets;
#if defined(__x86_64__)
    if (has_avx512()) sets.push_back(&kAvx512);
    if (has_avx2()) sets.push_back(&kAvx2);
#elif defined(__aarch64__)
    if (has_neon_and_crc()) sets.push_back(&kNeon);
#endif
    sets.push_back(&kScalar);
    return sets;
}

const KernelSet* find_kernels(const std::string& name) {
    for (const KernelSet* set : runnable_kernels())
        if (name == set->name) return set;
    return nullptr;
}

}  // namespace edge
