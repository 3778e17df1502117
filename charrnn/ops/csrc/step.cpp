// The way in from Python to the passes over memory of a training step, each cut into pieces and shared out among threads.

#include "step_calls.h"

#include <cmath>
#include <vector>

#include "threads.h"

namespace charrnn {
namespace {

#if defined(__x86_64__)
const StepKernels* const kernels_of[] = {&plain_step, &avx2_step, &avx512_step, &avx512_bf16_step, &amx_step};
#else
const StepKernels* const kernels_of[] = {&plain_step};
#endif

constexpr int64_t ROWS = 64;         // of a piece of a softmax
constexpr int64_t NUMBERS = 1 << 14;  // of a piece of a tensor: weight, gradient and moments of it are 256 KiB, which a core's cache holds

struct Piece {
    int64_t tensor, first, last;
};

// Whether all targets are classes or nobody's.
bool known(const int64_t* targets, int64_t count, int64_t classes, int64_t ignored) {
    return std::all_of(targets, targets + count, [&](int64_t target) { return target == ignored || (target >= 0 && target < classes); });
}

// The sums are added in the order of the rows, whoever found them.
void run(Softmax& call, const OpenMP& pool) {
    const auto softmax = call.precision == BF16 ? kernels_of[call.instructions]->softmax_bf16 : kernels_of[call.instructions]->softmax_fp32;
    const int64_t pieces = (call.rows + ROWS - 1) / ROWS, classes = call.classes;
    std::vector<SoftmaxSums> sums(pieces);
    std::vector<float> d_bias(call.gradient ? pieces * classes : 0);
    share(pool, call.threads, pieces, [&](int64_t piece) {
        const Flushed flushed;
        std::vector<float> scratch(classes);
        const int64_t first = piece * ROWS, last = std::min(call.rows, first + ROWS);
        sums[piece] = softmax(call, first, last, scratch.data(), call.gradient ? d_bias.data() + piece * classes : nullptr);
    });
    for (int64_t piece = 0; piece < pieces; ++piece) {
        call.nats += sums[piece].nats, call.others += sums[piece].others;
        call.correct += sums[piece].correct, call.count += sums[piece].count;
        if (call.gradient && call.d_bias)
            for (int64_t i = 0; i < classes; ++i) call.d_bias[i] += d_bias[piece * classes + i];
    }
}

int64_t whole_blocks(int64_t count) { return (count + 31) / 32 * 32; }

}  // namespace

// Returns 0, or 1 for a target that is no class.
CHARRNN_EXPORT int charrnn_softmax(Softmax* given, Parallel parallel, Threads team_size) {
    if (!known(given->targets, given->rows, given->classes, given->ignored)) return 1;
    run(*given, {parallel, team_size});
    return 0;
}

// Whether an instruction set has a head.
CHARRNN_EXPORT int charrnn_has_head(int64_t instructions) { return kernels_of[instructions]->head.pack != nullptr; }

// Returns 0, 1 for a target that is no class, 2 where there was no memory.
CHARRNN_EXPORT int charrnn_head(Head* given, Parallel parallel, Threads team_size) {
    const OpenMP pool{parallel, team_size};
    Head& call = *given;
    const HeadKernels& kernels = kernels_of[call.instructions]->head;
    if (!known(call.targets, call.rows, call.classes, call.ignored)) return 1;
    const int64_t features = call.features, most = std::min(call.chunk, whole_blocks(call.rows)), group = 512;
    HeadMemory memory = {};
    memory.classes = whole_blocks(call.classes);
    const int64_t panels = memory.classes / 32;
    // Where there are few classes the features are shared out too, so that no thread waits for another's panel.
    const int64_t parts = panels >= 4 * call.threads ? 1 : std::min<int64_t>(features / 32, 4);
    const int64_t sizes[] = {memory.classes * features, memory.classes * features, most * features, most * features, most * memory.classes};
    uint16_t** const places[] = {&memory.by_class, &memory.by_feature, &memory.x, &memory.x_pairs, &memory.logits};
    Memory held[5];
    for (int i = 0; i < 5; ++i) {
        held[i] = aligned(std::max<int64_t>(64, sizes[i] * 2));
        if (!held[i]) return 2;
        *places[i] = reinterpret_cast<uint16_t*>(held[i].get());
    }
    share(pool, call.threads, panels, [&](int64_t panel) { kernels.pack(call, memory, panel); });
    for (memory.first = 0; memory.first < call.rows; memory.first += most) {
        memory.count = std::min(most, call.rows - memory.first);
        memory.rows = whole_blocks(memory.count);
        const int64_t groups = (memory.rows + group - 1) / group;
        share(pool, call.threads, memory.rows / 32, [&](int64_t block) { kernels.rows(call, memory, block); });
        share(pool, call.threads, panels * groups, [&](int64_t item) {
            const int64_t first = item % groups * group;
            kernels.logits(call, memory, item / groups, first, std::min(memory.rows, first + group));
        });
        const bool gradient = call.d_x || call.d_weight || call.d_bias;
        Softmax softmax = {};
        softmax.precision = BF16, softmax.rows = memory.count, softmax.classes = call.classes, softmax.stride = memory.classes;
        softmax.ignored = call.ignored, softmax.gradient = gradient, softmax.threads = call.threads, softmax.instructions = call.instructions;
        softmax.smoothing = call.smoothing, softmax.logits = memory.logits, softmax.bias = call.bias;
        softmax.targets = call.targets + memory.first, softmax.d_bias = call.d_bias;
        run(softmax, pool);
        call.nats += softmax.nats, call.others += softmax.others, call.correct += softmax.correct, call.count += softmax.count;
        if (call.d_x) {
            const int64_t some = std::min(group, whole_blocks((memory.rows + call.threads - 1) / call.threads));
            share(pool, call.threads, (memory.rows + some - 1) / some,
                  [&](int64_t item) { kernels.d_x(call, memory, item * some, std::min(memory.rows, (item + 1) * some)); });
        }
        if (call.d_weight)
            share(pool, call.threads, panels * parts, [&](int64_t item) {
                std::vector<uint16_t> scratch(memory.rows * 32 + 32);  // whole lines of the cache begin somewhere in it
                uint16_t* turned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64 / 2;
                const int64_t part = item % parts, blocks = features / 32;
                kernels.d_weight(call, memory, item / parts, blocks * part / parts * 32, blocks * (part + 1) / parts * 32, turned);
            });
    }
    return 0;
}

// One step of Adam on gradients that are scaled, and then scaled down to a norm of at most max_norm. What the norm was goes to call.norm.
CHARRNN_EXPORT int charrnn_adam(Adam* given, Parallel parallel, Threads team_size) {
    const OpenMP pool{parallel, team_size};
    Adam& call = *given;
    const StepKernels& kernels = *kernels_of[call.instructions];
    std::vector<Piece> pieces;
    for (int64_t tensor = 0; tensor < call.count; ++tensor)
        for (int64_t first = 0; first < call.tensors[tensor].size; first += NUMBERS)
            pieces.push_back({tensor, first, std::min(call.tensors[tensor].size, first + NUMBERS)});
    const int64_t count = (int64_t)pieces.size();
    std::vector<double> squares(count);
    share(pool, call.threads, count, [&](int64_t i) {
        const Flushed flushed;
        squares[i] = kernels.squares(call.tensors[pieces[i].tensor].gradients + pieces[i].first, pieces[i].last - pieces[i].first);
    });
    double square = 0;
    for (double some : squares) square += some;
    call.norm = std::sqrt(square) * call.scale;
    const double shrink = call.max_norm / (call.norm + 1e-6);  // as torch.nn.utils.clip_grad_norm_; a norm that is NaN makes all weights NaN
    if (!(shrink >= 1)) call.scale *= shrink;
    std::vector<AdamFactors> factors(call.count);
    for (int64_t tensor = 0; tensor < call.count; ++tensor) {
        const double step = *call.tensors[tensor].step += 1;
        factors[tensor] = {call.rate / (1 - std::pow(call.beta1, step)), 1 / std::sqrt(1 - std::pow(call.beta2, step))};
    }
    share(pool, call.threads, count, [&](int64_t i) {
        const Flushed flushed;
        kernels.adam(call, call.tensors[pieces[i].tensor], factors[pieces[i].tensor], pieces[i].first, pieces[i].last);
    });
    return 0;
}

}  // namespace charrnn
