// The head with its cross-entropy in tiles (AMX): logits, gradients of the rows and of the weight, each a product whose blocks of 32 × 32
// stay in tiles while K passes by. Included once by each instruction set's file, after products.h and step.h; others have no head.
//
// Axes: R rows of a chunk, W features, K classes; both R and K padded to whole blocks with zeros, W whole blocks by itself. A matrix "in
// pairs" is what a tile reads of B: panels of 32 columns, in each of which two rows at a time lie interleaved.

namespace {

#ifdef CHARRNN_AMX

constexpr int BLOCK = 32;
constexpr int64_t CLASSES = 512;  // that a piece of the rows' gradients adds up over: 512 × W of the weight stay in the second-level cache

inline void begin_tiles() { configure(16); }

// Two tiles of rows times a panel, `steps` times 32 of K: 32 × 32 numbers of C. Tiles of A follow each other at `a_step` elements.
inline void block(const uint16_t* a, const uint16_t* a_second, int64_t a_step, int64_t a_bytes, const uint16_t* b, int64_t steps, float* c,
                  int64_t c_stride, bool adds) {
    float* c_second = c + 16 * c_stride;
    const int64_t c_bytes = 4 * c_stride;
    __asm__ volatile("" ::: "memory");  // the intrinsics do not tell the compiler what memory they read
    if (adds) {
        _tile_loadd(0, c, c_bytes);
        _tile_loadd(1, c + 16, c_bytes);
        _tile_loadd(2, c_second, c_bytes);
        _tile_loadd(3, c_second + 16, c_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < steps; ++k, a += a_step, a_second += a_step, b += BLOCK * BLOCK) {
        _tile_loadd(6, b, 128);
        _tile_loadd(4, a, a_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + 32, 128);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a_second, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_bytes);
    _tile_stored(1, c + 16, c_bytes);
    _tile_stored(2, c_second, c_bytes);
    _tile_stored(3, c_second + 16, c_bytes);
    __asm__ volatile("" ::: "memory");
}

inline __m512i rounded(__m512 first, __m512 second) { return bits<__m512i>(_mm512_cvtne2ps_pbh(second, first)); }

// Two rows of 32 floats as 32 pairs.
inline void pairs(const float* first, const float* second, uint16_t* to) {
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i interleave = _mm512_load_si512(order);
    for (int i = 0; i < 2; ++i) {
        const __m512 a = first ? _mm512_loadu_ps(first + 16 * i) : __m512{}, b = second ? _mm512_loadu_ps(second + 16 * i) : __m512{};
        _mm512_storeu_si512(to + 32 * i, _mm512_permutexvar_epi16(interleave, rounded(a, b)));
    }
}

// The weight for both products: Wᵀ in pairs of features, a panel of 32 classes at a time, and itself in pairs of classes.
void head_pack(const Head& call, const HeadMemory& memory, int64_t panel) {
    const int64_t features = call.features, first = panel * BLOCK;
    for (int half = 0; half < 2; ++half)
        for (int64_t f = 0; f < features; f += BLOCK) {
            F rows[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) {
                const int64_t k = first + 16 * half + i;
                const float* row = call.weight + k * features + f;
                rows[i] = k < call.classes ? bits<F>(rounded(_mm512_loadu_ps(row), _mm512_loadu_ps(row + 16))) : F{};
            }
            transpose(rows);
            uint16_t* to = memory.by_class + panel * BLOCK * features + f * BLOCK + 32 * half;
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) store_bits(to + i * 64, rows[i]);
        }
    if (!call.d_x) return;
    for (int64_t k = first; k < first + BLOCK; k += 2)
        for (int64_t f = 0; f < features; f += BLOCK) {
            const float *row = k < call.classes ? call.weight + k * features + f : nullptr;
            const float *next = k + 1 < call.classes ? call.weight + (k + 1) * features + f : nullptr;
            pairs(row, next, memory.by_feature + f * memory.classes + k * BLOCK);
        }
}

// 32 rows of x, rounded, as tiles that follow each other, and in pairs of rows.
void head_rows(const Head& call, const HeadMemory& memory, int64_t block_of_rows) {
    const int64_t features = call.features, first = block_of_rows * BLOCK;
    const auto row_at = [&](int64_t r) { return r < memory.count ? call.x + (memory.first + r) * features : nullptr; };
    for (int64_t r = first; r < first + BLOCK; ++r) {
        const float* row = row_at(r);
        for (int64_t f = 0; f < features; f += BLOCK)
            _mm512_storeu_si512(memory.x + r / 16 * 16 * features + f * 16 + r % 16 * 32,
                                row ? rounded(_mm512_loadu_ps(row + f), _mm512_loadu_ps(row + f + 16)) : __m512i{});
    }
    if (!call.d_weight) return;
    for (int64_t r = first; r < first + BLOCK; r += 2)
        for (int64_t f = 0; f < features; f += BLOCK) {
            const float *row = row_at(r), *next = row_at(r + 1);
            pairs(row ? row + f : nullptr, next ? next + f : nullptr, memory.x_pairs + f * memory.rows + r * BLOCK);
        }
}

// Logits of 32 classes for the rows first to last - 1, whole blocks.
void head_logits(const Head& call, const HeadMemory& memory, int64_t panel, int64_t first, int64_t last) {
    alignas(64) float sums[BLOCK * BLOCK];
    const int64_t features = call.features;
    const uint16_t* weight = memory.by_class + panel * BLOCK * features;
    begin_tiles();
    for (int64_t r = first; r < last; r += BLOCK) {
        const uint16_t* x = memory.x + r * features;
        block(x, x + 16 * features, 16 * BLOCK, 64, weight, features / BLOCK, sums, BLOCK, false);
        for (int i = 0; i < BLOCK; ++i)
            _mm512_storeu_si512(memory.logits + (r + i) * memory.classes + panel * BLOCK,
                                rounded(_mm512_load_ps(sums + i * BLOCK), _mm512_load_ps(sums + i * BLOCK + 16)));
    }
    _tile_release();
}

// Gradients of the rows first to last - 1, whole blocks: those of their logits times the weight.
void head_d_x(const Head& call, const HeadMemory& memory, int64_t first, int64_t last) {
    const int64_t features = call.features, classes = memory.classes;
    begin_tiles();
    for (int64_t k = 0; k < classes; k += CLASSES) {
        const int64_t steps = (classes - k < CLASSES ? classes - k : CLASSES) / BLOCK;
        for (int64_t r = first; r < last; r += BLOCK) {
            const uint16_t* d_logits = memory.logits + r * classes + k;
            for (int64_t f = 0; f < features; f += BLOCK)
                block(d_logits, d_logits + 16 * classes, BLOCK, 2 * classes, memory.by_feature + f * classes + k * BLOCK, steps,
                      call.d_x + (memory.first + r) * features + f, features, k > 0);
        }
    }
    _tile_release();
}

// Gradients of the weight of 32 classes and of the features first to last - 1, with those of the chunks before.
void head_d_weight(const Head& call, const HeadMemory& memory, int64_t panel, int64_t first, int64_t last, uint16_t* turned) {
    const int64_t features = call.features, classes = memory.classes, rows = memory.rows;
    for (int64_t r = 0; r < rows; r += BLOCK) {  // the gradients of their logits, turned, in two tiles for 32 rows
        for (int half = 0; half < BLOCK; half += 16) {
            F rows_of_pairs[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) {
                const uint16_t* row = memory.logits + (r + 2 * i) * classes + panel * BLOCK + half;
                rows_of_pairs[i] = join(row, row + classes);
            }
            transpose(rows_of_pairs);
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) store_bits(turned + (r + half + i) * BLOCK, rows_of_pairs[i]);
        }
    }
    begin_tiles();
    for (int64_t f = first; f < last; f += BLOCK)
        block(turned, turned + 512, BLOCK * BLOCK, 64, memory.x_pairs + f * rows, rows / BLOCK,
              call.d_weight + panel * BLOCK * features + f, features, memory.first > 0);
    _tile_release();
}

constexpr HeadKernels head_kernels = {head_pack, head_rows, head_logits, head_d_x, head_d_weight};

#else

constexpr HeadKernels head_kernels = {};

#endif

}  // namespace
