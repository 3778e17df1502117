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
    int64_t cell, precision, backward, reverse, steps, batch, inputs, hidden, threads, instructions;
    const int64_t* lengths;  // (B) or null
    const void* weight_ih;   // (G·H, I) state, like all that has no other type
    const void* weight_hh;   // (G·H, H)
    const void* bias_ih;     // (G·H), or null like bias_hh
    const void* bias_hh;     // (G·H)
    const void* x;           // (T, B, I); forward null where it is multiplied beforehand:
    const void* from_x;      // (T, B, G·H) product: x W_ihᵀ, without bias
    const void* h_0;         // (B, H)
    const void* c_0;         // (B, H), lstm
    void* outputs;           // (T, B, H)
    void* h_n;               // (B, H)
    void* c_n;               // (B, H), lstm
    void* gates;             // (T, B, S·H) product: i f g o, or r z n and what n reads of h; null where nobody will go backward, and of rnn_*;
                             // so many numbers, in an order of our own (Kept in recurrence.h)
    void* cells;             // (T, B, H) product: c after each step, lstm
    const void* d_outputs;   // (T, B, H)
    const void* d_h_n;       // (B, H), or null for zeros
    const void* d_c_n;       // (B, H), lstm, or null for zeros
    void* d_gates;           // (T, B, S·H) product, in the gates' order; gru: n r z and r·n, so that what goes to x and what goes to h are
                             // the first and the last three
    void* d_x;               // (T, B, I), or null where it is not made here
    void* d_h_0;             // (B, H)
    void* d_c_0;             // (B, H), lstm
    void* d_bias;            // (S·H): d_gates summed over T and B
    void* d_weight_ih;       // (G·H, I), or null where nobody wants it
    void* d_weight_hh;       // (G·H, H), or null
};

// Columns of the batch that one thread takes through all steps, the longest first.
struct Item {
    int64_t count;
    const int64_t* columns;
    const int64_t* lengths;  // in the order of `columns`
};

// Threads that go through the steps of one item together, each with some of the panels. Nobody begins a step that others have not ended.
struct Team {
    int64_t part = 0, parts = 1;    // which of them this is
    int64_t* arrivals = nullptr;    // of all of them, at all meetings so far
    int64_t meetings = 0;
};
void meet_others(Team&);
inline void meet(Team& team) {
    if (team.parts > 1) meet_others(team);
}

struct Kernels {
    int64_t (*panels)(const Call&);
    size_t (*packed_bytes)(const Call&);
    size_t (*scratch_bytes)(const Call&, int64_t columns, int64_t parts);
    void (*pack)(const Call&, void* packed, int64_t panel);                              // one panel of the recurrent matrix
    void (*run)(const Call&, const void* packed, const Item&, void* scratch, void* d_bias, Team&);  // d_bias: this item's share
    size_t (*weights_scratch_bytes)(const Call&, int64_t rows);
    void (*weights)(const Call&, const int64_t* terms, int64_t count, int64_t first_row, int64_t end_row, void* scratch);
};

extern const Kernels plain_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels, amx_kernels;

}  // namespace charrnn
