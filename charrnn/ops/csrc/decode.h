// A model's steps and the draws between them, by one of the threads that share the hidden units out. Included once by each instruction
// set's file, behind vectors.h.
//
// Each thread keeps the same blocks of every matrix from step to step, so that they stay in its core's cache where they fit. It waits
// for the others once a layer, for the draw once a step, and does what comes from the state before, h W_hh, while it would wait.

namespace {

using W = Vec<double>;
constexpr int PANEL = LANES / lanes<float>;  // vectors of a panel
constexpr size_t BLOCK = 64;                 // ids whose shares are summed before one of them is looked for

// e^x for x <= 0, 0 for what is smaller than all normal numbers: x = (n + f) ln 2, e^(f ln 2) by its series. Relative error 1e-15.
inline W exp_of(W x) {
    typedef int64_t I __attribute__((vector_size(CHARRNN_BYTES)));
    const W y = x > -708.0 ? x : W{} - 708.0;
    const W magic = W{} + 6755399441055744.0;  // 1.5 · 2^52: the integer is then in the last bits
    const W t = y * 1.4426950408889634 + magic;
    const W n = t - magic;
    const W r = (y - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    W p = W{} + 1.0 / 6227020800.0;
    constexpr double inverse[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                                  1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0,
                                  1.0};
    for (const double one : inverse) p = p * r + one;
    I scaled = bits<I>(p) + (bits<I>(t) << 52);
    const W e = bits<W>(scaled);
    return x > -708.0 ? e : W{};
}

// One row of what a matrix reads, in bytes: each number is `scale` · (256 · high + low), both read 128 too large.
struct Quantized {
    const uint8_t *high, *low;
    float scale;
};

// out (rows, panels · 16) = x (rows, K) times one block. `rows` and `panels` at once.
template <int panels, int rows>
__attribute__((noinline)) void product(const float* w, int64_t columns, const float* x, int64_t x_stride, float* out, int64_t out_stride) {
    constexpr int vectors = panels * PANEL;
    constexpr int chains = CHARRNN_BYTES < 64 || vectors * rows > 8 ? 1 : vectors * rows > 4 ? 2 : 4;  // enough for each to rest
    F sum[chains][rows][vectors];
#pragma GCC unroll 4
    for (int u = 0; u < chains; ++u)
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) sum[u][r][v] = F{};
    for (int64_t k = 0; k < columns; k += chains, w += chains * panels * LANES) {
#pragma GCC unroll 4
        for (int u = 0; u < chains; ++u)
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) {
                const F weight = load(w + u * panels * LANES + v * lanes<float>);
#pragma GCC unroll 4
                for (int r = 0; r < rows; ++r) sum[u][r][v] += weight * x[r * x_stride + k + u];
            }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) {
            F total = sum[0][r][v];
#pragma GCC unroll 4
            for (int u = 1; u < chains; ++u) total += sum[u][r][v];
            store(out + r * out_stride + v * lanes<float>, total);
        }
}

template <int panels> void product_of(int rows, const float* w, int64_t columns, const float* x, int64_t x_stride, float* out, int64_t stride) {
    if (rows == 1) return product<panels, 1>(w, columns, x, x_stride, out, stride);
    if (rows == 2) return product<panels, 2>(w, columns, x, x_stride, out, stride);
    if (rows == 3) return product<panels, 3>(w, columns, x, x_stride, out, stride);
    return product<panels, 4>(w, columns, x, x_stride, out, stride);
}

