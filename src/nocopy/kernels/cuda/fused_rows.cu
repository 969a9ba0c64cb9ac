// One launch for the products of two to eight rows and the steps around them: what row_product.cuh does for
// one row, for sequences that are decoded together. A weight is read once for all rows, on tensor cores.
//
// Four pairs of a weight's rows are a unit: the eight columns of an mma. Its sixteen rows are the eight rows
// of x twice, what 16 bits hold of them above what is left, so that 16 bits of x count and sums are f32. A
// weight in bf16 is used as it is, Q8_0's and Q4_0's numbers as they are with each block's sum scaled; other
// types are decoded and split like x. Along k lanes take the elements in the order in which blocks.cuh gives
// them, x and weights alike.
//
// Blocks share out the units evenly. A warp takes chunks along k of all of them, whose part of x it keeps in
// shared memory of its own; it streams them through slots that it begins to fill before the kernel waits for
// the one before it. Warps take turns in finishing results. Bound: the bytes of the weights.
#include "mma.cuh"
#include "row_product.cuh"

constexpr uint32_t MOST_ROWS = 8;
constexpr uint32_t UNIT_PAIRS = 4, UNIT_ROWS = 2 * UNIT_PAIRS;
constexpr uint32_t UNITS_AT_ONCE = 4;  // whose sums a block keeps
constexpr uint32_t STEP_WORDS = 4;     // of x for a row and sixteen elements, 16 bytes each
static_assert(UNITS_AT_ONCE * UNIT_ROWS == 32, "each lane has a row of theirs");

struct nocopy_fused_rows {
    nocopy_fused f;  // addresses are of the first row
    uint64_t caches[3][MOST_ROWS];
    uint32_t out_step[3], residual_step;  // elements from row to row
    uint32_t x_step, normed_step, gated_step, position_step;
    uint32_t rows, held;  // of x; chunks of a warp that stay in shared memory: all of them, or one at a time
};
static_assert(sizeof(nocopy_fused_rows) == 568, "device/cuda_fuse_rows.py packs this struct");

// A slot: a chunk of CHUNK elements along k of eight rows; device/cuda_fuse_rows.py has the numbers. Plain
// floats lie in rows whose 16-byte words are turned so that two rows' do not meet in a bank; blocks in an odd
// number of words, from the last word's beginning before them on.
template <typename B>
struct UnitSlot {
    static constexpr bool PLAIN = B::BYTES == 16;
    static constexpr uint32_t CHUNK = B::ELEMENTS > 128 ? B::ELEMENTS : 128;
    static constexpr uint32_t BYTES = CHUNK / B::ELEMENTS * B::BYTES;
    static constexpr uint32_t STEP = BYTES % 16 ? BYTES & (~BYTES + 1) : 16;  // what chunks begin on
    static constexpr uint32_t WORDS = (16 - STEP + BYTES + 15) / 16;
    static constexpr uint32_t STRIDE = 16 * (PLAIN ? WORDS : WORDS | 1);
    static constexpr uint32_t ALL = UNIT_ROWS * STRIDE;

    static __device__ uint32_t place(uint32_t row, uint32_t word) {
        return row * STRIDE + 16 * (PLAIN ? word ^ row % 2 * 4 : word);
    }
};

// v as the sum of two pairs of 16 bits.
struct SplitPair {
    uint32_t high, low;

    __device__ SplitPair(float first, float second) {
        high = pack_pair<true>(first, second);
        low = pack_pair<true>(rest(first, high << 16), rest(second, high & 0xffff0000));
    }
    static __device__ float rest(float value, uint32_t bits) {
        float left = value - __uint_as_float(bits);
        return left == left ? left : 0.0f;  // of an infinity
    }
};

struct RowSums {
    float d[2][4] = {};

    __device__ Sums total() const {
        return {d[0][0] + d[0][2] + (d[1][0] + d[1][2]), d[0][1] + d[0][3] + (d[1][1] + d[1][3])};
    }
};

// What this lane holds of step `step` of x.
__device__ inline void load_step(uint32_t (&a)[4], const Words4* x, uint32_t step, uint32_t rows) {
    const uint32_t lane = threadIdx.x % 32;
    Words4 words = {};
    if (lane / 4 < rows) words = x[step * rows * STEP_WORDS + lane];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = words.v[i];
}

