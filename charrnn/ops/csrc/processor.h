// What the processor has, as both ways in from Python ask it.
#pragma once

#include <cstddef>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace charrnn {

// What a core's own cache holds, in bytes.
inline size_t cache_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    static const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (found > 0) return (size_t)found;
#endif
    return 1 << 20;
}

#if defined(__x86_64__)
inline bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
inline bool has_avx512() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

}  // namespace charrnn
