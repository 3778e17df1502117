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

}  // namespace

// Runs a softmax. The sums are added in the order of the rows, whoever found them. Returns 0, or 1 for a target that is no class.
CHARRNN_EXPORT int charrnn_softmax(Softmax* given, Parallel parallel) {
    Softmax& call = *given;
    for (int64_t row = 0; row < call.rows; ++row)
        if (call.targets[row] != call.ignored && (call.targets[row] < 0 || call.targets[row] >= call.classes)) return 1;
    const auto run = call.precision == BF16 ? kernels_of[call.instructions]->softmax_bf16 : kernels_of[call.instructions]->softmax_fp32;
    const int64_t pieces = (call.rows + ROWS - 1) / ROWS, classes = call.classes;
    std::vector<SoftmaxSums> sums(pieces);
    std::vector<float> d_bias(call.gradient ? pieces * classes : 0);
    share(parallel, call.threads, pieces, [&](int64_t piece) {
        const Flushed flushed;
        std::vector<float> scratch(classes);
        const int64_t first = piece * ROWS, last = std::min(call.rows, first + ROWS);
        sums[piece] = run(call, first, last, scratch.data(), call.gradient ? d_bias.data() + piece * classes : nullptr);
    });
    for (int64_t piece = 0; piece < pieces; ++piece) {
        call.nats += sums[piece].nats, call.others += sums[piece].others;
        call.correct += sums[piece].correct, call.count += sums[piece].count;
        if (call.gradient && call.d_bias)
            for (int64_t i = 0; i < classes; ++i) call.d_bias[i] += d_bias[piece * classes + i];
    }
    return 0;
}

// One step of Adam on gradients that are scaled, and then scaled down to a norm of at most max_norm. What the norm was goes to call.norm.
CHARRNN_EXPORT int charrnn_adam(Adam* given, Parallel parallel) {
    Adam& call = *given;
    const StepKernels& kernels = *kernels_of[call.instructions];
    std::vector<Piece> pieces;
    for (int64_t tensor = 0; tensor < call.count; ++tensor)
        for (int64_t first = 0; first < call.tensors[tensor].size; first += NUMBERS)
            pieces.push_back({tensor, first, std::min(call.tensors[tensor].size, first + NUMBERS)});
    const int64_t count = (int64_t)pieces.size();
    std::vector<double> squares(count);
    share(parallel, call.threads, count, [&](int64_t i) {
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
    share(parallel, call.threads, count, [&](int64_t i) {
        const Flushed flushed;
        kernels.adam(call, call.tensors[pieces[i].tensor], factors[pieces[i].tensor], pieces[i].first, pieces[i].last);
    });
    return 0;
}

}  // namespace charrnn