// How a slot of weights is multiplied with x. CROSSED: pairs are elements 0 and 2, 1 and 3 of a quad.
template <typename B>
struct UnitProduct {
    static constexpr bool CROSSED = false;

    static __device__ void add(RowSums& sums, const uint8_t* slot, uint32_t skew, uint32_t elements,
                               const Words4* x, uint32_t rows) {
        const uint32_t row = threadIdx.x % 32 / 4, own = threadIdx.x % 4;
        const uint32_t pieces = Cut<B>::pieces(elements);
#pragma unroll 2
        for (uint32_t first = 0; first < pieces; first += 4) {
            uint32_t piece = first + own;
            const uint8_t* at = UnitSlot<B>::PLAIN
                                    ? slot + UnitSlot<B>::place(row, piece)
                                    : slot + UnitSlot<B>::place(row, 0) + skew + piece / B::LANES * B::BYTES;
            float w[4 * B::QUADS];
            B::decode(B::fetch(at, piece % B::LANES), w);
#pragma unroll
            for (uint32_t j = 0; j < B::QUADS; ++j) {
                uint32_t a[4];
                load_step(a, x, first / 4 * B::QUADS + j, rows);
                SplitPair low(w[4 * j], w[4 * j + 1]), high(w[4 * j + 2], w[4 * j + 3]);
                multiply_fragments<true>(sums.d[0], a, low.high, high.high);
                multiply_fragments<true>(sums.d[1], a, low.low, high.low);
            }
        }
    }
};

template <>
struct UnitProduct<Bf16Words> {
    static constexpr bool CROSSED = false;

    static __device__ void add(RowSums& sums, const uint8_t* slot, uint32_t, uint32_t elements,
                               const Words4* x, uint32_t rows) {
        const uint32_t row = threadIdx.x % 32 / 4, own = threadIdx.x % 4;
#pragma unroll 4
        for (uint32_t first = 0; first < elements / 8; first += 4) {
            Words4 w = *(const Words4*)(slot + UnitSlot<Bf16Words>::place(row, first + own));
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                uint32_t a[4];
                load_step(a, x, first / 2 + j, rows);
                multiply_fragments<true>(sums.d[j], a, w.v[2 * j], w.v[2 * j + 1]);
            }
        }
    }
};

// Blocks of 32 whole numbers and a scale: fragments(word, i) gives the numbers of step i of two.
template <typename B, typename Numbers>
struct ScaledProduct {
    static constexpr bool CROSSED = Numbers::CROSSED;

    static __device__ void add(RowSums& sums, const uint8_t* slot, uint32_t skew, uint32_t elements,
                               const Words4* x, uint32_t rows) {
        const uint32_t row = threadIdx.x % 32 / 4, own = threadIdx.x % 4;
        const uint8_t* numbers = slot + skew + UnitSlot<B>::place(row, 0) + 2 + 4 * own;
        const uint8_t *a_scale = slot + skew + UnitSlot<B>::place(2 * own, 0),
                      *b_scale = slot + skew + UnitSlot<B>::place(2 * own + 1, 0);
#pragma unroll 2
        for (uint32_t block = 0; block < elements / 32; ++block) {
            float d[4] = {};
            uint32_t w[2];
            Numbers::fetch(numbers + block * B::BYTES, w);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint32_t a[4], b[2];
                load_step(a, x, 2 * block + i, rows);
                Numbers::pairs(w, i, b);
                multiply_fragments<true>(d, a, b[0], b[1]);
            }
            sums.d[0][0] = fmaf(half_at(a_scale + block * B::BYTES), d[0] + d[2], sums.d[0][0]);
            sums.d[0][1] = fmaf(half_at(b_scale + block * B::BYTES), d[1] + d[3], sums.d[0][1]);
        }
    }
};

struct EightBits {
    static constexpr bool CROSSED = false;
    static __device__ void fetch(const uint8_t* at, uint32_t (&w)[2]) {
        w[0] = word_at(at) ^ 0x80808080;
        w[1] = word_at(at + 16) ^ 0x80808080;
    }
    // As floats above 2^23, whose upper halves are all of what is left of them.
    static __device__ void pairs(const uint32_t (&w)[2], int i, uint32_t (&b)[2]) {
        uint32_t bits[4];
#pragma unroll
        for (int e = 0; e < 4; ++e)
            bits[e] = __float_as_uint(__uint_as_float(0x4b000000 | byte_of(w[i], e)) - 8388736.0f);
        b[0] = bits[0] >> 16 | (bits[1] & 0xffff0000);
        b[1] = bits[2] >> 16 | (bits[3] & 0xffff0000);
    }
};

