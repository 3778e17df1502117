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
inline void store(uint16_t* p, F v) {
#ifdef CHARRNN_BF16
    const auto half = _mm512_cvtneps_pbh((__m512)v);
#else
    const U u = bits<U>(v);
    const U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;                         // to nearest, ties to even
    const Half half = __builtin_convertvector((v == v) ? rounded : (u >> 16) | 0x40u, Half);  // a NaN stays one
#endif
    __builtin_memcpy(p, &half, sizeof half);
}

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
// for the smallest relative error (2e-9). tanh(0) is 0. Absolute errors of both stay below 2e-7.

inline F exp2_bounded(F y) {  // NaN stays NaN
#ifdef CHARRNN_AVX512
    const __m512 bounded = _mm512_min_ps(_mm512_set1_ps(126.0f), (__m512)y);  // the second where one is NaN
    const F r = (F)_mm512_reduce_ps(bounded, 1);                               // minus floor, which scalef will take
    const F p = 1.0f + r * (0.69314706f + r * (0.24022931f + r * (0.055485282f + r * (0.0096754516f + r * (0.0012467847f + r * 0.00021612915f)))));
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

inline F reciprocal(F v) {
#ifdef CHARRNN_AVX512
    const F guess = (F)_mm512_rcp14_ps((__m512)v);
    return guess * (2.0f - v * guess);
#else
    return 1.0f / v;
#endif
}

inline F sigmoid(F x) { return reciprocal(1.0f + exp2_bounded(x * -1.44269504f)); }
inline F tanh_of(F x) {
    const F e = exp2_bounded(x * -2.88539008f);
    return (1.0f - e) * reciprocal(1.0f + e);
}

inline D sigmoid(D x) {
    for (int i = 0; i < lanes<double>; ++i) x[i] = 1.0 / (1.0 + exp(-x[i]));
    return x;
}
inline D tanh_of(D x) {
    for (int i = 0; i < lanes<double>; ++i) x[i] = tanh(x[i]);
    return x;
}

}  // namespace
