// Kernels for x86 processors with avx512f,avx512bw,avx512dq,avx512vl,fma,avx2.
#include <math.h>

#include "native.h"
#include "step_calls.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,avx2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,avx2")
#endif

#define CHARRNN_BYTES 64
#define CHARRNN_TILES 0
#define CHARRNN_AVX512

namespace charrnn {
#include "vectors.h"
#include "products.h"
#include "recurrence.h"
#include "step.h"
#include "head.h"
const Kernels avx512_kernels = kernels;
const StepKernels avx512_step = {softmax<float>, softmax<uint16_t>, squares, adam, head_kernels};
}  // namespace charrnn

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