struct FourBits {
    static constexpr bool CROSSED = true;
    static __device__ void fetch(const uint8_t* at, uint32_t (&w)[2]) {
        w[0] = word_at(at);
        w[1] = w[0] >> 4;
    }
    // As 128 + n, of which 136 is taken away.
    static __device__ void pairs(const uint32_t (&w)[2], int i, uint32_t (&b)[2]) {
        b[0] = add_pairs((w[i] & 0x000f000f) | 0x43004300, 0xc308c308);
        b[1] = add_pairs((w[i] >> 8 & 0x000f000f) | 0x43004300, 0xc308c308);
    }
};

template <>
struct UnitProduct<Q8_0> : ScaledProduct<Q8_0, EightBits> {};
template <>
struct UnitProduct<Q4_0> : ScaledProduct<Q4_0, FourBits> {};

// The parts of a block's shared memory.
template <typename B>
struct RowsMemory {
    uint8_t* slots;  // of this warp
    Words4* x;       // likewise
    Sums* sums;      // [2, UNITS_AT_ONCE, warps, 32]
    float* squares;  // [warps, MOST_ROWS]
    float* roots;    // [MOST_ROWS]

    __device__ explicit RowsMemory(const nocopy_fused_rows& r) {
        const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32;
        const uint32_t words = r.held * chunk_words(r.rows);
        slots = dynamic_shared() + warp * r.f.slots * UnitSlot<B>::ALL;
        Words4* all = (Words4*)(dynamic_shared() + warps * r.f.slots * UnitSlot<B>::ALL);
        x = all + warp * words;
        sums = (Sums*)(all + warps * words);
        squares = (float*)(sums + 2 * UNITS_AT_ONCE * warps * 32);
        roots = squares + warps * MOST_ROWS;
    }
    static __device__ uint32_t chunk_words(uint32_t rows) {
        return UnitSlot<B>::CHUNK / 16 * rows * STEP_WORDS;
    }
};

// The order in which a warp takes its slots: of some units at a time, chunk by chunk, all units.
template <typename B>
struct Course {
    static constexpr uint32_t CHUNK = UnitSlot<B>::CHUNK;

    const nocopy_fused& f;
    uint32_t first, stop, last;  // units of this round, and of all
    uint32_t unit, chunk, pairs;
    uint64_t row;  // the address of a row of this round's units

    __device__ Course(const nocopy_fused& fused, uint32_t from, uint32_t to, uint32_t all)
        : f(fused),
          first(from),
          stop(from),
          last(to),
          unit(from),
          chunk(threadIdx.x / 32),
          pairs(all),
          row(0) {
        if (chunk * CHUNK >= f.k) first = stop = last;  // it has none
        begin_round();
    }

    __device__ void begin_round() {
        unit = first = stop;
        stop = min(first + UNITS_AT_ONCE, last);
        chunk = threadIdx.x / 32;
        if (first >= last) return;
        const uint32_t lane = threadIdx.x % 32;
        const RowPair pair(f, min(first * UNIT_PAIRS + lane / 2, pairs - 1));
        row = (uint64_t)(lane % 2 ? weight_row(f.products[pair.b_product], pair.b_row)
                                  : weight_row(f.products[pair.a_product], pair.a_row));
    }

    __device__ bool ended() const { return first >= last; }

    __device__ void next() {
        if (++unit < stop) return;
        unit = first;
        chunk += blockDim.x / 32;
        if (chunk * CHUNK >= f.k) begin_round();
    }

