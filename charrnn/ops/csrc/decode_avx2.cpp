// The writing model's steps for x86 processors with avx2,fma.
#include <algorithm>
#include <cmath>
#include <functional>
#include <thread>
#include <utility>

#include "decoder.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define CHARRNN_BYTES 32
#define CHARRNN_AVX2

namespace charrnn {
#include "vectors.h"
#include "decode.h"
const DecoderKernels avx2_decoder = decoder_kernels;
}  // namespace charrnn

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
