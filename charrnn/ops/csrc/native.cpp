// The way in from Python: which instruction sets there are, and a call cut into items and shared out among threads.

#include "native.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "processor.h"
#include "threads.h"

namespace charrnn {
namespace {

enum Instructions : int64_t { PLAIN, AVX2, AVX512, AVX512_BF16, AMX, INSTRUCTIONS };

#if defined(__x86_64__)
const Kernels* const kernels_of[INSTRUCTIONS] = {&plain_kernels, &avx2_kernels, &avx512_kernels, &avx512_bf16_kernels, &amx_kernels};
#else
const Kernels* const kernels_of[1] = {&plain_kernels};
#endif

// The kernel hands a process its tiles only when asked (Linux: Documentation/arch/x86/xstate.rst).
bool tiles_granted() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

bool has(int64_t instructions) {
    if (instructions == PLAIN) return true;
#if defined(__x86_64__)
    if (instructions == AVX2) return has_avx2();
    const bool avx512 = has_avx512();
    if (instructions == AVX512) return avx512;
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (instructions == AVX512_BF16) return bf16;
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    if (!bf16 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return (d & AMX_BF16) && (d & AMX_TILE) && tiles_granted();
#else
    return false;
#endif
}

// work(0, team), …, work(count - 1, team), each by a team of `parts` threads; by one where there are not as many.
template <class Work> void share_teams(const OpenMP& pool, int64_t count, int64_t parts, const Work& work) {
    std::atomic<int64_t> next{0};
    std::vector<int64_t> arrivals(count * 8);  // a cache line each
    on_threads(pool, count * parts, [&](int64_t threads) {
        if (threads == count * parts) {
            const int64_t mine = next.fetch_add(1);
            Team team{mine % parts, parts, &arrivals[mine / parts * 8], 0};
            work(mine / parts, team);
        } else {
            for (int64_t i; (i = next.fetch_add(1)) < count;) {
                Team alone;
                work(i, alone);
            }
        }
    });
}

}  // namespace

// The others are a few microseconds behind, or have no core: then the one they wait for gets this one's.
void meet_others(Team& team) {
    const int64_t all = ++team.meetings * team.parts;
    if (__atomic_add_fetch(team.arrivals, 1, __ATOMIC_ACQ_REL) >= all) return;
    for (int spins = 0; __atomic_load_n(team.arrivals, __ATOMIC_ACQUIRE) < all; ++spins) {
        if (spins > 20000) std::this_thread::yield();
#if defined(__x86_64__)
        else _mm_pause();
#endif
    }
}

// Whether this processor runs an instruction set, by its number in native.py.
CHARRNN_EXPORT int charrnn_has(int64_t instructions) { return instructions < INSTRUCTIONS && has(instructions); }

// By which Python sees that it and this library were made from the same sources.
CHARRNN_EXPORT int64_t charrnn_call_bytes() { return sizeof(Call); }

// Runs a call. Returns 0, or 1 where there was no memory.
CHARRNN_EXPORT int charrnn_run(const Call* given, Parallel parallel, Threads team_size) {
    const Call& call = *given;
    const OpenMP pool{parallel, team_size};
    const Kernels& kernels = *kernels_of[call.precision == FP64 ? PLAIN : call.instructions];
    const size_t number = call.precision == FP64 ? 8 : 4;
    const int64_t blocks = call.cell == LSTM || call.cell == GRU ? 4 : 1;

    // Columns by length, then dealt out in turn: every item has as many steps to walk, but for one.
    std::vector<int64_t> order(call.batch), lengths(call.batch);
    std::iota(order.begin(), order.end(), 0);
    if (call.lengths)
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return call.lengths[a] > call.lengths[b]; });
    // A team shares the recurrent matrix where it would fill a core's cache, the columns are shared among teams.
    const size_t packed_bytes = kernels.packed_bytes(call);
    const int64_t panels = kernels.panels(call);
    const int64_t parts = std::max<int64_t>(1, std::min({call.threads, panels, (int64_t)(packed_bytes / (cache_bytes() * 3 / 5)) + 1}));
    const int64_t items = std::max<int64_t>(1, std::min(call.threads / parts, call.batch));
    std::vector<int64_t> columns;
    std::vector<Item> work;
    columns.reserve(call.batch);
    for (int64_t item = 0, at = 0; item < items; ++item) {
        const int64_t count = call.batch / items + (item < call.batch % items);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t column = call.lengths ? order[item + i * items] : order[at + i];
            lengths[at + i] = call.lengths ? call.lengths[column] : call.steps;
            columns.push_back(column);
        }
        work.push_back({count, columns.data() + at, lengths.data() + at});
        at += count;
    }

    const size_t scratch_bytes = (kernels.scratch_bytes(call, (call.batch + items - 1) / items, parts) + 4095) / 4096 * 4096;
    const Memory packed = aligned(packed_bytes), scratch = aligned(scratch_bytes * items);
    const Memory d_bias = aligned(blocks * call.hidden * number * items);
    if (!packed || !scratch || !d_bias) return 1;
    share(pool, call.threads, panels, [&](int64_t panel) { kernels.pack(call, packed.get(), panel); });
    share_teams(pool, items, parts, [&](int64_t item, Team& team) {
        const Flushed flushed;
        kernels.run(call, packed.get(), work[item], scratch.get() + item * scratch_bytes, d_bias.get() + item * blocks * call.hidden * number, team);
    });
    if (call.backward) {
        const auto add = [&](auto* total, const auto* parts) {
            for (int64_t i = 0; i < blocks * call.hidden; ++i) {
                total[i] = 0;
                for (int64_t item = 0; item < items; ++item) total[i] += parts[item * blocks * call.hidden + i];
            }
        };
        if (call.precision == FP64) add(static_cast<double*>(call.d_bias), reinterpret_cast<const double*>(d_bias.get()));
        else add(static_cast<float*>(call.d_bias), reinterpret_cast<const float*>(d_bias.get()));
    }
    if (!call.backward || !(call.d_weight_ih || call.d_weight_hh)) return 0;

    std::vector<int64_t> terms;
    terms.reserve(call.steps * call.batch);
    for (int64_t t = 0; t < call.steps; ++t)
        for (int64_t column = 0; column < call.batch; ++column)
            if (!call.lengths || t < call.lengths[column]) terms.push_back(t * call.batch + column);
    if (terms.empty()) {
        const int64_t gates = call.cell == GRU ? 3 : blocks;
        if (call.d_weight_ih) std::memset(call.d_weight_ih, 0, gates * call.hidden * call.inputs * number);
        if (call.d_weight_hh) std::memset(call.d_weight_hh, 0, gates * call.hidden * call.hidden * number);
        return 0;
    }
    const int64_t rows = blocks * call.hidden, share_of_rows = ((rows + call.threads - 1) / call.threads + 31) / 32 * 32;
    const int64_t shares = (rows + share_of_rows - 1) / share_of_rows;
    const size_t bytes = (kernels.weights_scratch_bytes(call, share_of_rows) + 4095) / 4096 * 4096;
    const Memory packs = aligned(bytes * shares);
    if (!packs) return 1;
    share(pool, call.threads, shares, [&](int64_t i) {
        const Flushed flushed;
        const int64_t first = i * share_of_rows, end = std::min(rows, first + share_of_rows);
        kernels.weights(call, terms.data(), (int64_t)terms.size(), first, end, packs.get() + i * bytes);
    });
    return 0;
}

}  // namespace charrnn