    // Begins the copies of a unit's rows.
    __device__ void copy(uint8_t* slot) const {
        using S = UnitSlot<B>;
        const uint32_t lane = threadIdx.x % 32, start = chunk * S::BYTES;
        const uint32_t elements = min(CHUNK, f.k - chunk * CHUNK);
        const uint32_t stop_byte = start + elements / B::ELEMENTS * B::BYTES;
        const uint32_t words = (stop_byte + 15) / 16 - start / 16;
        const uint64_t begin = row + start / 16 * 16;
#pragma unroll
        for (uint32_t i = 0; i < (UNIT_ROWS * S::WORDS + 31) / 32; ++i) {
            uint32_t e = lane + 32 * i, at = e / S::WORDS, word = e % S::WORDS;
            uint64_t from =
                __shfl_sync(0xffffffffu, begin, (int)((unit - first) * UNIT_ROWS + at % UNIT_ROWS));
            if (at < UNIT_ROWS && word < words)
                copy_word(slot + S::place(at, word), (const void*)(from + 16 * word), true);
        }
    }
};

__device__ inline void wait_slot(uint32_t slots) {
    switch (slots) {
        case 2:
            wait_copies<1>();
            break;
        case 3:
            wait_copies<2>();
            break;
        default:
            wait_copies<3>();
            break;
    }
    __syncwarp();  // each lane has waited for its own
}

// Puts a chunk of x, times norm, in shared memory; adds to each row's squares.
template <typename B>
__device__ inline void load_chunk(const nocopy_fused_rows& r, uint32_t chunk, Words4* x,
                                  float (&squares)[MOST_ROWS]) {
    constexpr uint32_t CHUNK = UnitSlot<B>::CHUNK, STEPS = CHUNK / 16 / 8;  // of a lane
    const uint32_t lane = threadIdx.x % 32, first = chunk * CHUNK, elements = min(CHUNK, r.f.k - first);
    uint32_t places[STEPS];
    Words4 norm[STEPS];
#pragma unroll
    for (uint32_t i = 0; i < STEPS; ++i) {
        uint32_t step = lane / 4 + 8 * i;
        places[i] = first + Cut<B>::element(step / B::QUADS * 4 + lane % 4, step % B::QUADS);
        if (r.f.norm && 16 * step < elements) norm[i] = *(const Words4*)((const float*)r.f.norm + places[i]);
    }
#pragma unroll
    for (uint32_t band = 0; band < MOST_ROWS; band += 4) {
        if (band >= r.rows) break;
        Words4 held[4][STEPS];
#pragma unroll
        for (uint32_t row = 0; row < 4; ++row) {
            const float* from = (const float*)r.f.x + (uint64_t)min(band + row, r.rows - 1) * r.x_step;
#pragma unroll
            for (uint32_t i = 0; i < STEPS; ++i)
                if (16 * (lane / 4 + 8 * i) < elements) held[row][i] = load_fresh(from + places[i]);
        }
#pragma unroll
        for (uint32_t row = 0; row < 4; ++row) {
#pragma unroll
            for (uint32_t i = 0; i < STEPS; ++i) {
                uint32_t step = lane / 4 + 8 * i;
                if (band + row >= r.rows || 16 * step >= elements) continue;
                float v[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    v[e] = __uint_as_float(held[row][i].v[e]);
                    if (!r.f.norm) continue;
                    squares[band + row] = fmaf(v[e], v[e], squares[band + row]);
                    v[e] *= __uint_as_float(norm[i].v[e]);
                }
                constexpr int SECOND = UnitProduct<B>::CROSSED ? 2 : 1, THIRD = 3 - SECOND;
                SplitPair low(v[0], v[SECOND]), high(v[THIRD], v[3]);
                x[(step * r.rows + band + row) * STEP_WORDS + lane % 4] = {low.high, low.low, high.high,
                                                                           high.low};
            }
        }
    }
    __syncwarp();  // all lanes may read it
}

// The result of a pair and a row of x: where it goes, and what is added to it, read early.
struct RowResult {
    RowPair pair;
    uint32_t row;
    float a_bias = 0.0f, b_bias = 0.0f, a_residual = 0.0f, b_residual = 0.0f, frequency = 0.0f;
    int32_t position = -1;

    __device__ RowResult(const nocopy_fused_rows& r, uint32_t index, uint32_t which)
        : pair(r.f, index), row(which) {
        const nocopy_product &p = r.f.products[pair.a_product], &other = r.f.products[pair.b_product];
        if (r.f.positions) position = ((const int32_t*)r.f.positions)[(uint64_t)row * r.position_step];
        if (p.bias) a_bias = ((const float*)p.bias)[pair.a_row];
        if (other.bias) b_bias = ((const float*)other.bias)[pair.b_row];
        if (p.residual) {
            const float* line = (const float*)p.residual + (uint64_t)row * r.residual_step;
            a_residual = load_fresh_float(line + pair.a_row);
            b_residual = load_fresh_float(line + pair.b_row);
        }
        if (p.turn == TURN_NONE) return;
        uint32_t place = p.turn == TURN_HALF ? pair.a_row % p.head : pair.a_row % p.head / 2;
        frequency = ((const float*)p.frequencies)[place];
    }

