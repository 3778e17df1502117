// The recurrent product: a few rows of states times the recurrent matrix, which lies packed in panels of as many columns as fit in
// the accumulators. A panel is (K / pair, vectors, lanes, pair) elements: what one pass over K reads, in the order in which it does.

namespace {

template <class Elem> struct State { using Real = Elem; };
template <> struct State<uint16_t> { using Real = float; };

template <class Elem> constexpr int pair = sizeof(Elem) == 2 ? 2 : 1;  // bfloat16 products take two rows of a matrix at once

#ifdef CHARRNN_AMX
template <class Elem> constexpr int unit_of_k = sizeof(Elem) == 2 ? 32 : 1;  // a tile is 64 bytes wide
#else
template <class Elem> constexpr int unit_of_k = pair<Elem>;
#endif

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows of accumulators that fit in the registers beside a row of the panel and a broadcast state.
constexpr int tile_rows(int vectors) { return CHARRNN_BYTES == 64 ? (vectors == 4 ? 6 : 8) : CHARRNN_BYTES == 32 ? 3 : 2; }

inline F multiply_add(float a, F b, F sum) { return sum + a * b; }
inline D multiply_add(double a, D b, D sum) { return sum + a * b; }

// C (rows, vectors · lanes) = A (rows, K) · panel, for one tile of rows.
template <int vectors, int rows, class Elem>
__attribute__((noinline)) void tile(const Elem* a, int64_t a_stride, const Elem* panel, int64_t k_size, typename State<Elem>::Real* c) {
    using Real = typename State<Elem>::Real;
    constexpr int width = lanes<Real>;
    Vec<Real> sum[rows][vectors];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[i][v] = Vec<Real>{};
    for (int64_t k = 0; k < k_size; k += pair<Elem>, panel += vectors * width * pair<Elem>) {
        if constexpr (pair<Elem> == 1) {
            Vec<Real> b[vectors];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) b[v] = load(panel + v * width);
#pragma GCC unroll 8
            for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) sum[i][v] = multiply_add(a[i * a_stride + k], b[v], sum[i][v]);
        } else {
#ifdef CHARRNN_BF16
            __m512bh b[vectors];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) b[v] = bits<__m512bh>(_mm512_loadu_si512(panel + v * width * 2));
#pragma GCC unroll 8
            for (int i = 0; i < rows; ++i) {
                int32_t two;
                __builtin_memcpy(&two, a + i * a_stride + k, 4);
                const __m512bh both = bits<__m512bh>(_mm512_set1_epi32(two));
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) sum[i][v] = (F)_mm512_dpbf16_ps((__m512)sum[i][v], both, b[v]);
            }
#else
            F first[vectors], second[vectors];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                U both;
                __builtin_memcpy(&both, panel + v * width * 2, sizeof both);
                first[v] = bits<F>(both << 16);
                second[v] = bits<F>(both & 0xffff0000u);
            }
#pragma GCC unroll 8
            for (int i = 0; i < rows; ++i) {
                const float x = bits<float>((uint32_t)a[i * a_stride + k] << 16), y = bits<float>((uint32_t)a[i * a_stride + k + 1] << 16);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) sum[i][v] = multiply_add(y, second[v], multiply_add(x, first[v], sum[i][v]));
            }
#endif
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) store(c + (i * vectors + v) * width, sum[i][v]);
}

template <int vectors, int rows, class Elem>
inline void tile_of(int wanted, const Elem* a, int64_t a_stride, const Elem* panel, int64_t k_size, typename State<Elem>::Real* c) {
    if (wanted == rows) return tile<vectors, rows>(a, a_stride, panel, k_size, c);
    if constexpr (rows > 1) tile_of<vectors, rows - 1>(wanted, a, a_stride, panel, k_size, c);
}

// How an item's rows are cut: `rows` at a time go through a product and what follows it.
struct Cut {
    int tile;  // rows of a tile; for AMX all tiles of an item have as many
    int rows;  // rows of a block, whole tiles
};

