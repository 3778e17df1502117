// The writing model's steps for every processor: 128-bit vectors, which SSE2 and NEON have.
#include <algorithm>
#include <cmath>
#include <functional>
#include <thread>
#include <utility>

#include "decoder.h"

#define CHARRNN_BYTES 16

namespace charrnn {
#include "vectors.h"
#include "decode.h"
const DecoderKernels plain_decoder = decoder_kernels;
}  // namespace charrnn
