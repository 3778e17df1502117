// The writing model's steps for x86 processors with avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2.
#include <algorithm>
#include <cmath>
#include <functional>
#include <thread>
#include <utility>

#include "decoder.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,avx2")
#endif

#define CHARRNN_BYTES 64
#define CHARRNN_AVX512
#define CHARRNN_VNNI

namespace charrnn {
#include "vectors.h"
#include "decode.h"
const DecoderKernels vnni_decoder = decoder_kernels;
}  // namespace charrnn

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