template <class Elem> Cut cut(int64_t count, int vectors) {
    const int most = sizeof(Elem) == 2 && CHARRNN_TILES ? 16 : tile_rows(vectors);
    const int64_t tiles = (count + most - 1) / most;
    const int tile = (int)((count + tiles - 1) / tiles);
    const int together = sizeof(Elem) == 2 && CHARRNN_TILES ? 2 : 32 / most;
    return {tile, tile * (int)(tiles < together ? tiles : together)};
}

#ifdef CHARRNN_AMX
// Tiles 0 to 3 accumulate, 4 and 5 hold rows of states, 6 and 7 pieces of the panel.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

inline void configure(int rows) {
    TileConfig config;
    for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = (uint8_t)(i < 6 ? rows : 16);
    __asm__ volatile("" ::"r"(&config) : "memory");  // the intrinsics do not tell the compiler what memory they read
    _tile_loadconfig(&config);
}

template <int vectors>
__attribute__((noinline)) void product_amx(const uint16_t* a, int64_t a_stride, int tile, int tiles, const uint16_t* panel, int64_t k_size, float* c) {
    const int64_t a_bytes = 2 * a_stride, b_bytes = vectors * 64, c_bytes = vectors * 64;
    const int64_t step = 16 * vectors * 32;  // elements of the panel that 32 of K take
    const uint16_t* a_second = a + tile * a_stride;
    float* c_second = c + tile * vectors * 16;
    constexpr int pairs = vectors / 2;
    __asm__ volatile("" ::: "memory");  // what is read below has been written
    if constexpr (vectors == 3 || vectors == 4) {
        if (tiles == 1) {  // all of C at once
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            if constexpr (vectors == 4) _tile_zero(3);
            for (int64_t k = 0; k < k_size; k += 32, panel += step) {
                _tile_loadd(4, a + k, a_bytes);
                _tile_loadd(6, panel, b_bytes);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, panel + 32, b_bytes);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(6, panel + 64, b_bytes);
                _tile_dpbf16ps(2, 4, 6);
                if constexpr (vectors == 4) {
                    _tile_loadd(7, panel + 96, b_bytes);
                    _tile_dpbf16ps(3, 4, 7);
                }
            }
            _tile_stored(0, c, c_bytes);
            _tile_stored(1, c + 16, c_bytes);
            _tile_stored(2, c + 32, c_bytes);
            if constexpr (vectors == 4) _tile_stored(3, c + 48, c_bytes);
            return;
        }
    }
    for (int v = 0; v < pairs; ++v) {
        const uint16_t* b = panel + v * 64;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < k_size; k += 32, b += step) {
            _tile_loadd(4, a + k, a_bytes);
            _tile_loadd(6, b, b_bytes);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b + 32, b_bytes);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a_second + k, a_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c + v * 32, c_bytes);
        _tile_stored(1, c + v * 32 + 16, c_bytes);
        _tile_stored(2, c_second + v * 32, c_bytes);
        _tile_stored(3, c_second + v * 32 + 16, c_bytes);
    }
    if (vectors % 2 == 1) {
        const uint16_t* b = panel + (vectors - 1) * 32;
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t k = 0; k < k_size; k += 32, b += step) {
            _tile_loadd(4, a + k, a_bytes);
            _tile_loadd(6, b, b_bytes);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, a_second + k, a_bytes);
            _tile_dpbf16ps(1, 5, 6);
        }
        _tile_stored(0, c + (vectors - 1) * 16, c_bytes);
        _tile_stored(1, c_second + (vectors - 1) * 16, c_bytes);
    }
}

