// Vectors as wide as the instruction set's registers, in the compilers' own vector types, and the functions of a gate on them.
// Included once by each instruction set's file, which sets CHARRNN_BYTES (and CHARRNN_AVX512, CHARRNN_BF16) first.

namespace {

template <class Real> struct Simd;
template <> struct Simd<float> {
    typedef float V __attribute__((vector_size(CHARRNN_BYTES)));
    typedef uint32_t U __attribute__((vector_size(CHARRNN_BYTES)));
    typedef uint16_t Half __attribute__((vector_size(CHARRNN_BYTES / 2)));
};
template <> struct Simd<double> {
    typedef double V __attribute__((vector_size(CHARRNN_BYTES)));
};
template <class Real> using Vec = typename Simd<Real>::V;
template <class Real> constexpr int lanes = CHARRNN_BYTES / sizeof(Real);

using F = Vec<float>;
using U = Simd<float>::U;
using Half = Simd<float>::Half;
using D = Vec<double>;

// Loads and stores of one vector, or of its first n lanes; bfloat16 in memory is float in a register.

template <class To, class From> inline To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

inline F load(const float* p) {
    F v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
inline D load(const double* p) {
    D v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
inline F load(const uint16_t* p) {
    Half v;
    __builtin_memcpy(&v, p, sizeof v);
    return bits<F>(__builtin_convertvector(v, U) << 16);
}
inline void store(float* p, F v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(double* p, D v) { __builtin_memcpy(p, &v, sizeof v); }
inline Half rounded(F v) {
#ifdef CHARRNN_BF16
    return bits<Half>(_mm512_cvtneps_pbh((__m512)v));
#else
    const U u = bits<U>(v);
    const U nearest = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;                          // ties to even
    return __builtin_convertvector((v == v) ? nearest : (u >> 16) | 0x40u, Half);  // a NaN stays one
#endif
}
inline void store(uint16_t* p, F v) {
    const Half half = rounded(v);
    __builtin_memcpy(p, &half, sizeof half);
}

// Two rows of a matrix as products read them: bfloat16 number by number, first row, second row; other types have the first alone.
inline F join(Half first, Half second) { return bits<F>(__builtin_convertvector(first, U) | (__builtin_convertvector(second, U) << 16)); }
inline F join(const uint16_t* first, const uint16_t* second) {
    Half a, b;
    __builtin_memcpy(&a, first, sizeof a);
    __builtin_memcpy(&b, second, sizeof b);
    return join(a, b);
}
inline F join(const float* row, const float*) { return load(row); }
inline D join(const double* row, const double*) { return load(row); }
inline void store_pair(uint16_t* p, F first, F second) {
    const F both = join(rounded(first), rounded(second));
    __builtin_memcpy(p, &both, sizeof both);
}
inline void store_pair(float* p, F row, F) { store(p, row); }
inline void store_pair(double* p, D row, D) { store(p, row); }
template <class V> inline void store_bits(void* p, V v) { __builtin_memcpy(p, &v, sizeof v); }

// A square of as many rows as a vector has lanes, turned.
template <class V, int n> inline void transpose(V (&rows)[n]) {
    for (int i = 0; i < n; ++i)
        for (int j = i + 1; j < n; ++j) {
            const auto other = rows[i][j];
            rows[i][j] = rows[j][i];
            rows[j][i] = other;
        }
}
#ifdef CHARRNN_AVX512
inline void transpose(F (&rows)[16]) {  // by pairs, then fours, then the quarters of the vectors
    __m512 twos[16], fours[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        twos[i] = _mm512_unpacklo_ps((__m512)rows[i], (__m512)rows[i + 1]);
        twos[i + 1] = _mm512_unpackhi_ps((__m512)rows[i], (__m512)rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const __m512d one = (__m512d)twos[i + j], other = (__m512d)twos[i + 2 + j];
            fours[i + 2 * j] = (__m512)_mm512_unpacklo_pd(one, other);
            fours[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd(one, other);
        }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512 even = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0x88), odd = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0xdd);
        const __m512 even_below = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0x88);
        const __m512 odd_below = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0xdd);
        rows[j] = (F)_mm512_shuffle_f32x4(even, even_below, 0x88);
        rows[4 + j] = (F)_mm512_shuffle_f32x4(odd, odd_below, 0x88);
        rows[8 + j] = (F)_mm512_shuffle_f32x4(even, even_below, 0xdd);
        rows[12 + j] = (F)_mm512_shuffle_f32x4(odd, odd_below, 0xdd);
    }
}
#endif

template <bool full, class Real, class Elem> inline Vec<Real> load(const Elem* p, int n) {
    if constexpr (full) return load(p);
    Elem some[lanes<Real>] = {};
    __builtin_memcpy(some, p, n * sizeof(Elem));
    return load(some);
}
template <bool full, class Elem, class V> inline void store(Elem* p, V v, int n) {
    if constexpr (full) {
        store(p, v);
    } else {
        Elem some[CHARRNN_BYTES / sizeof(v[0])];
        store(some, v);
        __builtin_memcpy(p, some, n * sizeof(Elem));
    }
}

// σ and tanh of floats. Both come from e = 2^(-k x) = 2^floor · 2^fraction, the latter a polynomial of degree 6 with value 1 at 0, fitted
// for the smallest relative error (2e-9). tanh(0) is 0. Absolute errors of both stay below 2e-7. Beside bfloat16 products, whose rounding
// is 2e-3, a degree of 4 (3e-6) and a reciprocal that is not refined (6e-5) do.

template <bool coarse> inline F exp2_bounded(F y) {  // NaN stays NaN
#ifdef CHARRNN_AVX512
    const __m512 bounded = _mm512_min_ps(_mm512_set1_ps(126.0f), (__m512)y);  // the second where one is NaN
    const F r = (F)_mm512_reduce_ps(bounded, 1);                               // minus floor, which scalef will take
    const F p = coarse ? 1.0f + r * (0.693044845f + r * (0.241280205f + r * (0.0522424742f + r * 0.0134266843f)))
                       : 1.0f + r * (0.69314706f + r * (0.24022931f + r * (0.055485282f + r * (0.0096754516f + r * (0.0012467847f + r * 0.00021612915f)))));
    return (F)_mm512_scalef_ps((__m512)p, bounded);
#else
    y = y > 126.0f ? F{} + 126.0f : y;
    y = y < -126.0f ? F{} - 126.0f : y;
    const F t = y + 12582912.0f;  // 1.5 · 2^23: the integer is now in the last bits
    const F r = y - (t - 12582912.0f);
    const F p = 1.0f + r * (0.69314718f + r * (0.24022648f + r * (0.055503323f + r * (0.0096184369f + r * (0.0013398874f + r * 0.00015353362f)))));
    return bits<F>(bits<U>(p) + (bits<U>(t) << 23));
#endif
}

template <bool coarse> inline F reciprocal(F v) {
#ifdef CHARRNN_AVX512
    const F guess = (F)_mm512_rcp14_ps((__m512)v);
    return coarse ? guess : guess * (2.0f - v * guess);
#else
    return 1.0f / v;
#endif
}

template <class Elem> constexpr bool coarse = sizeof(Elem) == 2;
template <class Elem> inline F sigmoid(F x) { return reciprocal<coarse<Elem>>(1.0f + exp2_bounded<coarse<Elem>>(x * -1.44269504f)); }
template <class Elem> inline F tanh_of(F x) {
    const F e = exp2_bounded<coarse<Elem>>(x * -2.88539008f);
    return (1.0f - e) * reciprocal<coarse<Elem>>(1.0f + e);
}

template <class Elem> inline D sigmoid(D x) {
    for (int i = 0; i < lanes<double>; ++i) x[i] = 1.0 / (1.0 + exp(-x[i]));
    return x;
}
template <class Elem> inline D tanh_of(D x) {
    for (int i = 0; i < lanes<double>; ++i) x[i] = tanh(x[i]);
    return x;
}

}  // namespace
