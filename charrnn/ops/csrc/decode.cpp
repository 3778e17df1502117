// The way in from Python for the model that writes: packing, and calls shared out among threads that live as long as a call.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>

#include "decoder.h"
#include "flushed.h"
#include "processor.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define CHARRNN_EXPORT extern "C" __attribute__((visibility("default")))

namespace charrnn {
namespace {

enum Instructions : int64_t { PLAIN, AVX2, AVX512, VNNI, INSTRUCTIONS };

#if defined(__x86_64__)
const DecoderKernels* const kernels_of[INSTRUCTIONS] = {&plain_decoder, &avx2_decoder, &avx512_decoder, &vnni_decoder};
#else
const DecoderKernels* const kernels_of[1] = {&plain_decoder};
#endif

bool has(int64_t instructions) {
    if (instructions == PLAIN) return true;
#if defined(__x86_64__)
    if (instructions == AVX2) return has_avx2();
    const bool avx512 = has_avx512();
    if (instructions == AVX512) return avx512;
    if (instructions == VNNI) return avx512 && __builtin_cpu_supports("avx512vnni");
#endif
    return false;
}

constexpr size_t HUGE_PAGE = 2 << 20;
constexpr int64_t LARGEST_TABLE = 256 << 20;  // bytes: of a larger one most would never be used, and what is used is far apart
constexpr int64_t FEW_IDS = 256;              // a head of so few stays float where the rest is int8: it is small, and logits feel it most

// Memory that is 0, in pages as large as there are: a step reads all weights, which lie on thousands of small ones.
class Memory {
  public:
    explicit Memory(Decoder& decoder) : d_(decoder) {}