// One block of a matrix of bytes times one row, in whole numbers: the same on every instruction set. high and low (panels · 16) are
// the sums of the bytes' products.
#if defined(CHARRNN_VNNI)
template <int panels>
__attribute__((noinline)) void byte_product(const int8_t* w, int64_t groups, const uint8_t* x_high, const uint8_t* x_low, int32_t* high, int32_t* low) {
    __m512i a[panels], b[panels];
#pragma GCC unroll 4
    for (int p = 0; p < panels; ++p) a[p] = b[p] = _mm512_setzero_si512();
    for (int64_t k = 0; k < groups; ++k, w += panels * 64) {
        int32_t four, below;
        __builtin_memcpy(&four, x_high + 4 * k, 4);
        __builtin_memcpy(&below, x_low + 4 * k, 4);
        const __m512i of_high = _mm512_set1_epi32(four), of_low = _mm512_set1_epi32(below);
#pragma GCC unroll 4
        for (int p = 0; p < panels; ++p) {
            const __m512i weights = _mm512_loadu_si512(w + p * 64);
            a[p] = _mm512_dpbusd_epi32(a[p], of_high, weights);
            b[p] = _mm512_dpbusd_epi32(b[p], of_low, weights);
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < panels; ++p) {
        _mm512_storeu_si512(high + p * LANES, a[p]);
        _mm512_storeu_si512(low + p * LANES, b[p]);
    }
}
#elif defined(CHARRNN_AVX2)
template <int panels>
__attribute__((noinline)) void byte_product(const int8_t* w, int64_t groups, const uint8_t* x_high, const uint8_t* x_low, int32_t* high, int32_t* low) {
    // In 16 bits: what multiplies bytes keeps only 16 bits of two products' sum.
    for (int p = 0; p < panels; ++p) {
        __m256i a[4], b[4];
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) a[q] = b[q] = _mm256_setzero_si256();
        for (int64_t k = 0; k < groups; ++k) {
            int32_t four, below;
            __builtin_memcpy(&four, x_high + 4 * k, 4);
            __builtin_memcpy(&below, x_low + 4 * k, 4);
            const __m256i of_high = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
            const __m256i of_low = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(below)));
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) {
                const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + (k * panels + p) * 64 + 16 * q)));
                a[q] = _mm256_add_epi32(a[q], _mm256_madd_epi16(of_high, weights));
                b[q] = _mm256_add_epi32(b[q], _mm256_madd_epi16(of_low, weights));
            }
        }
        for (int q = 0; q < 4; ++q) {
            int32_t of_a[8], of_b[8];
            _mm256_storeu_si256((__m256i*)of_a, a[q]);
            _mm256_storeu_si256((__m256i*)of_b, b[q]);
            for (int i = 0; i < 4; ++i) {
                high[p * LANES + 4 * q + i] = of_a[2 * i] + of_a[2 * i + 1];
                low[p * LANES + 4 * q + i] = of_b[2 * i] + of_b[2 * i + 1];
            }
        }
    }
}
#else
template <int panels>
void byte_product(const int8_t* w, int64_t groups, const uint8_t* x_high, const uint8_t* x_low, int32_t* high, int32_t* low) {
    for (int i = 0; i < panels * LANES; ++i) high[i] = low[i] = 0;
    for (int64_t k = 0; k < groups; ++k)
        for (int i = 0; i < panels * LANES; ++i, w += GROUP)
            for (int j = 0; j < GROUP; ++j) {
                high[i] += w[j] * x_high[k * GROUP + j];
                low[i] += w[j] * x_low[k * GROUP + j];
            }
}
#endif

inline void byte_product_of(int64_t panels, const int8_t* w, int64_t groups, const Quantized& x, int32_t* high, int32_t* low) {
    if (panels == 1) return byte_product<1>(w, groups, x.high, x.low, high, low);
    if (panels == 2) return byte_product<2>(w, groups, x.high, x.low, high, low);
    if (panels == 3) return byte_product<3>(w, groups, x.high, x.low, high, low);
    return byte_product<4>(w, groups, x.high, x.low, high, low);
}

template <class V> inline double sum_of(V v) {
    double total = 0;
    for (size_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i) total += v[i];
    return total;
}

// What a matrix reads: rows of floats, and for a matrix of bytes the same as bytes.
struct Input {
    const float* x;
    int64_t stride;
    const Quantized* rows;
};

