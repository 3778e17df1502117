// What Python hands over for the passes of a training step, and what each instruction set offers for them. Mirrored field by field in
// charrnn/ops/step.py. Plain C types only, as in native.h.
#pragma once

#include "native.h"

namespace charrnn {

// Cross-entropy of rows of logits, and their gradient in their place.
struct Softmax {
    int64_t precision, rows, classes, stride, ignored, gradient, threads, instructions;
    double smoothing;        // the share of a target that goes to all classes alike
    void* logits;            // (rows, classes), float or bfloat16, a row every `stride` numbers; overwritten where a gradient is asked for, or where they are float
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

// A linear head with its cross-entropy and gradients, products in bfloat16.
struct Head {
    int64_t rows, features, classes, chunk, ignored, threads, instructions;  // features a multiple of 32, and chunk, which is rows at a time
    double smoothing;
    const float* x;          // (rows, features)
    const float* weight;     // (classes, features)
    const float* bias;       // (classes), or null
    const int64_t* targets;  // (rows)
    float* d_x;              // as x, rows rounded up to a multiple of 32; null, as the next two, where nobody asks
    float* d_weight;         // as weight, classes rounded up likewise
    float* d_bias;           // (classes), added to
    double nats, others;     // as of a Softmax
    int64_t correct, count;
};

// Of a chunk. All in bfloat16.
struct HeadMemory {
    int64_t first, count, rows, classes;  // its rows, and as many in whole blocks; classes in whole blocks
    uint16_t* by_class;                   // the weight as the logits read it
    uint16_t* by_feature;                 // the weight as the rows' gradients read it
    uint16_t* x;
    uint16_t* x_pairs;
    uint16_t* logits;  // and then their gradients
};

struct HeadKernels {
    void (*pack)(const Head&, const HeadMemory&, int64_t panel);
    void (*rows)(const Head&, const HeadMemory&, int64_t block);
    void (*logits)(const Head&, const HeadMemory&, int64_t panel, int64_t first, int64_t last);
    void (*d_x)(const Head&, const HeadMemory&, int64_t first, int64_t last);
    void (*d_weight)(const Head&, const HeadMemory&, int64_t panel, int64_t first, int64_t last, uint16_t* scratch);
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
    HeadKernels head;  // null where the instruction set has none
};

extern const StepKernels plain_step, avx2_step, avx512_step, avx512_bf16_step, amx_step;

}  // namespace charrnn