    // The address of this row, if there is a table.
    __device__ uint64_t line(uint64_t table, uint32_t step) const {
        return table ? table + 4 * (uint64_t)row * step : 0;
    }

    __device__ void finish(const nocopy_fused_rows& r, float a, float b) const {
        nocopy_product p = r.f.products[pair.a_product];
        const nocopy_product& other = r.f.products[pair.b_product];
        a = p.scale * a + a_bias;
        b = other.scale * b + b_bias;
        if (p.turn != TURN_NONE) Rotation((float)position * frequency, p.turn_scale).turn(a, b);
        if (r.f.gate) {
            store_if(line(p.out, r.out_step[pair.a_product]), pair.a_row, a);
            store_if(line(other.out, r.out_step[pair.b_product]), pair.b_row, b);
            store_if(line(r.f.gated, r.gated_step), pair.a_row, gate_function(r.f.gate, a) * b);
            return;
        }
        store_both(line(p.out, r.out_step[pair.a_product]), pair.a_row, pair.b_row, a, b);
        p.cache = r.caches[pair.a_product][row];
        store_cached(p, position, pair.a_row, a);
        store_cached(p, position, pair.b_row, b);
        if (p.residual)
            store_both(line(p.residual, r.residual_step), pair.a_row, pair.b_row, a_residual + a,
                       b_residual + b);
    }
};

// Every block writes its share of the normed rows.
__device__ inline void store_normed_rows(const nocopy_fused_rows& r, const float* roots) {
    const uint32_t all = r.rows * r.f.k, each = (all + gridDim.x - 1) / gridDim.x;
    const uint32_t stop = min(all, (blockIdx.x + 1) * each);
    for (uint32_t i = blockIdx.x * each + threadIdx.x; i < stop; i += blockDim.x) {
        uint32_t row = i / r.f.k, at = i - row * r.f.k;
        float value = load_fresh_float((const float*)r.f.x + (uint64_t)row * r.x_step + at);
        ((float*)r.f.normed)[(uint64_t)row * r.normed_step + at] =
            value * ((const float*)r.f.norm)[at] / roots[row];
    }
}

