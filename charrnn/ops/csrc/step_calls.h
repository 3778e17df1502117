// What Python hands over for the passes of a training step, and what each instruction set offers for them. Mirrored field by field in
// charrnn/ops/step.py. Plain C types only, as in native.h.
#pragma once

#include "native.h"

namespace charrnn {

// Cross-entropy of rows of logits, and their gradient in their place.
struct Softmax {
    int64_t precision, rows, classes, ignored, gradient, threads, instructions;
    double smoothing;        // the share of a target that goes to all classes alike
    void* logits;            // (rows, classes), float or bfloat16; overwritten where a gradient is asked for, or where they are float
    const float* bias;       // (classes), or null
    const int64_t* targets;  // (rows), `ignored` where nothing is asked
    float* d_bias;           // (classes), added to; null where nobody asks
    double nats, others;     // added to: the cross-entropy, summed; what it is of a target spread over all classes, less that
    int64_t correct, count;  // added to: rows whose target is the first most probable class; rows with a target
};

struct SoftmaxSums {
    double nats, others;
    int64_t correct, count;
};

struct AdamTensor {
    float* weights;
    const float* gradients;
    float* means;     // exp_avg
    float* squares;   // exp_avg_sq
    float* averages;  // of the weights, or null
    float* step;      // one number: the steps taken
    int64_t size;
    double weight_decay;
};

struct Adam {
    int64_t count, decoupled, threads, instructions;
    double rate, beta1, beta2, epsilon, max_norm, follow;  // follow: how far the averages move to the weights
    double scale;                                          // of the gradients
    double norm;                                           // written
    const AdamTensor* tensors;
};

struct AdamFactors {
    double rate, root;  // rate / (1 - β1^t), 1 / √(1 - β2^t)
};

struct StepKernels {
    SoftmaxSums (*softmax_fp32)(const Softmax&, int64_t first, int64_t last, float* scratch, float* d_bias);
    SoftmaxSums (*softmax_bf16)(const Softmax&, int64_t first, int64_t last, float* scratch, float* d_bias);
    double (*squares)(const float*, int64_t count);
    void (*adam)(const Adam&, const AdamTensor&, const AdamFactors&, int64_t first, int64_t last);
};

extern const StepKernels plain_step, avx2_step, avx512_step, avx512_bf16_step, amx_step;

}  // namespace charrnn
