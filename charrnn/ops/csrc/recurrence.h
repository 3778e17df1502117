// The loop over time, forward and backward, for every cell: the recurrent product of a few units, and what a cell makes of it while
// it is in the first-level cache. The mathematics is that of charrnn/ops/cells.py, which says where it comes from.
//
// A thread takes its columns of the batch ("rows" here: they are rows of a matrix) through all steps by itself, so nobody waits for
// anybody. It keeps their states in memory of its own, ordered by length, longest first: those that run are always the first ones.

namespace {

template <int64_t cell> constexpr int gates_of = cell == LSTM ? 4 : cell == GRU ? 3 : 1;
template <int64_t cell> constexpr int blocks_of = cell == LSTM || cell == GRU ? 4 : 1;
template <int64_t cell> constexpr bool gated = gates_of<cell> > 1;
// Forward a panel holds one vector of units of each gate, or four vectors of units where there is but one; backward always the latter.
template <int64_t cell> constexpr int forward_vectors = gated<cell> ? gates_of<cell> : 4;
constexpr int backward_vectors = 4;

struct Sizes {
    int64_t hidden, padded, panels, k_padded;  // units; as many in whole panels; panels; K in whole units
};

template <int64_t cell, class Elem> Sizes sizes_of(const Call& call) {
    using Real = typename State<Elem>::Real;
    const int units = lanes<Real> * (call.backward || !gated<cell> ? 4 : 1);
    const int64_t panels = (call.hidden + units - 1) / units;
    const int64_t k = call.backward ? gates_of<cell> * call.hidden : call.hidden;
    return {call.hidden, panels * units, panels, round_up(k, unit_of_k<Elem>)};
}

template <int64_t cell> int vectors_of(const Call& call) { return call.backward ? backward_vectors : forward_vectors<cell>; }

// Packed: the panels, then in front of the loop's eyes the biases, per panel as the accumulators lie, and of the GRU what n adds to h's part.

template <int64_t cell, class Elem> size_t panel_elements(const Call& call) {
    return sizes_of<cell, Elem>(call).k_padded * vectors_of<cell>(call) * lanes<typename State<Elem>::Real>;
}

template <int64_t cell, class Elem> size_t packed_bytes(const Call& call) {
    const Sizes size = sizes_of<cell, Elem>(call);
    const size_t biases = size.panels * (vectors_of<cell>(call) + 1) * CHARRNN_BYTES;
    return round_up(size.panels * panel_elements<cell, Elem>(call) * sizeof(Elem), 64) + biases;
}

template <int64_t cell, class Elem> auto biases_of(const Call& call, const void* packed) {
    const size_t bytes = round_up(sizes_of<cell, Elem>(call).panels * panel_elements<cell, Elem>(call) * sizeof(Elem), 64);
    return reinterpret_cast<const typename State<Elem>::Real*>(static_cast<const char*>(packed) + bytes);
}

template <int64_t cell, class Elem> void pack(const Call& call, void* packed, int64_t panel) {
    using Real = typename State<Elem>::Real;
    constexpr int width = lanes<Real>, two = pair<Elem>;
    const Sizes size = sizes_of<cell, Elem>(call);
    const int vectors = vectors_of<cell>(call);
    const int64_t hidden = call.hidden, k_size = call.backward ? gates_of<cell> * hidden : hidden;
    const Elem* weight = static_cast<const Elem*>(call.weight_hh);
    Elem* to = static_cast<Elem*>(packed) + panel * panel_elements<cell, Elem>(call);
    for (int v = 0; v < vectors; ++v) {
        const bool by_gate = gated<cell> && !call.backward;
        const int64_t unit = by_gate ? panel * width : (panel * vectors + v) * width;
        const int64_t units = unit >= hidden ? 0 : hidden - unit < width ? hidden - unit : width;
        if (call.backward) {  // K runs down the rows of the matrix, columns are units
            for (int64_t k = 0; k < size.k_padded; ++k) {
                Elem* out = to + ((k / two * vectors + v) * width) * two + k % two;
                const int64_t some = k < k_size ? units : 0;
                const Elem* row = weight + k * hidden + unit;
                for (int64_t i = 0; i < some; ++i) out[i * two] = row[i];
                for (int64_t i = some; i < width; ++i) out[i * two] = Elem{};
            }
        } else {  // K runs along the rows
            for (int64_t i = 0; i < width; ++i) {
                const Elem* row = weight + ((by_gate ? v * hidden : 0) + unit + i) * hidden;
                const int64_t some = i < units ? k_size : 0;
                Elem* out = to + (v * width + i) * two;
                for (int64_t k = 0; k < size.k_padded; ++k) out[k / two * vectors * width * two + k % two] = k < some ? row[k] : Elem{};
            }
            Real* bias = const_cast<Real*>(biases_of<cell, Elem>(call, packed)) + panel * (vectors + 1) * width;
            const Real* ih = static_cast<const Real*>(call.bias_ih);
            const Real* hh = static_cast<const Real*>(call.bias_hh);
            for (int64_t i = 0; i < width; ++i) {
                const int64_t at = (by_gate ? v * hidden : 0) + unit + i;
                const bool apart = cell == GRU && v == 2;
                const bool there = ih != nullptr && i < units;
                bias[v * width + i] = there ? (apart ? ih[at] : ih[at] + hh[at]) : Real{};
                if (apart) bias[vectors * width + i] = there ? hh[at] : Real{};
            }
        }
    }
}

template <int64_t cell, class Elem> size_t scratch_bytes(const Call& call, int64_t rows) {
    using Real = typename State<Elem>::Real;
    const Sizes size = sizes_of<cell, Elem>(call);
    const size_t states = round_up(2 * rows * size.padded * sizeof(Real), 64);
    const size_t products = round_up(2 * (rows + 32) * size.k_padded * sizeof(Elem), 64);
    const size_t sums = 64 * 4 * CHARRNN_BYTES + blocks_of<cell> * size.padded * sizeof(Real);
    return states + products + sums + 256;
}

inline int64_t running(const Item& item, int64_t t) {  // how many of the rows, which are ordered by length, have a step t
    int64_t low = 0, high = item.count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (item.lengths[middle] > t) low = middle + 1;
        else high = middle;
    }
    return low;
}

