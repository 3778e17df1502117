// What passes over memory in a training step and is no product: softmax with its cross-entropy and gradient, and the optimizer.
// Included once by each instruction set's file, after vectors.h.

namespace {

// The first n lanes of a vector, the others being `rest`; without a detour through memory where the processor has masks.
template <class Elem> inline F load_some(const Elem* p, int64_t n, F rest) {
#ifdef CHARRNN_AVX512
    const __mmask16 mask = (__mmask16)((1u << n) - 1);
    if constexpr (sizeof(Elem) == 4) return (F)_mm512_mask_loadu_ps((__m512)rest, mask, p);
    else {
        const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16);
        return (F)_mm512_mask_mov_ps((__m512)rest, mask, _mm512_castsi512_ps(wide));
    }
#else
    Elem some[lanes<float>] = {};
    for (int64_t i = 0; i < n; ++i) some[i] = p[i];
    const F v = load(some);
    for (int64_t i = 0; i < lanes<float>; ++i) rest[i] = i < n ? v[i] : rest[i];
    return rest;
#endif
}
template <class Elem> inline void store_some(Elem* p, F v, int64_t n) {
#ifdef CHARRNN_AVX512
    const __mmask16 mask = (__mmask16)((1u << n) - 1);
    if constexpr (sizeof(Elem) == 4) return _mm512_mask_storeu_ps(p, mask, (__m512)v);
    else {
        uint16_t some[lanes<float>];
        store(some, v);
        return _mm256_mask_storeu_epi16(p, mask, _mm256_loadu_si256((const __m256i*)some));
    }
#else
    Elem some[lanes<float>];
    store(some, v);
    for (int64_t i = 0; i < n; ++i) p[i] = some[i];
#endif
}

inline float sum_of(F v) {
#ifdef CHARRNN_AVX512
    return _mm512_reduce_add_ps((__m512)v);
#endif
    float sum = 0;
    for (int i = 0; i < lanes<float>; ++i) sum += v[i];
    return sum;
}
inline float greatest_of(F v) {
#ifdef CHARRNN_AVX512
    return _mm512_reduce_max_ps((__m512)v);
#endif
    float most = v[0];
    for (int i = 1; i < lanes<float>; ++i) most = v[i] > most ? v[i] : most;
    return most;
}
inline F greater(F a, F b) {
#ifdef CHARRNN_AVX512
    return (F)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}
inline F first_of(F v, int64_t n) {  // the others 0
#ifdef CHARRNN_AVX512
    return (F)_mm512_maskz_mov_ps((__mmask16)((1u << n) - 1), (__m512)v);
#endif
    for (int64_t i = 0; i < lanes<float>; ++i) v[i] = i < n ? v[i] : 0.0f;
    return v;
}
inline F root_of(F v) {
#ifdef CHARRNN_AVX512
    return (F)_mm512_sqrt_ps((__m512)v);
#elif CHARRNN_BYTES == 32
    return (F)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < lanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
}

// work(i, n) for each vector of n numbers from i on; n is a constant but for the last.
template <class Work> inline void by_vectors(int64_t count, const Work& work) {
    constexpr int width = lanes<float>;
    int64_t i = 0;
    for (; i + width <= count; i += width) work(i, Flag<true>{}, (int64_t)width);
    if (i < count) work(i, Flag<false>{}, count - i);
}

template <class Elem, bool full> inline F load_at(const Elem* p, Flag<full>, int64_t n, float rest) {
    if constexpr (full) return load(p);
    return load_some(p, n, F{} + rest);
}
template <class Elem, bool full> inline void store_at(Elem* p, F v, Flag<full>, int64_t n) {
    if constexpr (full) store(p, v);
    else store_some(p, v, n);
}

