// Kernels for x86 processors with avx2,fma.
#include <math.h>

#include "native.h"
#include "step_calls.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define CHARRNN_BYTES 32
#define CHARRNN_TILES 0

namespace charrnn {
#include "vectors.h"
#include "products.h"
#include "recurrence.h"
#include "step.h"
#include "head.h"
const Kernels avx2_kernels = kernels;
const StepKernels avx2_step = {softmax<float>, softmax<uint16_t>, squares, adam, head_kernels};
}  // namespace charrnn

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
