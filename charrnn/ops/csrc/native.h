// What Python hands over, and what each instruction set offers. Plain C types only: nothing of PyTorch, nothing of Python.
//
// Axes: T steps, B batch, H hidden, G gates of the cell, S blocks kept of a step (4 for lstm and gru, 1 for rnn_*).
#pragma once

#include <cstddef>
#include <cstdint>

namespace charrnn {

enum Cell : int64_t { RNN_TANH, RNN_RELU, LSTM, GRU };
enum Precision : int64_t { FP32, BF16, FP64 };  // of the products; the state is double in FP64 and float otherwise

// One layer in one direction over all time steps. Mirrored field by field in charrnn/ops/native.py, where shapes are checked.
// "state" below is the state's type, "product" the products' (uint16_t holds a bfloat16). Rows beyond a length are written as 0.
struct Call {
    int64_t cell, precision, backward, reverse, steps, batch, hidden, threads, instructions;
    const int64_t* lengths;  // (B) or null
    const void* weight_hh;   // (G·H, H) product
    const void* bias_ih;     // (G·H) state, or null like bias_hh
    const void* bias_hh;     // (G·H) state
    const void* from_x;      // (T, B, G·H) product: x W_ihᵀ, without bias
    const void* h_0;         // (B, H) state
    const void* c_0;         // (B, H) state, lstm
    void* outputs;           // (T, B, H) state
    void* h_n;               // (B, H) state
    void* c_n;               // (B, H) state, lstm
    void* before;            // (T, B, H) product: h before each step; null, like the next two, where nobody will go backward
    void* gates;             // (T, B, S·H) product: i f g o, or r z n and what n reads of h; unused by rnn_*
    void* cells;             // (T, B, H) state: c after each step, lstm
    const void* d_outputs;   // (T, B, H) state
    const void* d_h_n;       // (B, H) state, or null for zeros
    const void* d_c_n;       // (B, H) state, lstm, or null for zeros
    void* d_gates;           // (T, B, S·H) product, in the gates' order; gru: n r z and r·n, so that what goes to x and what goes to h are
                             // the first and the last three
    void* d_h_0;             // (B, H) state
    void* d_c_0;             // (B, H) state, lstm
    void* d_bias;            // (S·H) state: d_gates summed over T and B
};

// Columns of the batch that one thread takes through all steps, the longest first.
struct Item {
    int64_t count;
    const int64_t* columns;
    const int64_t* lengths;  // in the order of `columns`
};

struct Kernels {
    int64_t (*panels)(const Call&);
    size_t (*packed_bytes)(const Call&);
    size_t (*scratch_bytes)(const Call&, int64_t columns);
    void (*pack)(const Call&, void* packed, int64_t panel);                              // one panel of the recurrent matrix
    void (*run)(const Call&, const void* packed, const Item&, void* scratch, void* d_bias);  // d_bias: this item's share
};

extern const Kernels plain_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels, amx_kernels;

}  // namespace charrnn