    template <class T> T* take(int64_t count) {
        const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (bytes > left_) {
            left_ = (std::max(bytes, HUGE_PAGE) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
            at_ = static_cast<char*>(std::aligned_alloc(HUGE_PAGE, left_));
            if (!at_) throw std::bad_alloc();
            d_.memory.emplace_back(at_, std::free);
#if defined(__linux__)
            madvise(at_, left_, MADV_HUGEPAGE);
#endif
            std::memset(at_, 0, left_);
        }
        T* taken = reinterpret_cast<T*>(at_);
        at_ += bytes, left_ -= bytes;
        return taken;
    }

  private:
    Decoder& d_;
    char* at_ = nullptr;
    size_t left_ = 0;
};

void pack(Memory& memory, Matrix& m, const float* w, bool bytes) {
    const int64_t width = m.width(), size = m.size();
    if (!bytes) {
        float* const numbers = memory.take<float>(size * width);
        for (int64_t b = 0; b < m.blocks; ++b)
            for (int64_t from = 0; from < m.columns; from += LANES)
                for (int64_t p = 0; p < m.panels(b); ++p)
                    for (int64_t lane = 0; lane < LANES; ++lane) {
                        const int64_t row = m.row(b, p, lane), to = std::min(from + LANES, m.columns);
                        if (row >= m.rows) continue;
                        float* out = numbers + m.at(b) * width + (from * m.panels(b) + p) * LANES + lane;
                        for (int64_t k = from; k < to; ++k, out += m.panels(b) * LANES) *out = w[row * m.columns + k];
                    }
        m.numbers = numbers;
        return;
    }
    int8_t* const packed = memory.take<int8_t>(size * width);
    float* const scales = memory.take<float>(size);
    int32_t* const sums = memory.take<int32_t>(size);
    for (int64_t b = 0; b < m.blocks; ++b)
        for (int64_t p = 0; p < m.panels(b); ++p)
            for (int64_t lane = 0; lane < LANES; ++lane) {
                const int64_t row = m.row(b, p, lane), at = m.at(b) + p * LANES + lane;
                if (row >= m.rows) continue;
                float most = 0, fault = 0;
                for (int64_t k = 0; k < m.columns; ++k) {
                    const float v = w[row * m.columns + k];
                    most = std::max(most, std::fabs(v));
                    fault += v * 0.0f;
                }
                scales[at] = most / 127 + fault;  // NaN where a weight is not finite, and so is then the answer
                if (!(most > 0) || !std::isfinite(scales[at])) continue;
                int32_t sum = 0;
                for (int64_t k = 0; k < m.columns; ++k) {
                    const int8_t q = (int8_t)std::lrint(w[row * m.columns + k] * (127 / most));
                    packed[m.at(b) * width + ((k / GROUP * m.panels(b) + p) * LANES + lane) * GROUP + k % GROUP] = q;
                    sum += q;
                }
                sums[at] = sum;
            }
    m.bytes = packed, m.scales = scales, m.byte_sums = sums;
}

Matrix matrix(int64_t rows, int64_t columns, int64_t gates) {
    Matrix m;
    m.rows = rows, m.columns = columns, m.gates = gates;
    m.blocks = gates > 1 ? (rows / gates + LANES - 1) / LANES : (rows + LANES * MOST_PANELS - 1) / (LANES * MOST_PANELS);
    return m;
}

// A vector in the order of a matrix's packed rows, of those that `of` tells; b is added where it is given.
template <class Takes> const float* arranged(Memory& memory, const Matrix& m, const float* a, const float* b, const Takes& takes) {
    float* const to = memory.take<float>(m.size());
    for (int64_t block = 0; block < m.blocks; ++block)
        for (int64_t p = 0; p < m.panels(block); ++p)
            for (int64_t lane = 0; lane < LANES; ++lane) {
                const int64_t row = m.row(block, p, lane);
                if (row < m.rows) to[m.at(block) + p * LANES + lane] = (a ? a[row] : 0) + (b && takes(row) ? b[row] : 0);
            }
    return to;
}

size_t bytes_of(const Matrix& m) { return m.size() * m.width() * (m.numbers ? sizeof(float) : sizeof(int8_t)); }

void build(Decoder& d, const Model& model) {
    d.model = model;
    d.unwritten.assign(model.unwritten, model.unwritten + model.unwritten_count);
    Memory memory(d);
    const int64_t gates = model.cell == LSTM ? 4 : model.cell == GRU ? 3 : 1, hidden = model.hidden;
    d.stride = padded(hidden, LANES);
    const Matrix first = matrix(gates * hidden, model.embedding_size, gates);
    if (model.vocabulary * first.size() * (int64_t)sizeof(float) <= LARGEST_TABLE) {
        d.table = static_cast<float*>(std::aligned_alloc(64, padded(model.vocabulary * first.size() * sizeof(float), 64)));
        if (!d.table) throw std::bad_alloc();
        d.memory.emplace_back(reinterpret_cast<char*>(d.table), std::free);
        d.tabled.assign(model.vocabulary * first.blocks, 0);
    }
    d.layers.resize(model.layers);
    for (int64_t l = 0; l < model.layers; ++l) {
        Layer& layer = d.layers[l];
        const float* const* w = model.weights + 6 * l;
        layer.inputs = l ? hidden : model.embedding_size;
        layer.from_x = matrix(gates * hidden, layer.inputs, gates);
        layer.from_h = matrix(gates * hidden, hidden, gates);
        pack(memory, layer.from_x, w[0], model.quantized && !(l == 0 && d.table));
        pack(memory, layer.from_h, w[1], model.quantized);
        const bool gru = model.cell == GRU;
        layer.bias_x = arranged(memory, layer.from_x, w[2], w[3], [&](int64_t row) { return !gru || row < 2 * hidden; });
        layer.bias_h = arranged(memory, layer.from_h, nullptr, w[3], [&](int64_t row) { return gru && row >= 2 * hidden; });
        for (int i = 0; i < 2; ++i) {
            if (!w[4 + i]) continue;
            float* const copy = memory.take<float>(hidden);
            std::copy(w[4 + i], w[4 + i] + hidden, copy);
            (i ? layer.norm_bias : layer.norm_weight) = copy;
        }
        layer.adds = model.residual && layer.inputs == hidden;
    }
    d.head = matrix(model.vocabulary, hidden, 1);
    pack(memory, d.head, model.head_weight, model.quantized && model.vocabulary > FEW_IDS);
    d.head_bias = arranged(memory, d.head, model.head_bias, nullptr, [](int64_t) { return false; });
    d.weight_bytes = bytes_of(d.head);
    for (const Layer& layer : d.layers) d.weight_bytes += bytes_of(layer.from_h) + (&layer == &d.layers[0] && d.table ? 0 : bytes_of(layer.from_x));
    d.embeds = d.layers[0].adds;
    const int64_t width = padded(model.embedding_size, LANES);
    d.embedding.assign(model.vocabulary * width, 0);
    for (int64_t i = 0; i < model.vocabulary; ++i)
        for (int64_t k = 0; k < model.embedding_size; ++k)
            d.embedding[i * width + k] = model.embedding[i * model.embedding_size + k] * (float)model.read_scale;
}

void make_room(Decoder& d, int64_t rows) {
    d.rows = rows;
    for (Layer& layer : d.layers) {
        for (auto* of : {&layer.h[0], &layer.h[1], &layer.c}) of->resize(rows * d.stride);
        layer.sums.resize(rows * layer.from_h.size());
    }
    d.logits.resize(rows * d.head.size());
    d.ids.resize(rows);
}

void run(Decoder& d, const Task& task) {
    const auto walk = kernels_of[d.model.instructions]->walk;
    // Where layers or the head lie between a matrix's turns nothing of it is left: then products are made while one would wait.
    const size_t cache = cache_bytes() * task.threads;
    d.sweeps = d.weight_bytes > cache && d.layers.size() <= 2 && bytes_of(d.head) < cache / 2;
    for (Progress& one : d.progress) one.phase.store(0);
    d.failed.store(false);
    enum { LATER, NOW, NEVER };
    std::atomic<int> begins{LATER};
    std::vector<std::thread> helpers;
    Task alone = task;
    try {
        for (int64_t i = 1; i < task.threads; ++i)
            helpers.emplace_back([&, i] {
                while (begins.load(std::memory_order_acquire) == LATER) std::this_thread::yield();
                if (begins.load() == NEVER) return;
                const Flushed flushed;
                walk(d, task, i);
            });
        begins.store(NOW, std::memory_order_release);
    } catch (const std::system_error&) {  // no thread to be had: alone, then
        begins.store(NEVER, std::memory_order_release);
        alone.threads = 1;
    }
    {
        const Flushed flushed;
        walk(d, alone, 0);
    }
    for (auto& helper : helpers) helper.join();
    d.parity = (d.parity + task.steps) & 1;
}

constexpr int DONE = 0, NOT_FINITE = 1, NO_MEMORY = 2;

}  // namespace

// Whether this processor runs an instruction set, by its number in engine.py.
CHARRNN_EXPORT int charrnn_decoder_has(int64_t instructions) { return instructions < INSTRUCTIONS && has(instructions); }

// What the caller's idea of a model and of options has to be as large as: sources and library may be of different days.
CHARRNN_EXPORT int64_t charrnn_decoder_bytes() { return sizeof(Model) + sizeof(Options); }

// A decoder, or null where there was no memory. It holds nothing of what it was made of.
CHARRNN_EXPORT Decoder* charrnn_decoder_new(const Model* model) {
    try {
        auto decoder = std::make_unique<Decoder>();
        build(*decoder, *model);
        return decoder.release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

CHARRNN_EXPORT void charrnn_decoder_free(Decoder* decoder) { delete decoder; }

// One row that has read nothing.
CHARRNN_EXPORT int charrnn_decoder_begin(Decoder* d) {
    try {
        make_room(*d, 1);
        for (Layer& layer : d->layers)
            for (auto* of : {&layer.h[0], &layer.h[1], &layer.c}) std::fill(of->begin(), of->end(), 0.0f);
        return DONE;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}

// Has the one row read. log_shares (count, V), or null: then only what comes after the last is asked, if it is wanted.
CHARRNN_EXPORT int charrnn_decoder_read(Decoder* d, const int32_t* ids, int64_t count, int64_t wants_last, int64_t threads, float* log_shares) {
    try {
        Task task;
        task.read = ids, task.steps = count, task.wants_last = wants_last, task.log_shares = log_shares;
        task.threads = std::clamp<int64_t>(threads, 1, LONGEST_WAIT);
        run(*d, task);
        return d->failed ? NOT_FINITE : DONE;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}

// From one row many, each with a generator of its own and the same document so far.
CHARRNN_EXPORT int charrnn_decoder_spread(
    Decoder* d, int64_t rows, const uint64_t* seeds, const Options* options, const int32_t* document, int64_t length) {
    try {
        make_room(*d, rows);
        const auto repeat = [&](std::vector<float>& of, int64_t stride) {
            for (int64_t r = 1; r < rows; ++r) std::copy(of.begin(), of.begin() + stride, of.begin() + r * stride);
        };
        for (Layer& layer : d->layers) {
            for (auto* of : {&layer.h[0], &layer.h[1], &layer.c}) repeat(*of, d->stride);
        }
        repeat(d->logits, d->head.size());
        d->options = *options;
        d->texts.assign(rows, Row{});
        for (int64_t r = 0; r < rows; ++r) {
            d->texts[r].generator.seed((uint32_t)seeds[r]);
            d->texts[r].history.assign(document, document + length);
            d->texts[r].empty = length == 0;
        }
        return DONE;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}

// Has each row write so many ids: written (steps, B). allowed (B, V), of one step, or null.
CHARRNN_EXPORT int charrnn_decoder_write(Decoder* d, int64_t steps, int32_t* written, const uint8_t* allowed, int64_t threads) {
    try {
        Task task;
        task.steps = steps, task.written = written, task.allowed = allowed;
        task.threads = std::clamp<int64_t>(threads, 1, LONGEST_WAIT);
        run(*d, task);
        return d->failed ? NOT_FINITE : DONE;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}

// What torch.Generator on the CPU draws first from a seed, 64 bits at a time.
CHARRNN_EXPORT void charrnn_random(uint64_t seed, int64_t count, uint64_t* drawn) {
    std::mt19937 generator((uint32_t)seed);
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t first = generator();
        drawn[i] = first << 32 | generator();
    }
}

// Σ_t Σ_v p (log p - log q), in nats, of what two decoders told of the same text: each (count, V).
CHARRNN_EXPORT double charrnn_divergence(const float* log_p, const float* log_q, int64_t size) {
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += std::exp((double)log_p[i]) * ((double)log_p[i] - log_q[i]);
    return sum;
}

}  // namespace charrnn