// Rows first to last - 1: log-sum-exp less the target's logit, and in place of the logits their gradient.
template <class Elem> SoftmaxSums softmax(const Softmax& call, int64_t first, int64_t last, float* scratch, float* d_bias) {
    constexpr float lowest = -__builtin_inff(), log2e = 1.44269504f;
    const int64_t classes = call.classes;
    const float smoothing = (float)call.smoothing, each = smoothing / (float)classes;
    SoftmaxSums sums = {0, 0, 0, 0};
    double product = 1;  // of some rows' sums of exponentials, each in 1 … classes: one logarithm does for all of them
    int64_t multiplied = 0;
    for (int64_t row = first; row < last; ++row) {
        Elem* logits = static_cast<Elem*>(call.logits) + row * call.stride;
        float* kept = scratch;
        if constexpr (sizeof(Elem) == 4) kept = logits;
        const int64_t target = call.targets[row];
        if (target == call.ignored) {
            if (call.gradient) __builtin_memset(logits, 0, classes * sizeof(Elem));
            continue;
        }
        F most = F{} + lowest, total = F{};
        by_vectors(classes, [&](int64_t i, auto full, int64_t n) {
            F x = load_at(logits + i, full, n, lowest);
            if (call.bias) x += load_at(call.bias + i, full, n, 0.0f);
            store_at(kept + i, x, full, n);
            most = greater(x, most);
            if (smoothing != 0) total += full.is ? x : first_of(x, n);
        });
        const float highest = greatest_of(most), wanted = kept[target];
        if (wanted == highest) {  // right, unless one before it is as probable
            bool earlier = false;
            for (int64_t i = 0; i < target && !earlier; ++i) earlier = kept[i] == highest;
            sums.correct += !earlier;
        }
        F exponentials = F{};
        by_vectors(classes, [&](int64_t i, auto full, int64_t n) {
            const F e = exp2_bounded<false>((load_at(kept + i, full, n, lowest) - highest) * log2e);
            exponentials += full.is ? e : first_of(e, n);
            if (call.gradient) store_at(kept + i, e, full, n);
        });
        const float sum = sum_of(exponentials);
        product *= sum;
        if (++multiplied == 16) {
            sums.nats += __builtin_log(product);
            product = 1, multiplied = 0;
        }
        sums.nats += (double)highest - (double)wanted;
        if (smoothing != 0) sums.others += (double)wanted - (double)sum_of(total) / (double)classes;
        ++sums.count;
        if (!call.gradient) continue;
        const float scale = 1.0f / sum;
        kept[target] -= (1.0f - smoothing) * sum;
        by_vectors(classes, [&](int64_t i, auto full, int64_t n) {
            const F g = load_at(kept + i, full, n, 0.0f) * scale - each;
            store_at(logits + i, g, full, n);
            store_at(d_bias + i, load_at(d_bias + i, full, n, 0.0f) + g, full, n);
        });
    }
    sums.nats += __builtin_log(product);
    return sums;
}

double squares(const float* p, int64_t count) {
    constexpr int width = lanes<float>;
    double sum = 0;
    for (int64_t i = 0; i < count; i += 1024) {  // floats add up 1,024 at a time, doubles the rest
        const int64_t some = count - i < 1024 ? count - i : 1024;
        F parts[2] = {};
        int64_t j = 0;
        for (; j + 2 * width <= some; j += 2 * width)
            for (int k = 0; k < 2; ++k) {
                const F v = load(p + i + j + k * width);
                parts[k] += v * v;
            }
        float rest = 0;
        for (; j < some; ++j) rest += p[i + j] * p[i + j];
        sum += (double)sum_of(parts[0] + parts[1]) + (double)rest;
    }
    return sum;
}

// Kingma & Ba 2015, algorithm 1, with the weight decay of Loshchilov & Hutter 2019 where it is decoupled.
void adam(const Adam& call, const AdamTensor& of, const AdamFactors& by, int64_t first, int64_t last) {
    float *weights = of.weights + first, *means = of.means + first, *variances = of.squares + first;
    float* averages = of.averages ? of.averages + first : nullptr;
    const float* gradients = of.gradients + first;
    const float scale = (float)call.scale, to_mean = (float)(1 - call.beta1), beta2 = (float)call.beta2, to_square = (float)(1 - call.beta2);
    const float decay = (float)of.weight_decay, left = call.decoupled ? (float)(1 - call.rate * of.weight_decay) : 1.0f;
    const float pull = call.decoupled ? 0.0f : decay, epsilon = (float)call.epsilon, rate = (float)by.rate, root = (float)by.root;
    const float follow = (float)call.follow;
    by_vectors(last - first, [&](int64_t i, auto full, int64_t n) {
        F p = load_at(weights + i, full, n, 0.0f);
        const F g = load_at(gradients + i, full, n, 0.0f) * scale + p * pull;
        F m = load_at(means + i, full, n, 0.0f), v = load_at(variances + i, full, n, 0.0f);
        m += (g - m) * to_mean;
        v = v * beta2 + g * g * to_square;
        p = p * left - rate * m / (root_of(v) * root + epsilon);
        store_at(means + i, m, full, n);
        store_at(variances + i, v, full, n);
        store_at(weights + i, p, full, n);
        if (averages) {
            const F average = load_at(averages + i, full, n, 0.0f);
            store_at(averages + i, average + (p - average) * follow, full, n);
        }
    });
}

}  // namespace
