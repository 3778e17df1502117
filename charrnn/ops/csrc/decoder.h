// A language model that writes, packed for products with a few rows. Plain C types only, as in native.h.
//
// Axes: B rows (one a text), V vocabulary, E embedding, I what a layer reads, H hidden, G gates of the cell.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "native.h"

namespace charrnn {

constexpr int64_t LANES = 16;        // rows of a panel, on every instruction set, so that the layout is one
constexpr int64_t MOST_PANELS = 4;   // of a block
constexpr int64_t GROUP = 4;         // columns of a matrix that one instruction of int8 takes
constexpr int64_t LONGEST_WAIT = 4;  // threads at most

inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// y = W x, its rows in blocks of up to four panels of 16. With gates, a block is the panels of 16 units, one a gate; else it is 64 rows.
struct Matrix {
    int64_t rows = 0, columns = 0, blocks = 0, gates = 1;
    const float* numbers = nullptr;      // (blocks, columns up to 4, panels, 16), or null where they are
    const int8_t* bytes = nullptr;       // (blocks, columns up to 4 / 4, panels, 16, 4),
    const float* scales = nullptr;       // each row's of these: (blocks, panels, 16),
    const int32_t* byte_sums = nullptr;  // and each row's sum

    int64_t panels(int64_t block) const {
        if (gates > 1) return gates;
        const int64_t left = (rows + LANES - 1) / LANES - block * MOST_PANELS;
        return left < MOST_PANELS ? left : MOST_PANELS;
    }
    int64_t most_panels() const { return gates > 1 ? gates : panels(0); }
    int64_t row(int64_t block, int64_t panel, int64_t lane) const {  // in the matrix as PyTorch has it; >= rows where there is none
        if (gates == 1) return (block * MOST_PANELS + panel) * LANES + lane;
        const int64_t unit = block * LANES + lane, units = rows / gates;
        return unit < units ? panel * units + unit : rows;
    }
    int64_t at(int64_t block) const { return block * most_panels() * LANES; }  // where a block begins among all rows as they are packed
    int64_t size() const { return at(blocks - 1) + panels(blocks - 1) * LANES; }
    int64_t width() const { return padded(columns, GROUP); }
};

struct Layer {
    Matrix from_x, from_h;
    const float *bias_x = nullptr, *bias_h = nullptr;  // as the rows are packed; bias_h of a gru's n, which r multiplies
    const float *norm_weight = nullptr, *norm_bias = nullptr;  // (H) or null
    bool adds = false;                                         // what it read to what it hands up
    int64_t inputs = 0;
    std::vector<float> h[2], c, sums;  // (B, stride) before and after a step; (B, stride); (B, size) of what comes from h
};

struct Row {
    std::mt19937 generator;
    std::vector<int32_t> history;  // of its document
    bool empty = true;             // a document without a character has no end
};

struct Options {
    double temperature, top_p, min_p, repetition_penalty;  // top_p 1 and more, min_p 0 and less, and the others' 0 and 1: off
    int64_t top_k, repetition_window, no_repeat_ngram, continues;
};

// Mirrored field by field in engine.py. All weights are float and as PyTorch has them.
struct Model {
    int64_t cell, vocabulary, embedding_size, hidden, layers, residual, quantized, instructions, end, unwritten_count;
    double read_scale;
    const int32_t* unwritten;     // ids that are never drawn; `end` is -1 where there is none
    const float* embedding;       // (V, E)
    const float* head_weight;     // (V, H)
    const float* head_bias;       // (V)
    const float* const* weights;  // of each layer: weight_ih, weight_hh, bias_ih, bias_hh, norm weight, norm bias; any of the last four null
};

struct alignas(64) Progress {
    std::atomic<int64_t> phase{0};
};

// What a call does, step by step.
struct Task {
    const int32_t* read = nullptr;        // (steps), by row 0, or null: what is drawn is read
    int64_t steps = 0;
    bool wants_last = true;               // logits after the last step
    float* log_shares = nullptr;          // (steps, V): of all ids after each step, in read
    int32_t* written = nullptr;           // (steps, B)
    const uint8_t* allowed = nullptr;     // (B, V) or null
    int64_t threads = 1;
};

struct Decoder {
    Model model;
    std::vector<int32_t> unwritten;
    int64_t stride = 0;          // of a row of h and c
    int64_t rows = 1, parity = 0;  // which h is the last
    std::vector<Layer> layers;
    Matrix head;
    const float* head_bias = nullptr;   // as the rows are packed
    std::vector<float> embedding;       // (V, E up to 4), times read_scale
    bool embeds = false;                // whether x itself is wanted, beside what the first layer makes of it
    float* table = nullptr;             // (V, size of the first layer's from_x): what it makes of each id, once that was read; or null
    std::vector<uint8_t> tabled;        // (V, blocks)
    std::vector<float> logits;          // (B, size of the head)
    std::vector<int32_t> ids;           // (B): what is read next
    std::vector<Row> texts;
    Options options{};
    size_t weight_bytes = 0;            // that a step of one row reads
    bool sweeps = false;                // whether a step's weights are read one way and then the other: Walker::downwards
    std::atomic<bool> failed{false};    // logits that are not finite
    Progress progress[LONGEST_WAIT];
    std::vector<std::unique_ptr<char, void (*)(void*)>> memory;
};

struct DecoderKernels {
    void (*walk)(Decoder&, const Task&, int64_t thread);
};

extern const DecoderKernels plain_decoder, avx2_decoder, avx512_decoder, vnni_decoder;

}  // namespace charrnn
