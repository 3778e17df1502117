// Kernels for x86 processors with avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,amx-tile,amx-bf16.
#include <math.h>

#include "native.h"
#include "step_calls.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2,amx-tile,amx-bf16")
#endif

#define CHARRNN_BYTES 64
#define CHARRNN_TILES 1
#define CHARRNN_AVX512
#define CHARRNN_BF16
#define CHARRNN_AMX

namespace charrnn {
#include "vectors.h"
#include "products.h"
#include "recurrence.h"
#include "step.h"
#include "head.h"
const Kernels amx_kernels = kernels;
const StepKernels amx_step = {softmax<float>, softmax<uint16_t>, squares, adam, head_kernels};
}  // namespace charrnn

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