template <typename B>
__device__ inline void fused_rows(const nocopy_fused_rows& r) {
    constexpr uint32_t CHUNK = UnitSlot<B>::CHUNK;
    let_next_start();
    const nocopy_fused& f = r.f;
    const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t pairs = (uint32_t)RowPair::count(f), units = (pairs + UNIT_PAIRS - 1) / UNIT_PAIRS;
    const uint32_t first = (uint32_t)((uint64_t)units * blockIdx.x / gridDim.x),
                   stop = (uint32_t)((uint64_t)units * (blockIdx.x + 1) / gridDim.x);
    const uint32_t chunks = (f.k + CHUNK - 1) / CHUNK, filled = min(warps, chunks);  // warps that have some
    RowsMemory<B> shared(r);
    Course<B> begun(f, first, stop, pairs);
    uint32_t begun_slot = 0, slot = 0;
    auto begin = [&] {
        if (!begun.ended()) {
            begun.copy(shared.slots + begun_slot * UnitSlot<B>::ALL);
            begun.next();
        }
        end_copies();  // an empty group too, for the count in wait_slot
        begun_slot = begun_slot + 1 == f.slots ? 0 : begun_slot + 1;
    };
    for (uint32_t s = 0; s < f.slots; ++s) begin();
    wait_for_previous();
    float squares[MOST_ROWS] = {};
    const bool all_held = (chunks + warps - 1) / warps <= r.held;
    const uint32_t words = RowsMemory<B>::chunk_words(r.rows);
    if (all_held && first < stop)
        for (uint32_t chunk = warp, i = 0; chunk < chunks; chunk += warps, ++i)
            load_chunk<B>(r, chunk, shared.x + i * words, squares);
    auto result_of = [&](uint32_t from, uint32_t i) {
        return RowResult(r, min((from + i / 32) * UNIT_PAIRS + i % 4, pairs - 1),
                         min(i % 32 / 4, r.rows - 1));
    };
    const RowResult early = result_of(first, threadIdx.x);
    uint32_t odd = 0, turn = threadIdx.x;  // which half of the sums; whose turn it is to finish results
    for (uint32_t from = first; from < stop; from += UNITS_AT_ONCE) {
        const uint32_t to = min(from + UNITS_AT_ONCE, stop);
        Sums* sums = shared.sums + odd * UNITS_AT_ONCE * warps * 32;
        for (uint32_t chunk = warp, i = 0; chunk < chunks; chunk += warps, ++i) {
            const Words4* x = shared.x + (all_held ? i * words : 0);
            if (!all_held) {
                float again[MOST_ROWS] = {};
                load_chunk<B>(r, chunk, shared.x, from == first ? squares : again);
            }
            const uint32_t elements = min(CHUNK, f.k - chunk * CHUNK);
            const uint32_t skew = chunk * UnitSlot<B>::BYTES % 16;
            for (uint32_t unit = from; unit < to; ++unit) {
                RowSums of_unit;
                wait_slot(f.slots);
                UnitProduct<B>::add(of_unit, shared.slots + slot * UnitSlot<B>::ALL, skew, elements, x,
                                    r.rows);
                __syncwarp();  // all lanes have read the slot
                begin();
                slot = slot + 1 == f.slots ? 0 : slot + 1;
                Sums& kept = sums[((unit - from) * warps + warp) * 32 + lane];
                Sums now = of_unit.total();
                kept = i ? Sums{kept.a + now.a, kept.b + now.b} : now;
            }
        }
        if (f.norm && from == first) {
#pragma unroll
            for (uint32_t row = 0; row < MOST_ROWS; ++row) {
                float sum = warp_sum(squares[row]);
                if (lane == 0) shared.squares[warp * MOST_ROWS + row] = sum;
            }
        }
        __syncthreads();
        if (f.norm && from == first) {
            if (threadIdx.x < MOST_ROWS) {
                float sum = 0.0f;
                for (uint32_t w = 0; w < filled; ++w) sum += shared.squares[w * MOST_ROWS + threadIdx.x];
                shared.roots[threadIdx.x] = sqrtf(sum / (float)f.k + f.eps);
            }
            __syncthreads();
            if (f.normed) store_normed_rows(r, shared.roots);
        }
        // The next sums go to the other half, and those after them to this one when all have been here again.
        const uint32_t i = turn, row = i % 32 / 4;
        if (i < (to - from) * 32 && row < r.rows && (from + i / 32) * UNIT_PAIRS + i % 4 < pairs) {
            Sums total = {};
#pragma unroll 4
            for (uint32_t w = 0; w < filled; ++w) {
                total.a += sums[(i / 32 * warps + w) * 32 + i % 32].a;
                total.b += sums[(i / 32 * warps + w) * 32 + i % 32].b;
            }
            const float root = f.norm ? shared.roots[row] : 1.0f;
            const RowResult result = from == first ? early : result_of(from, i);
            result.finish(r, total.a / root, total.b / root);
        }
        odd ^= 1;
        turn =
            turn >= UNITS_AT_ONCE * 32 ? turn - UNITS_AT_ONCE * 32 : turn + blockDim.x - UNITS_AT_ONCE * 32;
    }
}

#define NOCOPY_FUSED_ROWS(name, B)                                 \
    extern "C" __global__ void __launch_bounds__(512, 1)           \
        name(const __grid_constant__ nocopy_fused_rows argument) { \
        fused_rows<B>(argument);                                   \
    }

NOCOPY_FUSED_ROWS(fused_rows_f16, F16Words)
NOCOPY_FUSED_ROWS(fused_rows_bf16, Bf16Words)
NOCOPY_FUSED_ROWS(fused_rows_q8_0, Q8_0)
NOCOPY_FUSED_ROWS(fused_rows_q4_0, Q4_0)
NOCOPY_FUSED_ROWS(fused_rows_q4_k, Q4_K)
NOCOPY_FUSED_ROWS(fused_rows_q5_k, Q5_K)
NOCOPY_FUSED_ROWS(fused_rows_q6_k, Q6_K)
