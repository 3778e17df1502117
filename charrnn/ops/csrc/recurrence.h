// The loop over time, forward and backward, for every cell: the recurrent product of a few units, and what a cell makes of it while
// it is in the first-level cache. The mathematics is that of charrnn/ops/cells.py, which says where it comes from.
//
// A thread takes its columns of the batch ("rows" here: they are rows of a matrix) through all steps by itself, so nobody waits for
// anybody. It keeps their states in memory of its own, ordered by length, longest first: those that run are always the first ones.
// Where the recurrent matrix is larger than a core's cache a team of threads shares the columns instead, each with some of the panels,
// and waits for the others after each step.

namespace {

template <int64_t cell> constexpr int gates_of = cell == LSTM ? 4 : cell == GRU ? 3 : 1;
template <int64_t cell> constexpr int blocks_of = cell == LSTM || cell == GRU ? 4 : 1;
template <int64_t cell> constexpr bool gated = gates_of<cell> > 1;
// Forward a panel holds one vector of units of each gate, or four vectors of units where there is but one; backward always the latter. Of
// the GRU's n what x gives and what h gives stay apart: where x is in the product they have a vector each.
template <int64_t cell, bool hoisted> constexpr int forward_vectors = cell == GRU && hoisted ? 3 : 4;
constexpr int backward_vectors = 4;

// Forward a row of the product is x, where it is not multiplied beforehand, and h. Backward it is the gradients of the preactivations; of
// the GRU n r z and r·n, of which the first three lead to x and the last three to h.
struct Sizes {
    int64_t hidden, padded;                // units; as many in whole panels
    int64_t state_panels, input_panels;    // those that lead to units; backward also to x
    int64_t k_input, k_size, stride;       // forward, numbers of x in a row; K of a product; numbers of a row
    int64_t panels() const { return state_panels + input_panels; }
};

template <int64_t cell, class Elem> Sizes sizes_of(const Call& call) {
    using Real = typename State<Elem>::Real;
    constexpr int64_t unit = unit_of_k<Elem>;
    const int units = lanes<Real> * (call.backward || !gated<cell> ? 4 : 1);
    Sizes size{};
    size.hidden = call.hidden;
    size.state_panels = (call.hidden + units - 1) / units;
    size.padded = size.state_panels * units;
    if (call.backward) {
        if (call.d_x) size.input_panels = (call.inputs + units - 1) / units;
        size.k_size = round_up(gates_of<cell> * call.hidden, unit);
        size.stride = size.k_size + (cell == GRU ? call.hidden : 0);
    } else {
        size.k_input = call.x ? round_up(call.inputs, unit) : 0;
        size.k_size = size.stride = size.k_input + round_up(call.hidden, unit);
    }
    return size;
}

template <int64_t cell> int vectors_of(const Call& call) {
    return call.backward ? backward_vectors : call.x ? forward_vectors<cell, false> : forward_vectors<cell, true>;
}

// Packed: the panels, then the biases, four vectors a panel: of the gates, of the GRU the last is what n adds to h's part.

template <int64_t cell, class Elem> size_t panel_elements(const Call& call) {
    return sizes_of<cell, Elem>(call).k_size * vectors_of<cell>(call) * lanes<typename State<Elem>::Real>;
}

template <int64_t cell, class Elem> size_t packed_bytes(const Call& call) {
    const Sizes size = sizes_of<cell, Elem>(call);
    const size_t biases = size.panels() * 4 * CHARRNN_BYTES;
    return round_up(size.panels() * panel_elements<cell, Elem>(call) * sizeof(Elem), 64) + biases;
}

template <int64_t cell, class Elem> auto biases_of(const Call& call, const void* packed) {
    const size_t bytes = round_up(sizes_of<cell, Elem>(call).panels() * panel_elements<cell, Elem>(call) * sizeof(Elem), 64);
    return reinterpret_cast<const typename State<Elem>::Real*>(static_cast<const char*>(packed) + bytes);
}

// One vector's share of a panel whose columns are rows of a matrix (n of them are there), for K of `k_size` of its columns.
template <class Elem, class Real> void pack_along_rows(Elem* to, int64_t step, const Real* from, int64_t stride, int n, int64_t k_size, int64_t k_padded) {
    constexpr int width = lanes<Real>;
    for (int64_t k = 0; k < k_padded; k += width) {
        const int there = k >= k_size ? 0 : k_size - k < width ? (int)(k_size - k) : width;
        Vec<Real> square[width];
        for (int i = 0; i < width; ++i) {
            if (i >= n || there == 0) square[i] = Vec<Real>{};
            else if (there == width) square[i] = load(from + i * stride + k);
            else square[i] = load<false, Real>(from + i * stride + k, there);
        }
        transpose(square);
        for (int i = 0; i < width && k + i < k_padded; i += pair<Elem>)
            store_pair(to + (k + i) / pair<Elem> * step, square[i], square[(i + 1) % width]);
    }
}

// A panel of `vectors` vectors whose columns are those of a matrix (n of them are there), and K its rows, of which row(k) says where they
// begin; null is a row of zeros. Rows lie far apart, so they are asked for before they are needed.
template <int vectors, class Elem, class Real, class Row> void pack_down_rows(Elem* to, int64_t n, int64_t k_padded, const Row& row) {
    constexpr int width = lanes<Real>, two = pair<Elem>, ahead = 16;
    const auto vector = [&](const Real* from, int v) {
        if (from == nullptr || v * width >= n) return Vec<Real>{};
        from += v * width;
        return n - v * width >= width ? load(from) : load<false, Real>(from, (int)(n - v * width));
    };
    for (int64_t k = 0; k < k_padded; k += two) {
        const Real *first = row(k), *second = two == 2 ? row(k + 1) : nullptr;
        for (int i = 0; i < two && k + ahead + i < k_padded; ++i)
            if (const Real* later = row(k + ahead + i))
                for (int v = 0; v < vectors; ++v) __builtin_prefetch(later + v * width);
        for (int v = 0; v < vectors; ++v, to += width * two) store_pair(to, vector(first, v), vector(second, v));
    }
}

// n columns of a matrix, a cache line of them at most, of which row(k) says where row k is, null for zeros, as rows of K numbers each.
template <class Elem> constexpr int line_of = 64 / sizeof(Elem);

template <class Elem, class Row> void pack_turned(Elem* to, int64_t stride, int n, int64_t k_padded, const Row& row) {
    constexpr int width = lanes<typename State<Elem>::Real>, line = line_of<Elem>;
    constexpr int64_t together = width * pair<Elem>;
    const Elem none[line] = {};
    for (int64_t k = 0; k < k_padded; k += together) {
        const Elem* from[together];
        for (int i = 0; i < together; ++i) {
            const Elem* there = row(k + i);
            from[i] = there ? there : none;
            if (k + together < k_padded)
                if (const Elem* later = row(k + together + i)) __builtin_prefetch(later);
        }
        for (int column = 0; column < n; column += width) {
            const int some = n - column < width ? n - column : width;
            Vec<typename State<Elem>::Real> square[width];
            for (int i = 0; i < width; ++i) {
                const Elem* rows[2] = {from[i * pair<Elem>] + column, from[i * pair<Elem> + pair<Elem> - 1] + column};
                Elem part[2][width] = {};
                if (some < width)
                    for (int j = 0; j < 2; ++j) rows[j] = static_cast<Elem*>(__builtin_memcpy(part[j], rows[j], some * sizeof(Elem)));
                square[i] = join(rows[0], rows[1]);
            }
            transpose(square);
            for (int i = 0; i < some; ++i) store_bits(to + (column + i) * stride + k, square[i]);
        }
    }
}

inline int columns_there(int64_t of, int64_t from, int width) {
    return from >= of ? 0 : of - from < width ? (int)(of - from) : width;
}

template <int64_t cell, class Elem> void pack(const Call& call, void* packed, int64_t at) {
    using Real = typename State<Elem>::Real;
    constexpr int width = lanes<Real>, two = pair<Elem>;
    const Sizes size = sizes_of<cell, Elem>(call);
    const int vectors = vectors_of<cell>(call);
    const int64_t hidden = call.hidden, inputs = call.inputs, step = vectors * width * two;
    const Real* weight_ih = static_cast<const Real*>(call.weight_ih);
    const Real* weight_hh = static_cast<const Real*>(call.weight_hh);
    Elem* to = static_cast<Elem*>(packed) + at * panel_elements<cell, Elem>(call);
    if (call.backward) {  // K runs down the rows of a matrix
        const bool to_input = at >= size.state_panels;
        const int64_t columns = to_input ? inputs : hidden, rows = gates_of<cell> * hidden;
        const int64_t unit = (to_input ? at - size.state_panels : at) * backward_vectors * width;
        const int64_t turned = cell == GRU && to_input ? 2 * hidden : 0;  // n comes first
        const Real* weight = (to_input ? weight_ih : weight_hh) + unit;
        pack_down_rows<backward_vectors, Elem, Real>(to, columns - unit, size.k_size, [&](int64_t k) {
            if (k >= rows) return (const Real*)nullptr;
            return weight + (k + turned < rows ? k + turned : k + turned - rows) * columns;
        });
        return;
    }
    for (int v = 0; v < vectors; ++v, to += width * two) {  // along them
        const int64_t unit = gated<cell> ? at * width : (at * vectors + v) * width;
        const bool n_of_h = cell == GRU && v == 3, n_of_x = cell == GRU && v == 2 && size.k_input;
        const int64_t row = (gated<cell> ? (n_of_h ? 2 : v) * hidden : 0) + unit;
        const int n = columns_there(hidden, unit, width);
        if (size.k_input) pack_along_rows(to, step, weight_ih + row * inputs, inputs, n_of_h ? 0 : n, inputs, size.k_input);
        Elem* of_h = to + size.k_input / two * step;
        pack_along_rows(of_h, step, weight_hh + row * hidden, hidden, n_of_x ? 0 : n, hidden, size.k_size - size.k_input);
        Real* bias = const_cast<Real*>(biases_of<cell, Elem>(call, packed)) + at * 4 * width;
        const Real* ih = static_cast<const Real*>(call.bias_ih);
        const Real* hh = static_cast<const Real*>(call.bias_hh);
        for (int64_t i = 0; i < width; ++i) {
            const bool apart = cell == GRU && v == 2, there = ih != nullptr && i < n;
            if (!n_of_h) bias[v * width + i] = there ? (apart ? ih[row + i] : ih[row + i] + hh[row + i]) : Real{};
            if (apart) bias[3 * width + i] = there ? hh[row + i] : Real{};
        }
    }
}

constexpr size_t sums_bytes = 2 * 32 * 4 * CHARRNN_BYTES;  // products of two panels

template <int64_t cell, class Elem> size_t scratch_bytes(const Call& call, int64_t rows, int64_t parts) {
    using Real = typename State<Elem>::Real;
    const Sizes size = sizes_of<cell, Elem>(call);
    const size_t states = round_up(2 * rows * size.padded * sizeof(Real), 64);
    const size_t products = round_up(2 * (rows + 32) * size.stride * sizeof(Elem), 64);
    const size_t biases = round_up(blocks_of<cell> * size.padded * sizeof(Real), 64);
    return states + products + biases + parts * sums_bytes + 512;
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

// The panels of which a member of a team makes the product in each step.
struct Panels {
    int64_t first, end;
};
inline Panels panels_of(const Team& team, int64_t panels) { return {team.part * panels / team.parts, (team.part + 1) * panels / team.parts}; }

// Where what is kept of a step begins, of a row's units from `unit` on; its four blocks are `apart` from each other. A cache line of units
// of all four lies together, and beside it that of the next column, so that a panel's share of a step is one stretch of memory. Rows by
// themselves would be powers of two apart: each on a page of its own, and a load of one would wait for stores to another. Where
// lines do not divide the units it is nevertheless rows.
template <class Elem> struct Kept {
    static constexpr int64_t line = line_of<Elem>;
    const int64_t hidden, batch, apart;
    explicit Kept(const Call& call) : hidden(call.hidden), batch(call.batch), apart(call.hidden % line ? call.hidden : line) {}
    int64_t at(int64_t t, int64_t column, int64_t unit) const {
        if (apart == hidden) return (t * batch + column) * 4 * hidden + unit;
        return ((t * (hidden / line) + unit / line) * batch + column) * 4 * line + unit % line;
    }
};

template <bool value> struct Flag { static constexpr bool is = value; };

template <class Elem, class Real> inline void round_to(Elem* to, const Real* from, int64_t n) {
    constexpr int width = lanes<Real>;
    int64_t i = 0;
    for (; i + width <= n; i += width) store<true>(to + i, load(from + i), width);
    if (i < n) store<false>(to + i, load<false, Real>(from + i, (int)(n - i)), (int)(n - i));
}

template <int64_t cell, class Elem, bool hoisted>
void forward(const Call& call, const void* packed, const Item& item, char* scratch, Team& team) {
    using Real = typename State<Elem>::Real;
    using V = Vec<Real>;
    constexpr int width = lanes<Real>, vectors = forward_vectors<cell, hoisted>, gates = gates_of<cell>, blocks = blocks_of<cell>;
    const Sizes size = sizes_of<cell, Elem>(call);
    const int64_t hidden = call.hidden, inputs = call.inputs, batch = call.batch, count = item.count, stride = size.stride;
    const Cut how = cut<Elem>(count, vectors);

    const Elem* panels = static_cast<const Elem*>(packed);
    const Real* biases = biases_of<cell, Elem>(call, packed);
    const int64_t panel_size = panel_elements<cell, Elem>(call);
    const Real* x = static_cast<const Real*>(call.x);
    const Elem* from_x = static_cast<const Elem*>(call.from_x);
    Real* outputs = static_cast<Real*>(call.outputs);
    Elem* kept = static_cast<Elem*>(call.gates);
    Elem* cells = static_cast<Elem*>(call.cells);
    const bool keeps = kept != nullptr;
    const Kept<Elem> where(call);

    // The states of the rows, and the rows of the product, twice: all units of a step read the h before it.
    const int64_t product_rows = round_up(count, how.tile);
    Real* h = take<Real>(scratch, count * size.padded);
    Real* c = take<Real>(scratch, count * size.padded);
    Elem* reads = take<Elem>(scratch, product_rows * stride);
    Elem* writes = take<Elem>(scratch, product_rows * stride);
    Real* const sums = reinterpret_cast<Real*>(scratch + team.part * sums_bytes);
    const auto read_x = [&](Elem* to, int64_t t) {
        const int64_t run = running(item, t);
        for (int64_t row = team.part; row < run; row += team.parts)
            round_to(to + row * stride, x + (t * batch + item.columns[row]) * inputs, inputs);
    };
    if (team.part == 0) {
        __builtin_memset(reads, 0, product_rows * stride * sizeof(Elem));
        for (int64_t row = 0; row < count; ++row) {
            const int64_t at = item.columns[row] * hidden;
            __builtin_memcpy(h + row * size.padded, static_cast<const Real*>(call.h_0) + at, hidden * sizeof(Real));
            if (cell == LSTM) __builtin_memcpy(c + row * size.padded, static_cast<const Real*>(call.c_0) + at, hidden * sizeof(Real));
            round_to(reads + row * stride + size.k_input, h + row * size.padded, hidden);
        }
        __builtin_memcpy(writes, reads, product_rows * stride * sizeof(Elem));
    }
    meet(team);
    if constexpr (!hoisted) {
        read_x(reads, call.reverse ? call.steps - 1 : 0);
        meet(team);
    }

    begin<Elem>(how);
    // Two panels of gates together: then what is kept of a row is written by whole cache lines.
    constexpr int at_once = gated<cell> ? 2 : 1, unit_vectors = gated<cell> ? 1 : vectors;
    const Panels mine = panels_of(team, size.state_panels);
    for (int64_t step = 0; step < call.steps; ++step) {
        const int64_t t = call.reverse ? call.steps - 1 - step : step, run = running(item, t);
        // A step's numbers lie far apart, and no processor guesses where the next one's will be: they are asked for a step ahead.
        const int64_t later = call.reverse ? -1 : 1, ahead = step + 1 == call.steps ? 0 : later * batch;
        for (int64_t row = team.part; row < count; row += team.parts) {
            if (row < run) continue;
            const int64_t at = (t * batch + item.columns[row]) * hidden;
            __builtin_memset(outputs + at, 0, hidden * sizeof(Real));
            if (keeps && gated<cell>)
                for (int64_t unit = 0; unit < hidden; unit += where.apart)
                    __builtin_memset(kept + where.at(t, item.columns[row], unit), 0, 4 * where.apart * sizeof(Elem));
            if (keeps && cell == LSTM) __builtin_memset(cells + at, 0, hidden * sizeof(Elem));
        }
        if constexpr (!hoisted)
            if (ahead) read_x(writes, t + later);
        for (int64_t panel = mine.first; panel < mine.end; panel += at_once) {
            const int here = (int)(mine.end - panel < at_once ? mine.end - panel : at_once);
            for (int64_t first = 0; first < run; first += how.rows) {
                const int rows = (int)(run - first < how.rows ? run - first : how.rows);
                for (int i = 0; i < here; ++i)
                    product<vectors>(how, reads + first * stride, stride, rows, panels + (panel + i) * panel_size, size.k_size,
                                     sums + i * how.rows * vectors * width);

                const auto pointwise = [&](auto full, int i, int64_t unit, int n, const Real* sum, const Real* bias) {
                    constexpr bool whole = decltype(full)::is;
                    const int64_t row = first + i, at = t * batch + item.columns[row];
                    const Elem* given = from_x + at * gates * hidden + unit;
                    Real* state = h + row * size.padded + unit;
                    Elem* keep = keeps && blocks == 4 ? kept + where.at(t, item.columns[row], unit) : nullptr;
                    if (ahead && (unit * sizeof(Elem)) % 64 == 0) {
                        if (hoisted)
                            for (int g = 0; g < gates; ++g) __builtin_prefetch(given + ahead * gates * hidden + g * hidden, 0, 2);
                        if (keeps && blocks == 4)
                            for (int g = 0; g < 4; ++g) __builtin_prefetch(keep + ahead * 4 * hidden + g * where.apart, 1, 2);
                        if (keeps && cell == LSTM) __builtin_prefetch(cells + (at + ahead) * hidden + unit, 1, 2);
                    }
                    if (ahead) __builtin_prefetch(outputs + (at + ahead) * hidden + unit, 1, 2);
                    const auto gate = [&](int g) {
                        V inner = load(bias + g * width);
                        if (!(hoisted && cell == GRU && g == 2)) inner += load(sum + g * width);  // there it is h's part, which r multiplies
                        if constexpr (hoisted) inner += load<whole, Real>(given + g * hidden, n);
                        return inner;
                    };
                    V next;
                    if constexpr (cell == LSTM) {
                        Real* memory = c + row * size.padded + unit;
                        const V i_gate = sigmoid<Elem>(gate(0)), f_gate = sigmoid<Elem>(gate(1));
                        const V g_gate = tanh_of<Elem>(gate(2)), o_gate = sigmoid<Elem>(gate(3));
                        const V now = f_gate * load(memory) + i_gate * g_gate;
                        next = o_gate * tanh_of<Elem>(now);
                        store(memory, now);
                        if (keeps) {
                            store<whole>(keep, i_gate, n);
                            store<whole>(keep + where.apart, f_gate, n);
                            store<whole>(keep + 2 * where.apart, g_gate, n);
                            store<whole>(keep + 3 * where.apart, o_gate, n);
                            store<whole>(cells + at * hidden + unit, now, n);
                        }
                    } else if constexpr (cell == GRU) {
                        const V r = sigmoid<Elem>(gate(0)), z = sigmoid<Elem>(gate(1));
                        const V from_h = load(sum + (vectors - 1) * width) + load(bias + 3 * width);
                        const V fresh = tanh_of<Elem>(gate(2) + r * from_h);
                        next = fresh + z * (load(state) - fresh);
                        if (keeps) {
                            store<whole>(keep, r, n);
                            store<whole>(keep + where.apart, z, n);
                            store<whole>(keep + 2 * where.apart, fresh, n);
                            store<whole>(keep + 3 * where.apart, from_h, n);
                        }
                    } else {
                        const V a = gate(0);
                        if constexpr (cell == RNN_TANH) next = tanh_of<Elem>(a);
                        else next = a < 0 ? V{} : a;  // NaN stays NaN
                    }
                    store(state, next);
                    store<whole>(outputs + at * hidden + unit, next, n);
                    store<whole>(writes + row * stride + size.k_input + unit, next, n);
                };
                for (int i = 0; i < rows; ++i)
                    for (int j = 0; j < here; ++j)
                        for (int v = 0; v < unit_vectors; ++v) {
                            const int64_t unit = ((panel + j) * unit_vectors + v) * width;
                            const Real* sum = sums + ((j * how.rows + i) * vectors + v) * width;
                            const Real* bias = biases + ((panel + j) * 4 + v) * width;
                            if (unit + width <= hidden) pointwise(Flag<true>{}, i, unit, width, sum, bias);
                            else if (unit < hidden) pointwise(Flag<false>{}, i, unit, (int)(hidden - unit), sum, bias);
                        }
            }
        }
        meet(team);
        Elem* const written = writes;
        writes = reads;
        reads = written;
    }
    end<Elem>();
    for (int64_t row = team.part; row < count; row += team.parts) {
        const int64_t at = item.columns[row] * hidden;
        __builtin_memcpy(static_cast<Real*>(call.h_n) + at, h + row * size.padded, hidden * sizeof(Real));
        if (cell == LSTM) __builtin_memcpy(static_cast<Real*>(call.c_n) + at, c + row * size.padded, hidden * sizeof(Real));
    }
}

template <int64_t cell, class Elem>
void backward(const Call& call, const void* packed, const Item& item, char* scratch, typename State<Elem>::Real* d_bias, Team& team) {
    using Real = typename State<Elem>::Real;
    using V = Vec<Real>;
    constexpr int width = lanes<Real>, vectors = backward_vectors, blocks = blocks_of<cell>;
    const Sizes size = sizes_of<cell, Elem>(call);
    const int64_t hidden = call.hidden, inputs = call.inputs, batch = call.batch, count = item.count, stride = size.stride;
    const Cut how = cut<Elem>(count, vectors);

    const Elem* panels = static_cast<const Elem*>(packed);
    const int64_t panel_size = panel_elements<cell, Elem>(call);
    const Real* outputs = static_cast<const Real*>(call.outputs);
    const Elem* kept = static_cast<const Elem*>(call.gates);
    const Kept<Elem> where(call);
    const Elem* cells = static_cast<const Elem*>(call.cells);
    const Real* h_0 = static_cast<const Real*>(call.h_0);
    const Real* c_0 = static_cast<const Real*>(call.c_0);
    const Real* d_outputs = static_cast<const Real*>(call.d_outputs);
    Elem* d_gates = static_cast<Elem*>(call.d_gates);
    Real* d_x = static_cast<Real*>(call.d_x);

    // The gradients of the states of the rows: the final ones until a row runs, then of h only what does not come through the product.
    const int64_t product_rows = round_up(count, how.tile);
    Real* d_h = take<Real>(scratch, count * size.padded);
    Real* d_c = take<Real>(scratch, count * size.padded);
    Elem* reads = take<Elem>(scratch, product_rows * stride);
    Elem* writes = take<Elem>(scratch, product_rows * stride);
    Real* bias_sums = take<Real>(scratch, blocks * size.padded);
    Real* const sums = reinterpret_cast<Real*>(scratch + team.part * sums_bytes);
    if (team.part == 0) {
        __builtin_memset(reads, 0, product_rows * stride * sizeof(Elem));
        __builtin_memset(writes, 0, product_rows * stride * sizeof(Elem));
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
    }
    meet(team);

    begin<Elem>(how);
    const Panels mine = panels_of(team, size.panels());
    int64_t ran = 0;  // rows of the step that was gone through last
    for (int64_t step = 0; step <= call.steps; ++step) {
        const bool last = step == call.steps;  // nothing but the product
        const int64_t t = call.reverse ? step : call.steps - 1 - step, run = last ? 0 : running(item, t);
        const int64_t earlier = call.reverse ? 1 : -1;  // the step before this one in the forward loop
        const int64_t ahead = step + 1 >= call.steps ? 0 : earlier * batch;
        for (int64_t row = team.part; row < count && !last; row += team.parts) {
            if (row < run) continue;
            const int64_t at = t * batch + item.columns[row];
            __builtin_memset(d_gates + at * blocks * hidden, 0, blocks * hidden * sizeof(Elem));
            if (d_x) __builtin_memset(d_x + at * inputs, 0, inputs * sizeof(Real));
        }
        const int64_t either = run > ran ? run : ran;
        for (int64_t panel = mine.first; panel < mine.end; ++panel) {
            const bool to_input = panel >= size.state_panels;
            const int64_t offset = cell == GRU && !to_input ? hidden : 0, rows_of_panel = to_input ? ran : either;
            for (int64_t first = 0; first < rows_of_panel; first += how.rows) {
                const int rows = (int)(rows_of_panel - first < how.rows ? rows_of_panel - first : how.rows);
                if (first < ran) {
                    const int through = (int)(ran - first < rows ? ran - first : rows);
                    product<vectors>(how, reads + first * stride + offset, stride, through, panels + panel * panel_size, size.k_size, sums);
                }
                if (to_input) {  // of the step that was gone through last
                    const int64_t column = (panel - size.state_panels) * vectors * width;
                    for (int i = 0; i < rows; ++i) {
                        Real* to = d_x + ((t - earlier) * batch + item.columns[first + i]) * inputs + column;
                        const Real* from = sums + i * vectors * width;
                        if (column + vectors * width <= inputs)
                            for (int v = 0; v < vectors; ++v) store(to + v * width, load(from + v * width));
                        else __builtin_memcpy(to, from, (inputs - column) * sizeof(Real));
                    }
                    continue;
                }

                const auto pointwise = [&](auto full, int i, int64_t unit, int n, const Real* sum, V* total) {
                    constexpr bool whole = decltype(full)::is;
                    const int64_t row = first + i;
                    Real* direct = d_h + row * size.padded + unit;
                    V dh = load(direct);
                    if (row < ran) {
                        const V through = load(sum);
                        dh = cell == GRU ? dh + through : through;
                    }
                    if (row >= run) return store(direct, dh);  // over, or in reverse not begun
                    const int64_t at = t * batch + item.columns[row];
                    const Elem* keep = blocks == 4 ? kept + where.at(t, item.columns[row], unit) : nullptr;
                    if (ahead) {
                        const int64_t next = at + ahead;
                        if ((unit * sizeof(Elem)) % 64 == 0)
                            for (int g = 0; g < blocks; ++g) {
                                if (blocks == 4) __builtin_prefetch(keep + ahead * 4 * hidden + g * where.apart, 0, 2);
                                __builtin_prefetch(d_gates + (next * blocks + g) * hidden + unit, 1, 2);
                            }
                        __builtin_prefetch(d_outputs + next * hidden + unit, 0, 2);
                        if (cell == LSTM) __builtin_prefetch(cells + (next + earlier * batch) * hidden + unit, 0, 2);
                        else __builtin_prefetch(outputs + (next + earlier * batch) * hidden + unit, 0, 2);
                    }
                    // Where the forward loop began, the state before is the initial one.
                    const bool begins = call.reverse ? t + 1 == item.lengths[row] : t == 0;
                    dh += load<whole, Real>(d_outputs + at * hidden + unit, n);
                    V da[blocks];
                    if constexpr (cell == LSTM) {
                        const V i_gate = load<whole, Real>(keep, n), f_gate = load<whole, Real>(keep + where.apart, n);
                        const V g_gate = load<whole, Real>(keep + 2 * where.apart, n), o_gate = load<whole, Real>(keep + 3 * where.apart, n);
                        const V now = load<whole, Real>(cells + at * hidden + unit, n);
                        const V was = begins ? load<whole, Real>(c_0 + item.columns[row] * hidden + unit, n)
                                             : load<whole, Real>(cells + (at + earlier * batch) * hidden + unit, n);
                        const V tanh_c = tanh_of<Elem>(now);
                        Real* memory = d_c + row * size.padded + unit;
                        const V dc = load(memory) + dh * o_gate * (1 - tanh_c * tanh_c);
                        da[0] = dc * g_gate * (i_gate * (1 - i_gate));
                        da[1] = dc * was * (f_gate * (1 - f_gate));
                        da[2] = dc * i_gate * (1 - g_gate * g_gate);
                        da[3] = dh * tanh_c * (o_gate * (1 - o_gate));
                        store(memory, dc * f_gate);
                    } else if constexpr (cell == GRU) {
                        const V r = load<whole, Real>(keep, n), z = load<whole, Real>(keep + where.apart, n);
                        const V fresh = load<whole, Real>(keep + 2 * where.apart, n), from_h = load<whole, Real>(keep + 3 * where.apart, n);
                        const Real* old = begins ? h_0 + item.columns[row] * hidden : outputs + (at + earlier * batch) * hidden;
                        const V was = load<whole, Real>(old + unit, n);
                        const V d_direct = dh * z;
                        da[0] = (dh - d_direct) * (1 - fresh * fresh);
                        da[1] = da[0] * from_h * (r * (1 - r));
                        da[2] = dh * (was - fresh) * (z * (1 - z));
                        da[3] = da[0] * r;
                        store(direct, d_direct);
                    } else {
                        const V y = load<whole, Real>(outputs + at * hidden + unit, n);
                        if constexpr (cell == RNN_TANH) da[0] = dh * (1 - y * y);
                        else da[0] = y > 0 ? dh : V{};
                    }
                    for (int g = 0; g < blocks; ++g) {
                        store<whole>(d_gates + (at * blocks + g) * hidden + unit, da[g], n);
                        store<whole>(writes + row * stride + g * hidden + unit, da[g], n);
                        total[g] += da[g];
                    }
                };
                for (int pair = 0; pair < vectors; pair += 2) {  // as many sums of biases as there are registers for
                    V totals[2][blocks] = {};
                    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
                        for (int v = 0; v < 2; ++v) {
                            const int64_t unit = (panel * vectors + pair + v) * width;
                            const Real* sum = sums + (i * vectors + pair + v) * width;
                            if (unit + width <= hidden) pointwise(Flag<true>{}, i, unit, width, sum, totals[v]);
                            else if (unit < hidden) pointwise(Flag<false>{}, i, unit, (int)(hidden - unit), sum, totals[v]);
                        }
                    for (int v = 0; v < 2; ++v)
                        for (int g = 0; g < blocks; ++g) {
                            Real* sum = bias_sums + g * size.padded + (panel * vectors + pair + v) * width;
                            store(sum, load(sum) + totals[v][g]);
                        }
                }
            }
        }
        meet(team);
        ran = run;
        Elem* const written = writes;
        writes = reads;
        reads = written;
    }
    end<Elem>();
    for (int64_t row = team.part; row < count; row += team.parts) {
        const int64_t at = item.columns[row] * hidden;
        __builtin_memcpy(static_cast<Real*>(call.d_h_0) + at, d_h + row * size.padded, hidden * sizeof(Real));
        if (cell == LSTM) __builtin_memcpy(static_cast<Real*>(call.d_c_0) + at, d_c + row * size.padded, hidden * sizeof(Real));
    }
    if (team.part == 0)
        for (int g = 0; g < blocks; ++g) __builtin_memcpy(d_bias + g * hidden, bias_sums + g * size.padded, hidden * sizeof(Real));
}

// The weights' gradients: d_gatesᵀ [x | h before], the sum over all steps and columns, some of whose rows one thread makes. `terms` are
// the t · B + b that have a step. Some hundred of them are packed at a time, and of those some rows, so that both stay in a core's cache;
// the sums so far come and go.

constexpr int64_t terms_together = 512, rows_together = 256;

template <int64_t cell, class Elem> size_t weights_scratch_bytes(const Call& call, int64_t rows) {
    using Real = typename State<Elem>::Real;
    constexpr int64_t columns = 4 * lanes<Real>;
    const int64_t panels = (call.inputs + columns - 1) / columns + (call.hidden + columns - 1) / columns;
    const size_t packs = (rows_together + 32 + panels * columns) * terms_together * sizeof(Elem);
    return packs + panels * (round_up(rows, 32) + 32) * columns * sizeof(Real) + sums_bytes + 512;
}

template <int64_t cell, class Elem>
void weights(const Call& call, const int64_t* terms, int64_t count, int64_t first_row, int64_t end_row, char* scratch) {
    using Real = typename State<Elem>::Real;
    constexpr int width = lanes<Real>, vectors = 4;
    constexpr int64_t blocks = blocks_of<cell>, panel_columns = vectors * width;
    const int64_t hidden = call.hidden, inputs = call.inputs, batch = call.batch, rows = end_row - first_row;
    const int64_t room = (round_up(rows, 32) + 32) * panel_columns;  // of the sums of a panel
    const int64_t panels = (inputs + panel_columns - 1) / panel_columns + (hidden + panel_columns - 1) / panel_columns;
    Elem* left = take<Elem>(scratch, (rows_together + 32) * terms_together);
    Elem* packed = take<Elem>(scratch, panels * panel_columns * terms_together);
    Real* products = take<Real>(scratch, sums_bytes / sizeof(Real));
    Real* const sums = reinterpret_cast<Real*>(scratch);
    const Cut how = cut<Elem>(rows < rows_together ? rows : rows_together, vectors);

    // What is multiplied with which rows: of the GRU, n r z and r z r·n. A matrix has its rows in its own order, turned by so many.
    struct Side {
        Real* d_weight;
        int64_t columns, from, end, turned;
    };
    const Side sides[2] = {
        {static_cast<Real*>(call.d_weight_ih), inputs, 0, gates_of<cell> * hidden, cell == GRU ? 2 * hidden : 0},
        {static_cast<Real*>(call.d_weight_hh), hidden, cell == GRU ? hidden : 0, blocks * hidden, 0},
    };
    const auto each_panel = [&](const auto& use) {  // (side, its first column, the panel, its sums)
        Elem* panel = packed;
        Real* at = sums;
        for (int side = 0; side < 2; ++side)
            for (int64_t column = 0; column < sides[side].columns; column += panel_columns, panel += panel_columns * terms_together, at += room)
                if (sides[side].d_weight) use(side, column, panel, at);
    };

    begin<Elem>(how);
    for (int64_t done = 0; done < count; done += terms_together) {
        const int64_t some = count - done < terms_together ? count - done : terms_together, k_size = round_up(some, 32);
        const Elem* gates[terms_together];
        const Real* sources[2][terms_together];
        for (int64_t k = 0; k < some; ++k) {
            const int64_t term = terms[done + k], t = term / batch, column = term % batch;
            const int64_t last = call.lengths ? call.lengths[column] - 1 : call.steps - 1;
            gates[k] = static_cast<const Elem*>(call.d_gates) + term * blocks * hidden + first_row;
            sources[0][k] = static_cast<const Real*>(call.x) + term * inputs;
            if (call.reverse ? t == last : t == 0) sources[1][k] = static_cast<const Real*>(call.h_0) + column * hidden;
            else sources[1][k] = static_cast<const Real*>(call.outputs) + (call.reverse ? term + batch : term - batch) * hidden;
        }
        each_panel([&](int side, int64_t column, Elem* panel, Real*) {
            pack_down_rows<vectors, Elem, Real>(panel, sides[side].columns - column, k_size,
                                                [&](int64_t k) { return k < some ? sources[side][k] + column : nullptr; });
        });
        for (int64_t row = 0; row < rows; row += rows_together) {
            const int64_t these = rows - row < rows_together ? rows - row : rows_together;
            for (int64_t i = 0; i < these; i += line_of<Elem>)
                pack_turned(left + i * k_size, k_size, (int)(these - i < line_of<Elem> ? these - i : line_of<Elem>), k_size,
                            [&](int64_t k) { return k < some ? gates[k] + row + i : nullptr; });
            each_panel([&](int side, int64_t, const Elem* panel, Real* so_far) {
                if (first_row + row < sides[side].end && first_row + row + these > sides[side].from)
                    add_product(how, left, k_size, these, panel, k_size, so_far + row * panel_columns, done == 0, products);
            });
        }
    }
    end<Elem>();
    each_panel([&](int which, int64_t column, Elem*, const Real* made) {
        const Side& side = sides[which];
        const int64_t n = side.columns - column < panel_columns ? side.columns - column : panel_columns;
        for (int64_t row = first_row; row < end_row; ++row) {
            if (row < side.from || row >= side.end) continue;
            const int64_t own = (row - side.from + side.turned) % (side.end - side.from);
            __builtin_memcpy(side.d_weight + own * side.columns + column, made + (row - first_row) * panel_columns, n * sizeof(Real));
        }
    });
}

template <int64_t cell, class Elem> void run(const Call& call, const void* packed, const Item& item, void* scratch, void* d_bias, Team& team) {
    char* mine = static_cast<char*>(scratch);
    if (call.backward) backward<cell, Elem>(call, packed, item, mine, static_cast<typename State<Elem>::Real*>(d_bias), team);
    else if (call.x) forward<cell, Elem, false>(call, packed, item, mine, team);
    else forward<cell, Elem, true>(call, packed, item, mine, team);
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
    return with_instance(call, [&](auto i) { return sizes_of<CHARRNN_INSTANCE(i, call)>(call).panels(); });
}
size_t any_packed_bytes(const Call& call) {
    return with_instance(call, [&](auto i) { return packed_bytes<CHARRNN_INSTANCE(i, call)>(call); });
}
size_t any_scratch_bytes(const Call& call, int64_t columns, int64_t parts) {
    return with_instance(call, [&](auto i) { return scratch_bytes<CHARRNN_INSTANCE(i, call)>(call, columns, parts); });
}
void any_pack(const Call& call, void* packed, int64_t panel) {
    with_instance(call, [&](auto i) { pack<CHARRNN_INSTANCE(i, call)>(call, packed, panel); });
}
void any_run(const Call& call, const void* packed, const Item& item, void* scratch, void* d_bias, Team& team) {
    with_instance(call, [&](auto i) { run<CHARRNN_INSTANCE(i, call)>(call, packed, item, scratch, d_bias, team); });
}

size_t any_weights_scratch_bytes(const Call& call, int64_t rows) {
    return with_instance(call, [&](auto i) { return weights_scratch_bytes<CHARRNN_INSTANCE(i, call)>(call, rows); });
}
void any_weights(const Call& call, const int64_t* terms, int64_t count, int64_t first_row, int64_t end_row, void* scratch) {
    with_instance(call, [&](auto i) { weights<CHARRNN_INSTANCE(i, call)>(call, terms, count, first_row, end_row, static_cast<char*>(scratch)); });
}

constexpr Kernels kernels = {any_panels, any_packed_bytes, any_scratch_bytes, any_pack, any_run, any_weights_scratch_bytes, any_weights};

}  // namespace