template <class T> inline T* take(char*& scratch, int64_t count) {
    T* mine = reinterpret_cast<T*>(scratch);
    scratch += round_up(count * sizeof(T), 64);
    return mine;
}

template <bool value> struct Flag { static constexpr bool is = value; };

template <class Elem, class Real> inline void round_to(Elem* to, const Real* from, int64_t n) {
    constexpr int width = lanes<Real>;
    int64_t i = 0;
    for (; i + width <= n; i += width) store<true>(to + i, load(from + i), width);
    if (i < n) store<false>(to + i, load<false, Real>(from + i, (int)(n - i)), (int)(n - i));
}

template <int64_t cell, class Elem> void forward(const Call& call, const void* packed, const Item& item, char* scratch) {
    using Real = typename State<Elem>::Real;
    using V = Vec<Real>;
    constexpr int width = lanes<Real>, vectors = forward_vectors<cell>, gates = gates_of<cell>, blocks = blocks_of<cell>;
    const Sizes size = sizes_of<cell, Elem>(call);
    const int64_t hidden = call.hidden, batch = call.batch, count = item.count, k_size = size.k_padded;
    const Cut how = cut<Elem>(count, vectors);

    const Elem* panels = static_cast<const Elem*>(packed);
    const Real* biases = biases_of<cell, Elem>(call, packed);
    const int64_t panel_size = panel_elements<cell, Elem>(call);
    const Elem* from_x = static_cast<const Elem*>(call.from_x);
    Real* outputs = static_cast<Real*>(call.outputs);
    Elem* before = static_cast<Elem*>(call.before);
    Elem* kept = static_cast<Elem*>(call.gates);
    Real* cells = static_cast<Real*>(call.cells);
    const bool keeps = before != nullptr;

    // The states of the rows, and h once more as the product reads it, twice: all units of a step read the h before it.
    const int64_t product_rows = round_up(count, how.tile);
    Real* h = take<Real>(scratch, count * size.padded);
    Real* c = take<Real>(scratch, count * size.padded);
    Elem* reads = take<Elem>(scratch, product_rows * k_size);
    Elem* writes = take<Elem>(scratch, product_rows * k_size);
    Real* sums = take<Real>(scratch, how.rows * vectors * width);
    __builtin_memset(reads, 0, product_rows * k_size * sizeof(Elem));
    for (int64_t row = 0; row < count; ++row) {
        const int64_t at = item.columns[row] * hidden;
        __builtin_memcpy(h + row * size.padded, static_cast<const Real*>(call.h_0) + at, hidden * sizeof(Real));
        if (cell == LSTM) __builtin_memcpy(c + row * size.padded, static_cast<const Real*>(call.c_0) + at, hidden * sizeof(Real));
        round_to(reads + row * k_size, h + row * size.padded, hidden);
    }
    __builtin_memcpy(writes, reads, product_rows * k_size * sizeof(Elem));

    begin<Elem>(how);
    for (int64_t step = 0; step < call.steps; ++step) {
        const int64_t t = call.reverse ? call.steps - 1 - step : step, run = running(item, t);
        // A step's numbers lie far apart, and no processor guesses where the next one's will be: they are asked for a step ahead.
        const int64_t ahead = step + 1 == call.steps ? 0 : call.reverse ? -batch : batch;
        for (int64_t row = 0; row < count; ++row) {
            const int64_t at = (t * batch + item.columns[row]) * hidden;
            if (row >= run) __builtin_memset(outputs + at, 0, hidden * sizeof(Real));
            if (keeps && row < run) __builtin_memcpy(before + at, reads + row * k_size, hidden * sizeof(Elem));
            if (keeps && row >= run) {
                __builtin_memset(before + at, 0, hidden * sizeof(Elem));
                if (gated<cell>) __builtin_memset(kept + at * blocks, 0, hidden * blocks * sizeof(Elem));
                if (cell == LSTM) __builtin_memset(cells + at, 0, hidden * sizeof(Real));
            }
        }
        for (int64_t panel = 0; panel < size.panels; ++panel) {
            const Real* bias = biases + panel * (vectors + 1) * width;
            for (int64_t first = 0; first < run; first += how.rows) {
                const int rows = (int)(run - first < how.rows ? run - first : how.rows);
                product<vectors>(how, reads + first * k_size, k_size, rows, panels + panel * panel_size, k_size, sums);

                const auto pointwise = [&](auto full, int64_t unit, int n, int v) {
                    constexpr bool whole = decltype(full)::is;
                    for (int i = 0; i < rows; ++i) {
                        const int64_t row = first + i, at = t * batch + item.columns[row];
                        const Real* sum = sums + (i * vectors + v) * width;
                        const Elem* x = from_x + at * gates * hidden + unit;
                        Real* state = h + row * size.padded + unit;
                        if (ahead && (unit * sizeof(Elem)) % 64 == 0) {
                            for (int g = 0; g < gates; ++g) __builtin_prefetch(x + ahead * gates * hidden + g * hidden, 0, 2);
                            if (keeps && blocks == 4)
                                for (int g = 0; g < 4; ++g) __builtin_prefetch(kept + (at + ahead) * 4 * hidden + unit + g * hidden, 1, 2);
                        }
                        if (ahead) {
                            __builtin_prefetch(outputs + (at + ahead) * hidden + unit, 1, 2);
                            if (keeps && cell == LSTM) __builtin_prefetch(cells + (at + ahead) * hidden + unit, 1, 2);
                        }
                        V next;
                        if constexpr (cell == LSTM) {
                            Elem* keep = kept + at * 4 * hidden + unit;
                            Real* memory = c + row * size.padded + unit;
                            const V i_gate = sigmoid(load<whole, Real>(x, n) + load(sum) + load(bias));
                            const V f_gate = sigmoid(load<whole, Real>(x + hidden, n) + load(sum + width) + load(bias + width));
                            const V g_gate = tanh_of(load<whole, Real>(x + 2 * hidden, n) + load(sum + 2 * width) + load(bias + 2 * width));
                            const V o_gate = sigmoid(load<whole, Real>(x + 3 * hidden, n) + load(sum + 3 * width) + load(bias + 3 * width));
                            const V now = f_gate * load(memory) + i_gate * g_gate;
                            next = o_gate * tanh_of(now);
                            store(memory, now);
                            if (keeps) {
                                store<whole>(keep, i_gate, n);
                                store<whole>(keep + hidden, f_gate, n);
                                store<whole>(keep + 2 * hidden, g_gate, n);
                                store<whole>(keep + 3 * hidden, o_gate, n);
                                store<whole>(cells + at * hidden + unit, now, n);
                            }
                        } else if constexpr (cell == GRU) {
                            Elem* keep = kept + at * 4 * hidden + unit;
                            const V r = sigmoid(load<whole, Real>(x, n) + load(sum) + load(bias));
                            const V z = sigmoid(load<whole, Real>(x + hidden, n) + load(sum + width) + load(bias + width));
                            const V from_h = load(sum + 2 * width) + load(bias + 3 * width);
                            const V fresh = tanh_of(load<whole, Real>(x + 2 * hidden, n) + load(bias + 2 * width) + r * from_h);
                            next = fresh + z * (load(state) - fresh);
                            if (keeps) {
                                store<whole>(keep, r, n);
                                store<whole>(keep + hidden, z, n);
                                store<whole>(keep + 2 * hidden, fresh, n);
                                store<whole>(keep + 3 * hidden, from_h, n);
                            }
                        } else {
                            const V a = load<whole, Real>(x, n) + load(sum) + load(bias + v * width);
                            if constexpr (cell == RNN_TANH) next = tanh_of(a);
                            else next = a < 0 ? V{} : a;  // NaN stays NaN
                        }
                        store(state, next);
                        store<whole>(outputs + at * hidden + unit, next, n);
                        store<whole>(writes + row * k_size + unit, next, n);
                    }
                };
                for (int v = 0; v < (gated<cell> ? 1 : vectors); ++v) {
                    const int64_t unit = (gated<cell> ? panel : panel * vectors + v) * width;
                    if (unit + width <= hidden) pointwise(Flag<true>{}, unit, width, v);
                    else if (unit < hidden) pointwise(Flag<false>{}, unit, (int)(hidden - unit), v);
                }
            }
        }
        Elem* const written = writes;
        writes = reads;
        reads = written;
    }
    end<Elem>();
    for (int64_t row = 0; row < count; ++row) {
        const int64_t at = item.columns[row] * hidden;
        __builtin_memcpy(static_cast<Real*>(call.h_n) + at, h + row * size.padded, hidden * sizeof(Real));
        if (cell == LSTM) __builtin_memcpy(static_cast<Real*>(call.c_n) + at, c + row * size.padded, hidden * sizeof(Real));
    }
}