// Half of the panel, which stays in the first-level cache, for all rows, then the other half.
__attribute__((noinline)) void add_product_amx(const uint16_t* a, int64_t a_stride, const Cut& how, int64_t rows, const uint16_t* panel,
                                                      int64_t k_size, float* c, bool fresh) {
    constexpr int64_t bytes = 256, step = 16 * 4 * 32;
    const int64_t a_bytes = 2 * a_stride;
    __asm__ volatile("" ::: "memory");
    for (int v = 0; v < 2; ++v)
        for (int64_t row = 0; row < rows; row += how.rows) {
            const uint16_t *first = a + row * a_stride, *second = first + how.tile * a_stride, *b = panel + v * 64;
            float *to = c + row * 64 + v * 32, *to_second = to + how.tile * 64;
            if (fresh) {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            } else {
                _tile_loadd(0, to, bytes);
                _tile_loadd(1, to + 16, bytes);
                _tile_loadd(2, to_second, bytes);
                _tile_loadd(3, to_second + 16, bytes);
            }
            const float* later = to + how.rows * 64;  // the sums of the next rows: they come from far away
            for (int64_t k = 0; k < k_size; k += 32, b += step) {
                for (int i = 0; i < 2 && !fresh && later < to + 2 * how.rows * 64; ++i, later += 64) {
                    __builtin_prefetch(later);
                    __builtin_prefetch(later + 16);
                }
                _tile_loadd(4, first + k, a_bytes);
                _tile_loadd(6, b, bytes);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, b + 32, bytes);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, second + k, a_bytes);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, to, bytes);
            _tile_stored(1, to + 16, bytes);
            _tile_stored(2, to_second, bytes);
            _tile_stored(3, to_second + 16, bytes);
        }
    __asm__ volatile("" ::: "memory");
}
#endif

template <class Elem> inline void begin(const Cut& how) {
#ifdef CHARRNN_AMX
    if constexpr (sizeof(Elem) == 2) configure(how.tile);
#endif
    (void)how;
}
template <class Elem> inline void end() {
#ifdef CHARRNN_AMX
    if constexpr (sizeof(Elem) == 2) _tile_release();
#endif
}

// C (rows, vectors · lanes) = A (rows, K) · panel. A has whole tiles of rows: what is beyond `rows` is read and means nothing.
template <int vectors, class Elem>
inline void product(const Cut& how, const Elem* a, int64_t a_stride, int rows, const Elem* panel, int64_t k_size,
                    typename State<Elem>::Real* c) {
    using Real = typename State<Elem>::Real;
#ifdef CHARRNN_AMX
    if constexpr (sizeof(Elem) == 2)
        return product_amx<vectors>(a, a_stride, how.tile, rows > how.tile ? 2 : 1, panel, k_size, c);
#endif
    for (int i = 0; i < rows; i += how.tile) {
        const int some = rows - i < how.tile ? rows - i : how.tile;
        tile_of<vectors, tile_rows(vectors)>(some, a + i * a_stride, a_stride, panel, k_size, c + i * vectors * lanes<Real>);
    }
}

// C (rows, 4 · lanes) += A (rows, K) · panel, for as many rows as there are; `fresh`: C is still to begin. C has whole blocks of rows.
template <class Elem>
void add_product(const Cut& how, const Elem* a, int64_t a_stride, int64_t rows, const Elem* panel, int64_t k_size,
                 typename State<Elem>::Real* c, bool fresh, typename State<Elem>::Real* products) {
    using Real = typename State<Elem>::Real;
    constexpr int width = lanes<Real>, vectors = 4;
#ifdef CHARRNN_AMX
    if constexpr (sizeof(Elem) == 2) {
        (void)products;
        return add_product_amx(a, a_stride, how, rows, panel, k_size, c, fresh);
    }
#endif
    for (int64_t row = 0; row < rows; row += how.rows) {
        const int these = (int)(rows - row < how.rows ? rows - row : how.rows);
        product<vectors>(how, a + row * a_stride, a_stride, these, panel, k_size, products);
        Real* to = c + row * vectors * width;
        for (int i = 0; i < these * vectors; ++i)
            store(to + i * width, fresh ? load(products + i * width) : load(to + i * width) + load(products + i * width));
    }
}

}  // namespace
