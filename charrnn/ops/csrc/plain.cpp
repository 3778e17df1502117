// Kernels for every processor: 128-bit vectors, which SSE2 and NEON have, and which compilers break up elsewhere.
#include <math.h>

#include "native.h"
#include "step_calls.h"

#define CHARRNN_BYTES 16
#define CHARRNN_TILES 0
#define CHARRNN_FP64  // here alone: nobody trains in it, tests do

namespace charrnn {
#include "vectors.h"
#include "products.h"
#include "recurrence.h"
#include "step.h"
#include "head.h"
const Kernels plain_kernels = kernels;
const StepKernels plain_step = {softmax<float>, softmax<uint16_t>, squares, adam, head_kernels};
}  // namespace charrnn