void multiply(const Matrix& m, int64_t block, const Input& in, int64_t rows, float* out, int64_t out_stride) {
    const int64_t panels = m.panels(block);
    if (m.numbers) {
        const float* w = m.numbers + m.at(block) * m.width();
        for (int64_t r = 0; r < rows; r += 4) {
            const int some = (int)(rows - r < 4 ? rows - r : 4);
            const float* x = in.x + r * in.stride;
            float* to = out + r * out_stride;
            if (panels == 1) product_of<1>(some, w, m.width(), x, in.stride, to, out_stride);
            else if (panels == 2) product_of<2>(some, w, m.width(), x, in.stride, to, out_stride);
            else if (panels == 3) product_of<3>(some, w, m.width(), x, in.stride, to, out_stride);
            else product_of<4>(some, w, m.width(), x, in.stride, to, out_stride);
        }
        return;
    }
    typedef int32_t Ints __attribute__((vector_size(CHARRNN_BYTES)));
    alignas(64) int32_t high[MOST_PANELS * LANES], low[MOST_PANELS * LANES];
    const float* scales = m.scales + m.at(block);
    const int32_t* sums = m.byte_sums + m.at(block);
    for (int64_t r = 0; r < rows; ++r) {
        byte_product_of(panels, m.bytes + m.at(block) * m.width(), m.width() / GROUP, in.rows[r], high, low);
        for (int64_t i = 0; i < panels * LANES; i += lanes<float>) {
            Ints of_high, of_low, sum;
            __builtin_memcpy(&of_high, high + i, sizeof of_high);
            __builtin_memcpy(&of_low, low + i, sizeof of_low);
            __builtin_memcpy(&sum, sums + i, sizeof sum);
            const F whole = __builtin_convertvector(of_high - 128 * sum, F) * 256.0f + __builtin_convertvector(of_low - 128 * sum, F);
            store(out + r * out_stride + i, whole * load(scales + i) * in.rows[r].scale);
        }
    }
}

// The cells, on 16 units: sums and states of one row. Gate order and equations are ops/cells.py's.

inline void lstm_units(const float* of_x, const float* of_h, float* c, float* h) {
    for (int v = 0; v < PANEL; ++v, of_x += lanes<float>, of_h += lanes<float>, c += lanes<float>, h += lanes<float>) {
        const F i = sigmoid<float>(load(of_x) + load(of_h)), f = sigmoid<float>(load(of_x + LANES) + load(of_h + LANES));
        const F g = tanh_of<float>(load(of_x + 2 * LANES) + load(of_h + 2 * LANES)), o = sigmoid<float>(load(of_x + 3 * LANES) + load(of_h + 3 * LANES));
        const F cell = f * load(c) + i * g;
        store(c, cell);
        store(h, o * tanh_of<float>(cell));
    }
}

inline void gru_units(const float* of_x, const float* of_h, const float* bias_h, const float* before, float* h) {
    for (int v = 0; v < PANEL; ++v) {
        const int at = v * lanes<float>;
        const F r = sigmoid<float>(load(of_x + at) + load(of_h + at)), z = sigmoid<float>(load(of_x + at + LANES) + load(of_h + at + LANES));
        const F n = tanh_of<float>(load(of_x + at + 2 * LANES) + r * (load(of_h + at + 2 * LANES) + load(bias_h + at + 2 * LANES)));
        store(h + at, n + z * (load(before + at) - n));
    }
}

inline void rnn_units(bool relu, const float* of_x, const float* of_h, int64_t count, float* h) {
    for (int64_t i = 0; i < count; i += lanes<float>) {
        const F sum = load(of_x + i) + load(of_h + i);
        store(h + i, relu ? (sum < 0 ? F{} : sum) : tanh_of<float>(sum));  // a NaN stays one
    }
}

class Walker {
  public:
    Walker(Decoder& decoder, const Task& task, int64_t thread)
        : d(decoder), task(task), thread(thread), rows(decoder.rows), count((int64_t)decoder.layers.size()), h_bytes(count), h_step(count, -1) {
        int64_t widest = d.stride;
        for (const Layer& layer : d.layers) widest = std::max(widest, padded(layer.inputs, LANES));
        x.resize(rows * widest);
    }

    void run() {
        const bool draws = !task.read;
        for (step = 0; step < task.steps; ++step) {
            before = (d.parity + step) & 1;
            after = before ^ 1;
            if (draws) {
                if (thread < rows) wait();  // for logits
                for (int64_t r = thread; r < rows; r += task.threads) {
                    const int32_t id = draw(r);
                    d.ids[r] = task.written[step * rows + r] = id;
                }
                arrive();
            }
            if (!ahead) recur(0, step);
            ahead = false;
            if (draws) {
                wait();
                if (d.failed.load(std::memory_order_relaxed)) return;
            }
            embed();
            for (int64_t l = 0; l < count; ++l) {
                layer(l);
                arrive();
                if (!d.sweeps && l + 1 < count) recur(l + 1, step);
                wait();
                hand_up(l);
                if (d.sweeps && l == 0 && !downwards() && step + 1 < task.steps) {
                    recur(0, step + 1);
                    ahead = true;
                }
            }
            if (draws || task.log_shares || (task.wants_last && step + 1 == task.steps)) {
                answer();
                arrive();
                if (task.log_shares) {
                    wait();
                    if (thread == 0) tell();
                    arrive();
                    wait();
                }
            }
        }
    }

