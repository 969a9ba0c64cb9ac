// Which instruction-set levels this build has and this machine can run.
#include "level.hpp"

#include <cstring>

namespace nocopy {

#define NOCOPY_DECLARE(level)      \
    namespace level {              \
    extern const Kernel kernels[]; \
    }
#ifdef NOCOPY_HAS_BASELINE
NOCOPY_DECLARE(baseline)
#endif
#ifdef NOCOPY_HAS_NEON
NOCOPY_DECLARE(neon)
#endif
#ifdef NOCOPY_HAS_AVX2
NOCOPY_DECLARE(avx2)
#endif
#ifdef NOCOPY_HAS_AVX512
NOCOPY_DECLARE(avx512)
#endif
#ifdef NOCOPY_HAS_AVX512VNNI
NOCOPY_DECLARE(avx512vnni)
#endif
#undef NOCOPY_DECLARE

namespace {

[[maybe_unused]] bool always() {
    return true;
}

#ifdef NOCOPY_HAS_AVX2
// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#ifdef NOCOPY_HAS_AVX512
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

#ifdef NOCOPY_HAS_AVX512VNNI
bool has_avx512vnni() {
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}
#endif

// Best last.
const Level LEVELS[] = {
#ifdef NOCOPY_HAS_BASELINE
    {"baseline", always, baseline::kernels},
#endif
#ifdef NOCOPY_HAS_NEON
    {"neon", always, neon::kernels},
#endif
#ifdef NOCOPY_HAS_AVX2
    {"avx2", has_avx2, avx2::kernels},
#endif
#ifdef NOCOPY_HAS_AVX512
    {"avx512", has_avx512, avx512::kernels},
#endif
#ifdef NOCOPY_HAS_AVX512VNNI
    {"avx512vnni", has_avx512vnni, avx512vnni::kernels},
#endif
};

}  // namespace

const Level* find_level(const char* name) {
    const Level* best = nullptr;
    for (const Level& level : LEVELS)
        if (level.available() && (!name || std::strcmp(name, level.name) == 0)) best = &level;
    return best;
}

}  // namespace nocopy

extern "C" const char* nocopy_level(uint32_t index) {
    for (const nocopy::Level& level : nocopy::LEVELS) {
        if (!level.available()) continue;
        if (index == 0) return level.name;
        index--;
    }
    return nullptr;
}