template <int64_t cell, class Elem>
void backward(const Call& call, const void* packed, const Item& item, char* scratch, typename State<Elem>::Real* d_bias) {
    using Real = typename State<Elem>::Real;
    using V = Vec<Real>;
    constexpr int width = lanes<Real>, vectors = backward_vectors, blocks = blocks_of<cell>;
    const Sizes size = sizes_of<cell, Elem>(call);
    const int64_t hidden = call.hidden, batch = call.batch, count = item.count, k_size = size.k_padded;
    const Cut how = cut<Elem>(count, vectors);

    const Elem* panels = static_cast<const Elem*>(packed);
    const int64_t panel_size = panel_elements<cell, Elem>(call);
    const Real* outputs = static_cast<const Real*>(call.outputs);
    const Elem* kept = static_cast<const Elem*>(call.gates);
    const Real* cells = static_cast<const Real*>(call.cells);
    const Real* h_0 = static_cast<const Real*>(call.h_0);
    const Real* c_0 = static_cast<const Real*>(call.c_0);
    const Real* d_outputs = static_cast<const Real*>(call.d_outputs);
    Elem* d_gates = static_cast<Elem*>(call.d_gates);

    // The gradients of the states of the rows: the final ones until a row runs, then of h only what does not come through the product.
    const int64_t product_rows = round_up(count, how.tile);
    Real* d_h = take<Real>(scratch, count * size.padded);
    Real* d_c = take<Real>(scratch, count * size.padded);
    Elem* reads = take<Elem>(scratch, product_rows * k_size);
    Elem* writes = take<Elem>(scratch, product_rows * k_size);
    Real* sums = take<Real>(scratch, how.rows * vectors * width);
    Real* bias_sums = take<Real>(scratch, blocks * size.padded);
    __builtin_memset(reads, 0, product_rows * k_size * sizeof(Elem));
    __builtin_memset(writes, 0, product_rows * k_size * sizeof(Elem));
    __builtin_memset(bias_sums, 0, blocks * size.padded * sizeof(Real));
    for (int64_t row = 0; row < count; ++row) {
        const int64_t at = item.columns[row] * hidden;
        const auto begin_with = [&](Real* d_state, const void* d_final) {
            if (d_final) __builtin_memcpy(d_state + row * size.padded, static_cast<const Real*>(d_final) + at, hidden * sizeof(Real));
            else __builtin_memset(d_state + row * size.padded, 0, hidden * sizeof(Real));
        };
        begin_with(d_h, call.d_h_n);
        if (cell == LSTM) begin_with(d_c, call.d_c_n);
    }

    begin<Elem>(how);
    int64_t ran = 0;  // rows of the step that was gone through last
    for (int64_t step = 0; step <= call.steps; ++step) {
        const bool last = step == call.steps;  // nothing but the product
        const int64_t t = call.reverse ? step : call.steps - 1 - step, run = last ? 0 : running(item, t);
        const int64_t earlier = call.reverse ? 1 : -1;  // the step before this one in the forward loop
        const int64_t ahead = step + 1 >= call.steps ? 0 : earlier * batch;
        if (!last)
            for (int64_t row = run; row < count; ++row)
                __builtin_memset(d_gates + (t * batch + item.columns[row]) * blocks * hidden, 0, blocks * hidden * sizeof(Elem));
        const int64_t either = run > ran ? run : ran;
        for (int64_t panel = 0; panel < size.panels; ++panel) {
            for (int64_t first = 0; first < either; first += how.rows) {
                const int rows = (int)(either - first < how.rows ? either - first : how.rows);
                if (first < ran) {
                    const int through = (int)(ran - first < rows ? ran - first : rows);
                    product<vectors>(how, reads + first * k_size, k_size, through, panels + panel * panel_size, k_size, sums);
                }

                const auto pointwise = [&](auto full, int64_t unit, int n, int v) {
                    constexpr bool whole = decltype(full)::is;
                    V total[blocks] = {};
                    for (int i = 0; i < rows; ++i) {
                        const int64_t row = first + i;
                        Real* direct = d_h + row * size.padded + unit;
                        V dh = load(direct);
                        if (row < ran) {
                            const V through = load(sums + (i * vectors + v) * width);
                            dh = cell == GRU ? dh + through : through;
                        }
                        if (row >= run) {  // over, or in reverse not begun
                            store(direct, dh);
                            continue;
                        }
                        const int64_t at = t * batch + item.columns[row];
                        if (ahead) {
                            const int64_t next = at + ahead;
                            if ((unit * sizeof(Elem)) % 64 == 0)
                                for (int g = 0; g < blocks; ++g) {
                                    if (blocks == 4) __builtin_prefetch(kept + (next * blocks + g) * hidden + unit, 0, 2);
                                    __builtin_prefetch(d_gates + (next * blocks + g) * hidden + unit, 1, 2);
                                }
                            __builtin_prefetch(d_outputs + next * hidden + unit, 0, 2);
                                if (cell == LSTM) __builtin_prefetch(cells + (next + earlier * batch) * hidden + unit, 0, 2);
                            else __builtin_prefetch(outputs + (next + earlier * batch) * hidden + unit, 0, 2);
                        }
                        // Where the forward loop began, the state before is the initial one.
                        const bool begins = call.reverse ? t + 1 == item.lengths[row] : t == 0;
                        dh += load<whole, Real>(d_outputs + at * hidden + unit, n);
                        V da[blocks], to_h[gates_of<cell>];
                        if constexpr (cell == LSTM) {
                            const Elem* keep = kept + at * 4 * hidden + unit;
                            const V i_gate = load<whole, Real>(keep, n), f_gate = load<whole, Real>(keep + hidden, n);
                            const V g_gate = load<whole, Real>(keep + 2 * hidden, n), o_gate = load<whole, Real>(keep + 3 * hidden, n);
                            const V now = load<whole, Real>(cells + at * hidden + unit, n);
                            const Real* old = begins ? c_0 + item.columns[row] * hidden : cells + (at + earlier * batch) * hidden;
                            const V was = load<whole, Real>(old + unit, n);
                            const V tanh_c = tanh_of(now);
                            Real* memory = d_c + row * size.padded + unit;
                            const V dc = load(memory) + dh * o_gate * (1 - tanh_c * tanh_c);
                            da[0] = dc * g_gate * (i_gate * (1 - i_gate));
                            da[1] = dc * was * (f_gate * (1 - f_gate));
                            da[2] = dc * i_gate * (1 - g_gate * g_gate);
                            da[3] = dh * tanh_c * (o_gate * (1 - o_gate));
                            store(memory, dc * f_gate);
                            for (int g = 0; g < 4; ++g) to_h[g] = da[g];
                        } else if constexpr (cell == GRU) {
                            const Elem* keep = kept + at * 4 * hidden + unit;
                            const V r = load<whole, Real>(keep, n), z = load<whole, Real>(keep + hidden, n);
                            const V fresh = load<whole, Real>(keep + 2 * hidden, n), from_h = load<whole, Real>(keep + 3 * hidden, n);
                            const Real* old = begins ? h_0 + item.columns[row] * hidden : outputs + (at + earlier * batch) * hidden;
                            const V was = load<whole, Real>(old + unit, n);
                            const V d_direct = dh * z;
                            da[0] = (dh - d_direct) * (1 - fresh * fresh);
                            to_h[0] = da[1] = da[0] * from_h * (r * (1 - r));
                            to_h[1] = da[2] = dh * (was - fresh) * (z * (1 - z));
                            to_h[2] = da[3] = da[0] * r;
                            store(direct, d_direct);
                        } else {
                            const V y = load<whole, Real>(outputs + at * hidden + unit, n);
                            if constexpr (cell == RNN_TANH) da[0] = dh * (1 - y * y);
                            else da[0] = y > 0 ? dh : V{};
                            to_h[0] = da[0];
                        }
                        for (int g = 0; g < blocks; ++g) {
                            store<whole>(d_gates + (at * blocks + g) * hidden + unit, da[g], n);
                            total[g] += da[g];
                        }
                        for (int g = 0; g < gates_of<cell>; ++g) store<whole>(writes + row * k_size + g * hidden + unit, to_h[g], n);
                    }
                    for (int g = 0; g < blocks; ++g) {
                        Real* sum = bias_sums + g * size.padded + unit;
                        store(sum, load(sum) + total[g]);
                    }
                };
                for (int v = 0; v < vectors; ++v) {
                    const int64_t unit = (panel * vectors + v) * width;
                    if (unit + width <= hidden) pointwise(Flag<true>{}, unit, width, v);
                    else if (unit < hidden) pointwise(Flag<false>{}, unit, (int)(hidden - unit), v);
                }
            }
        }
        ran = run;
        Elem* const written = writes;
        writes = reads;
        reads = written;
    }
    end<Elem>();
    for (int64_t row = 0; row < count; ++row) {
        const int64_t at = item.columns[row] * hidden;
        __builtin_memcpy(static_cast<Real*>(call.d_h_0) + at, d_h + row * size.padded, hidden * sizeof(Real));
        if (cell == LSTM) __builtin_memcpy(static_cast<Real*>(call.d_c_0) + at, d_c + row * size.padded, hidden * sizeof(Real));
    }
    for (int g = 0; g < blocks; ++g) __builtin_memcpy(d_bias + g * hidden, bias_sums + g * size.padded, hidden * sizeof(Real));
}