  private:
    Decoder& d;
    const Task& task;
    const int64_t thread, rows, count;
    int64_t step = 0, before = 0, after = 1, phase = 0;
    bool ahead = false;                // the first layer's sums are those of the step that comes
    std::vector<float> x;  // (B, stride): what a layer reads, where that is not what the one below wrote
    Input in{};
    struct Bytes {
        std::vector<uint8_t> bytes;
        std::vector<Quantized> rows;
    };
    std::vector<Bytes> h_bytes;    // of each layer's h,
    std::vector<int64_t> h_step;   // after so many steps
    Bytes x_bytes;
    std::vector<double> scores, shares, blocks, kept;
    std::vector<std::pair<double, int32_t>> order;

    void arrive() { d.progress[thread].phase.store(++phase, std::memory_order_release); }

    // Until all others have come as far. A thread that is not running is not waited for at its core's expense.
    void wait() {
        for (int64_t other = 0; other < task.threads; ++other) {
            if (other == thread) continue;
            for (int spins = 0; d.progress[other].phase.load(std::memory_order_acquire) < phase; ++spins) {
                if (spins < 2000) pause();
                else std::this_thread::yield();
            }
        }
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    int64_t first(int64_t blocks) const { return blocks * thread / task.threads; }
    int64_t last(int64_t blocks) const { return blocks * (thread + 1) / task.threads; }

    int32_t id_of(int64_t r) const { return task.read ? task.read[step] : d.ids[r]; }

    void quantize(const float* from, int64_t stride, int64_t columns, Bytes& to) const {
        typedef uint8_t Packed __attribute__((vector_size(lanes<float>)));
        const int64_t width = padded(columns, LANES);
        to.bytes.resize(2 * rows * width);
        to.rows.resize(rows);
        for (int64_t r = 0; r < rows; ++r, from += stride) {
            F most = F{}, fault = F{};
            for (int64_t i = 0; i < width; i += lanes<float>) {
                const F v = load(from + i), size = v < 0 ? -v : v;
                most = size > most ? size : most;
                fault += v * 0.0f;  // NaN where one is not finite
            }
            float largest = 0;
            for (int i = 0; i < lanes<float>; ++i) largest = std::max(largest, most[i]);
            const float scale = largest > 0 ? 32512.0f / largest : 0.0f;
            uint8_t* high = to.bytes.data() + 2 * r * width;
            for (int64_t i = 0; i < width; i += lanes<float>) {
                const F t = load(from + i) * scale + 12582912.0f;
                const U whole = bits<U>(t) - 0x4b400000u;      // to nearest, in two's complement
                const U above = (whole + 128u) >> 8;           // its last byte is the high one
                const Packed upper = __builtin_convertvector(above + 128u, Packed), lower = __builtin_convertvector(whole + 128u, Packed);
                __builtin_memcpy(high + i, &upper, sizeof upper);
                __builtin_memcpy(high + width + i, &lower, sizeof lower);
            }
            to.rows[r] = {high, high + width, largest / 32512.0f + (float)sum_of(fault)};
        }
    }

    // h of a layer after `steps` steps of this call; 0: as the call began.
    Input state(int64_t l, int64_t steps) {
        const float* h = d.layers[l].h[(d.parity + steps) & 1].data();
        if (d.model.quantized && h_step[l] != steps) {
            quantize(h, d.stride, d.model.hidden, h_bytes[l]);
            h_step[l] = steps;
        }
        return {h, d.stride, h_bytes[l].rows.data()};
    }

    // Weights that do not fit the caches of the cores that share them are read one way and then the other, so that a step begins with what
    // the last one ended with: the first layer's own weights first, then the other layers' from their first block on; or all these from
    // the last block down, and the first layer's own weights, for the step that follows, at the end.
    bool downwards() const { return d.sweeps && (step & 1); }

    template <class Use> void each_block(const Matrix& m, const Use& use) const {
        const int64_t from = first(m.blocks), end = last(m.blocks);
        for (int64_t i = from; i < end; ++i) use(downwards() ? from + end - 1 - i : i);
    }

    void recur(Layer& layer, int64_t block, const Input& h) {
        multiply(layer.from_h, block, h, rows, layer.sums.data() + layer.from_h.at(block), layer.from_h.size());
    }

    // What comes from a layer's state after so many steps of this call.
    void recur(int64_t l, int64_t steps) {
        Layer& layer = d.layers[l];
        const Input h = state(l, steps);
        each_block(layer.from_h, [&](int64_t b) { recur(layer, b, h); });
    }

    void embed() {
        if (!d.embeds && d.table) return;
        const int64_t width = padded(d.model.embedding_size, LANES);
        for (int64_t r = 0; r < rows; ++r) __builtin_memcpy(&x[r * width], &d.embedding[id_of(r) * width], width * sizeof(float));
        in = {x.data(), width, nullptr};
        if (!d.table) quantize_input(d.layers[0].from_x, d.model.embedding_size);
    }

    void quantize_input(const Matrix& m, int64_t columns) {
        if (m.numbers) return;
        quantize(in.x, in.stride, columns, x_bytes);
        in.rows = x_bytes.rows.data();
    }

    // What the first layer makes of an id: (panels, 16) of a block, with the biases.
    const float* tabled(int32_t id, int64_t block) {
        const Layer& layer = d.layers[0];
        const Matrix& m = layer.from_x;
        float* to = d.table + id * m.size() + m.at(block);
        uint8_t& known = d.tabled[id * m.blocks + block];
        if (!known) {
            const int64_t width = padded(d.model.embedding_size, LANES);
            multiply(m, block, {&d.embedding[id * width], width, nullptr}, 1, to, m.size());
            add(to, layer.bias_x + m.at(block), m.panels(block) * LANES);
            known = 1;
        }
        return to;
    }

    static void add(float* to, const float* more, int64_t n) {
        for (int64_t i = 0; i < n; i += lanes<float>) store(to + i, load(to + i) + load(more + i));
    }

    void layer(int64_t l) {
        Layer& layer = d.layers[l];
        const Matrix& m = layer.from_x;
        alignas(64) float sums[4][MOST_PANELS * LANES];
        const bool recurs = d.sweeps && l > 0;
        const Input own = recurs ? state(l, step) : Input{};
        each_block(m, [&](int64_t b) {
            if (recurs) recur(layer, b, own);
            const int64_t size = m.panels(b) * LANES, unit = b * (m.gates > 1 ? 1 : MOST_PANELS) * LANES;
            for (int64_t from = 0; from < rows; from += 4) {
                const int64_t some = rows - from < 4 ? rows - from : 4;
                const bool table = l == 0 && d.table;
                if (!table) multiply(m, b, {in.x + from * in.stride, in.stride, in.rows + from}, some, sums[0], MOST_PANELS * LANES);
                for (int64_t i = 0; i < some; ++i) {
                    const int64_t r = from + i;
                    const float* of_x = sums[i];
                    if (table) of_x = tabled(id_of(r), b);
                    else add(sums[i], layer.bias_x + m.at(b), size);
                    const float* of_h = layer.sums.data() + r * m.size() + m.at(b);
                    float* h = layer.h[after].data() + r * d.stride + unit;
                    if (d.model.cell == LSTM) lstm_units(of_x, of_h, layer.c.data() + r * d.stride + unit, h);
                    else if (d.model.cell == GRU) gru_units(of_x, of_h, layer.bias_h + m.at(b), layer.h[before].data() + r * d.stride + unit, h);
                    else rnn_units(d.model.cell == RNN_RELU, of_x, of_h, size, h);
                }
            }
        });
    }

    // What the next layer, or the head, reads.
    void hand_up(int64_t l) {
        const Layer& layer = d.layers[l];
        const Matrix& reader = l + 1 < count ? d.layers[l + 1].from_x : d.head;
        const int64_t hidden = d.model.hidden;
        if (!layer.norm_weight && !layer.adds) {
            in = reader.numbers ? Input{layer.h[after].data(), d.stride, nullptr} : state(l, step + 1);
            return;
        }
        for (int64_t r = 0; r < rows; ++r) {
            const float* h = layer.h[after].data() + r * d.stride;
            const float* read = layer.adds ? in.x + r * in.stride : nullptr;
            float* to = x.data() + r * d.stride;
            double mean = 0, square = 0;
            float scale = 1;
            if (layer.norm_weight) {
                F sum = F{}, squares = F{};
                for (int64_t i = 0; i < d.stride; i += lanes<float>) sum += load(h + i);  // what lies beyond H is 0
                mean = sum_of(sum) / hidden;
                for (int64_t i = 0; i < d.stride; i += lanes<float>) {
                    const F off = load(h + i) - (float)mean;
                    squares += off * off;
                }
                square = sum_of(squares) - (double)(d.stride - hidden) * (float)mean * (float)mean;
                scale = (float)(1 / sqrt(square / hidden + 1e-5));  // as nn.LayerNorm
            }
            for (int64_t i = 0; i < hidden; ++i) {
                float v = h[i];
                if (layer.norm_weight) v = (v - (float)mean) * scale * layer.norm_weight[i] + layer.norm_bias[i];
                to[i] = read ? v + read[i] : v;
            }
            for (int64_t i = hidden; i < d.stride; ++i) to[i] = 0;
        }
        in = {x.data(), d.stride, nullptr};
        quantize_input(reader, hidden);
    }

    void answer() {
        for (int64_t b = first(d.head.blocks); b < last(d.head.blocks); ++b) {
            multiply(d.head, b, in, rows, d.logits.data() + d.head.at(b), d.head.size());
            for (int64_t r = 0; r < rows; ++r)
                add(d.logits.data() + r * d.head.size() + d.head.at(b), d.head_bias + d.head.at(b), d.head.panels(b) * LANES);
        }
    }

    // Logarithms of the shares after a step, of row 0.
    void tell() {
        const int64_t n = d.model.vocabulary;
        read_scores(0);
        double best = -HUGE_VAL;
        for (int64_t i = 0; i < n; ++i) best = std::max(best, scores[i]);
        for (int64_t i = 0; i < n; ++i) scores[i] -= best;
        const double whole = log(exponentiate());
        for (int64_t i = 0; i < n; ++i) task.log_shares[step * n + i] = (float)(scores[i] - whole);
    }

    void read_scores(int64_t r) {
        typedef float Floats __attribute__((vector_size(CHARRNN_BYTES / 2)));
        const int64_t n = d.model.vocabulary, width = padded(n, BLOCK);
        const float* logits = d.logits.data() + r * d.head.size();
        scores.resize(width);
        W sum = W{};
        for (int64_t i = 0; i < d.head.size(); i += lanes<double>) {  // beyond V they are 0
            Floats some;
            __builtin_memcpy(&some, logits + i, sizeof some);
            const W wide = __builtin_convertvector(some, W);
            sum += wide;
            store(&scores[i], wide);
        }
        for (int64_t i = n; i < width; ++i) scores[i] = -HUGE_VAL;
        if (!std::isfinite(sum_of(sum))) d.failed.store(true, std::memory_order_relaxed);
    }

    int64_t best_score() const {
        W most = W{} - HUGE_VAL;
        for (size_t i = 0; i < scores.size(); i += lanes<double>) {
            const W v = load(&scores[i]);
            most = v > most ? v : most;
        }
        double best = most[0];
        for (int i = 1; i < lanes<double>; ++i) best = std::max(best, most[i]);
        return std::find(scores.begin(), scores.end(), best) - scores.begin();  // the first; behind all where they are no numbers
    }

    // shares: e^scores, of scores of which the best is 0; blocks: sums of 64 each. Returns the sum of all.
    double exponentiate() {
        shares.resize(scores.size());
        blocks.resize(scores.size() / BLOCK);
        double whole = 0;
        for (size_t block = 0; block < blocks.size(); ++block) {
            W sum = W{};
            for (size_t i = block * BLOCK; i < (block + 1) * BLOCK; i += lanes<double>) {
                const W e = exp_of(load(&scores[i]));
                sum += e;
                store(&shares[i], e);
            }
            whole += blocks[block] = sum_of(sum);
        }
        return whole;
    }

    // The first id at which the sum of the shares lies above `target`, so that one of share 0 is never found.
    int64_t found_at(double target) const {
        size_t block = 0;
        double sum = 0;
        for (; block + 1 < blocks.size() && sum + blocks[block] <= target; ++block) sum += blocks[block];
        size_t last = block * BLOCK;
        for (size_t i = last; i < shares.size(); ++i) {
            if (shares[i] == 0) continue;
            last = i;
            if ((sum += shares[i]) > target) break;
        }
        return (int64_t)last;  // rounding may leave the target unreached
    }

    // The filters of sampling.py, in their order, and its draw.
    int32_t draw(int64_t r) {
        Row& text = d.texts[r];
        const Options& o = d.options;
        const int64_t n = d.model.vocabulary;
        read_scores(r);
        if (d.model.end >= 0 && text.empty) scores[d.model.end] = -HUGE_VAL;
        if (task.allowed)
            for (int64_t i = 0; i < n; ++i)
                if (!task.allowed[r * n + i]) scores[i] = -HUGE_VAL;
        for (const int32_t id : d.unwritten) scores[id] = -HUGE_VAL;
        if (o.repetition_penalty != 1) penalize(text.history);
        if (o.no_repeat_ngram) ban_repeats(text.history);
        const int64_t best = std::min(best_score(), n - 1);
        int64_t id = best;
        if (o.temperature != 0) {
            const double most = scores[best];
            for (size_t i = 0; i < scores.size(); i += lanes<double>) store(&scores[i], (load(&scores[i]) - most) / o.temperature);
            if (o.top_k > 0 && o.top_k < n) keep_top_k(o.top_k);
            if (o.top_p < 1) keep_top_p(o.top_p);
            if (o.min_p > 0) keep_above(log(o.min_p));
            const double whole = exponentiate();
            const uint64_t first = text.generator(), second = text.generator();
            const double uniform = (double)((first << 32 | second) & ((1ull << 53) - 1)) * 0x1p-53;  // as torch.rand has it of doubles
            id = std::min(found_at(uniform * whole), n - 1);
        }
        if (id != d.model.end) {
            text.empty = false;
            if (o.repetition_penalty != 1 || o.no_repeat_ngram) text.history.push_back((int32_t)id);
        } else if (o.continues) {
            text.empty = true;
            text.history.clear();
        }
        return (int32_t)id;
    }

    void penalize(const std::vector<int32_t>& history) {
        const int64_t said = std::min<int64_t>(d.options.repetition_window, (int64_t)history.size());
        std::vector<int32_t> ids(history.end() - said, history.end());
        std::sort(ids.begin(), ids.end());
        ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
        for (const int32_t id : ids) {
            if (scores[id] > 0) scores[id] /= d.options.repetition_penalty;
            else scores[id] *= d.options.repetition_penalty;
        }
    }

    void ban_repeats(const std::vector<int32_t>& history) {
        const int64_t n = d.options.no_repeat_ngram, length = (int64_t)history.size();
        const std::vector<double> original = scores;
        for (int64_t at = n - 1; at < length; ++at)  // history[at] would complete a run that is there
            if (std::equal(history.begin() + at - (n - 1), history.begin() + at, history.end() - (n - 1))) scores[history[at]] = -HUGE_VAL;
        if (std::all_of(scores.begin(), scores.end(), [](double v) { return v == -HUGE_VAL; })) scores = original;
    }

    void keep_above(double least) {
        for (double& v : scores)
            if (v < least) v = -HUGE_VAL;
    }

    void keep_top_k(int64_t k) {
        kept.assign(scores.begin(), scores.begin() + d.model.vocabulary);
        std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.end(), std::greater<double>());
        keep_above(kept[k - 1]);
    }

    void keep_top_p(double p) {
        const int64_t n = d.model.vocabulary;
        const double whole = exponentiate();
        // What is so improbable that all that is no more probable does not hold 1 - p together is behind the nucleus.
        const double least = (1 - p) * whole / (double)n * (1 - 1e-9);
        order.clear();
        for (int64_t i = 0; i < n; ++i)
            if (shares[i] >= least && shares[i] > 0) order.emplace_back(-shares[i], (int32_t)i);
        std::sort(order.begin(), order.end());  // equals by their ids
        // Rounded as PyTorch rounds: among equals the sum may meet p to the last bit.
        double held = 0;
        kept.assign(scores.size(), -HUGE_VAL);
        for (const auto& [negative, id] : order) {
            const double share = -negative / whole;
            held += share;
            if (held - share >= p && id != order[0].second) break;
            kept[id] = scores[id];
        }
        scores.swap(kept);
    }
};

void walk(Decoder& decoder, const Task& task, int64_t thread) { Walker(decoder, task, thread).run(); }

const DecoderKernels decoder_kernels = {walk};

}  // namespace