template <int64_t cell, class Elem> void run(const Call& call, const void* packed, const Item& item, void* scratch, void* d_bias) {
    if (call.backward) backward<cell, Elem>(call, packed, item, static_cast<char*>(scratch), static_cast<typename State<Elem>::Real*>(d_bias));
    else forward<cell, Elem>(call, packed, item, static_cast<char*>(scratch));
}

// From the call's cell and precision to the instance that was compiled for them.

template <int64_t cell_, class Elem_> struct Instance {
    static constexpr int64_t cell = cell_;
    using Elem = Elem_;
};

template <int64_t cell, class Use> auto with_precision(const Call& call, Use use) {
    if (call.precision == BF16) return use(Instance<cell, uint16_t>{});
#ifdef CHARRNN_FP64
    if (call.precision == FP64) return use(Instance<cell, double>{});
#endif
    return use(Instance<cell, float>{});
}

template <class Use> auto with_instance(const Call& call, Use use) {
    switch (call.cell) {
        case RNN_TANH: return with_precision<RNN_TANH>(call, use);
        case RNN_RELU: return with_precision<RNN_RELU>(call, use);
        case LSTM: return with_precision<LSTM>(call, use);
        default: return with_precision<GRU>(call, use);
    }
}

#define CHARRNN_INSTANCE(which, call) decltype(which)::cell, typename decltype(which)::Elem

int64_t any_panels(const Call& call) {
    return with_instance(call, [&](auto i) { return sizes_of<CHARRNN_INSTANCE(i, call)>(call).panels; });
}
size_t any_packed_bytes(const Call& call) {
    return with_instance(call, [&](auto i) { return packed_bytes<CHARRNN_INSTANCE(i, call)>(call); });
}
size_t any_scratch_bytes(const Call& call, int64_t columns) {
    return with_instance(call, [&](auto i) { return scratch_bytes<CHARRNN_INSTANCE(i, call)>(call, columns); });
}
void any_pack(const Call& call, void* packed, int64_t panel) {
    with_instance(call, [&](auto i) { pack<CHARRNN_INSTANCE(i, call)>(call, packed, panel); });
}
void any_run(const Call& call, const void* packed, const Item& item, void* scratch, void* d_bias) {
    with_instance(call, [&](auto i) { run<CHARRNN_INSTANCE(i, call)>(call, packed, item, scratch, d_bias); });
}

constexpr Kernels kernels = {any_panels, any_packed_bytes, any_scratch_bytes, any_pack, any_run};

}  // namespace
