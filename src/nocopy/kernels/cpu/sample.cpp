// How a token is chosen from scores.
//
//     penalize  out[r,n] = x; where n is among recent[r,w]: shrunk or grown, less frequency and presence
//     sample    out[r] = an n drawn from x[r,n] with weights 2^(steepness x), among top_k, top_p, min_p
//
// tape/reference_sample.py says what each number means; here, too, weights are whole numbers, so that every
// player draws the same. sample finds where top_k and top_p end in two steps: a histogram over the distance
// from the largest score, then a radix selection among the elements of one of its buckets. Bound: the
// weights, some nanoseconds an element and pass, up to four passes.
#include "lines.hpp"
#include "ops.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

constexpr float LOG2_E = 1.44269504f, SMALLEST = 0x1p-126f, FURTHEST = 63;
constexpr uint64_t WHOLE = uint64_t{1} << 40;
constexpr int64_t BUCKETS = 2048;  // of 1/64 each in the score; the last one is for all that is further
constexpr float BUCKETS_PER_ONE = 64;
constexpr int64_t BLOCK = 256;  // scores whose weights are computed at a time

__extension__ typedef unsigned __int128 U128;

struct Choice {
    float steepness, top_p, min_p;
    int64_t top_k;
    uint64_t seed, draw;
};

float number(const Operand& operand, int64_t row, int64_t i) {
    return *reinterpret_cast<const float*>(at(operand, row * operand.strides[0] + i * operand.strides[1]));
}

uint32_t word(const Operand& operand, int64_t row, int64_t i) {
    return *reinterpret_cast<const uint32_t*>(at(operand, row * operand.strides[0] + i * operand.strides[1]));
}

Choice choice_of(const Args& args, int64_t row) {
    const Operand &options = args.operands[2], &state = args.operands[3];
    const uint64_t seed = word(state, row, 1) | (uint64_t)word(state, row, 2) << 32;
    const uint64_t draw = word(state, row, 3) | (uint64_t)word(state, row, 4) << 32;
    return {number(options, row, 0),
            number(options, row, 1),
            number(options, row, 2),
            (int32_t)word(state, row, 0),
            seed,
            draw + args.params[0]};
}

uint64_t high_product(uint64_t a, uint64_t b) {
    return (uint64_t)((U128)a * b >> 64);
}

// The first word of Philox4x64-10 with key `seed` and counter `draw` + 1.
uint64_t random_bits(uint64_t seed, uint64_t draw) {
    uint64_t counter[4] = {draw + 1, draw + 1 == 0, 0, 0}, key[2] = {seed, 0};
    for (int round = 0; round < 10; round++) {
        const uint64_t a = counter[0], b = counter[2];
        counter[0] = high_product(0xCA5A826395121157, b) ^ counter[1] ^ key[0];
        counter[1] = 0xCA5A826395121157 * b;
        counter[2] = high_product(0xD2E7470EE14C6C93, a) ^ counter[3] ^ key[1];
        counter[3] = 0xD2E7470EE14C6C93 * a;
        key[0] += 0x9E3779B97F4A7C15;
        key[1] += 0xBB67AE8584CAA73B;
    }
    return counter[0];
}

// 2^(40 - steepness below), rounded down. Integers as narrow as they can be, so that it becomes vectors.
NOCOPY_INLINE uint64_t weight(float below, float steepness) {
    float halvings = below < SMALLEST ? 0.0f : below * steepness;
    halvings = halvings < FURTHEST ? halvings : FURTHEST;
    const uint32_t q = (uint32_t)(int32_t)(halvings * 0x1p24f), fraction = q & 0xffffff;
    constexpr uint32_t TERMS[] = {NOCOPY_EXP2_0, NOCOPY_EXP2_1, NOCOPY_EXP2_2, NOCOPY_EXP2_3,
                                  NOCOPY_EXP2_4, NOCOPY_EXP2_5, NOCOPY_EXP2_6, NOCOPY_EXP2_7};
    uint32_t p = TERMS[7];
    for (int i = 6; i >= 0; i--) p = TERMS[i] - (uint32_t)((uint64_t)p * fraction >> 24);
    return (uint64_t)p << 10 >> (q >> 24);
}

// A part of one in 2^-32 ths; at most 2^32.
uint64_t part(float p) {
    return p >= 1 ? uint64_t{1} << 32 : p > 0 ? (uint64_t)((double)p * 0x1p32) : 0;
}

// total * part(p) / 2^32, rounded down.
uint64_t part_of(uint64_t total, uint64_t p) {
    return (uint64_t)((U128)total * p >> 32);
}

// Falls with rank: larger scores first, then lower indices; -0 equals 0.
NOCOPY_INLINE uint64_t key_of(float score, int64_t index) {
    const uint32_t bits = score == 0 ? 0 : as<uint32_t>(score);
    const uint32_t order = bits >> 31 ? ~bits : bits | 0x80000000;
    return (uint64_t)order << 32 | (uint32_t)~(uint32_t)index;
}

NOCOPY_INLINE float score_of(uint64_t key) {
    const uint32_t order = (uint32_t)(key >> 32);
    return as<float>(order >> 31 ? order & 0x7fffffff : ~order);
}

// Of n keys, the one at which the weights, summed from the largest key down, reach `wanted`.
template <class Weight>
uint64_t select(const uint64_t* keys, int64_t n, uint64_t wanted, const Weight& weight_of) {
    uint64_t prefix = 0, mask = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        uint64_t sums[256] = {};
        for (int64_t i = 0; i < n; i++)
            if ((keys[i] & mask) == prefix) sums[keys[i] >> shift & 255] += weight_of(keys[i]);
        int digit = 255;
        while (digit > 0 && sums[digit] < wanted) wanted -= sums[digit--];
        prefix |= (uint64_t)digit << shift;
        mask |= (uint64_t)255 << shift;
    }
    return prefix;
}

// One row of scores that are no NaN, the largest of them finite.
struct Row {
    const float* scores;
    int64_t n;
    float top;
    uint64_t* keys;                   // room for n
    uint64_t lowest = 0;              // the least key that is kept
    float floor = -__builtin_inff();  // its score

    int64_t bucket(float score) const {
        const float at = (top - score) * BUCKETS_PER_ONE;
        return at < (float)(BUCKETS - 1) ? (int64_t)at : BUCKETS - 1;
    }

    bool kept(int64_t i) const { return scores[i] >= floor && key_of(scores[i], i) >= lowest; }

    // Calls f(start, count) for the blocks that may have something that is kept, until it returns false.
    template <class Function>
    void each_block(const Function& f) const {
        for (int64_t start = 0; start < n; start += BLOCK) {
            const int64_t count = least(BLOCK, n - start);
            if (largest(scores + start, count) >= floor && !f(start, count)) return;
        }
    }

    // Keeps the elements up to the one at which the weights, summed in order, reach `wanted`. `sums` are
    // those of the buckets.
    template <class Weight>
    void cut(const uint64_t* sums, uint64_t wanted, const Weight& weight_of) {
        int64_t at = 0;
        while (at < BUCKETS - 1 && sums[at] < wanted) wanted -= sums[at++];
        int64_t listed = 0;
        each_block([&](int64_t start, int64_t count) {
            for (int64_t i = start; i < start + count; i++)
                if (kept(i) && bucket(scores[i]) == at) keys[listed++] = key_of(scores[i], i);
            return true;
        });
        lowest = select(keys, listed, wanted, weight_of);
        floor = score_of(lowest);
    }

    void keep_top_k(int64_t k) {
        if (k <= 0 || k >= n) return;
        // If k blocks have a largest score, so many scores are at least the least of these.
        int64_t blocks = 0;
        for (int64_t start = 0; start < n; start += BLOCK)
            keys[blocks++] = key_of(largest(scores + start, least(BLOCK, n - start)), start);
        if (k <= blocks)
            floor = score_of(select(keys, blocks, (uint64_t)k, [](uint64_t) { return uint64_t{1}; }));
        uint64_t counts[BUCKETS] = {};
        each_block([&](int64_t start, int64_t count) {
            for (int64_t i = start; i < start + count; i++)
                if (scores[i] >= floor) counts[bucket(scores[i])]++;
            return true;
        });
        cut(counts, (uint64_t)k, [](uint64_t) { return uint64_t{1}; });
    }

    void keep_top_p(float p) {
        if (!(p < 1)) return;
        uint64_t sums[BUCKETS] = {}, total = 0;
        each_weight(LOG2_E, [&](int64_t i, uint64_t w) {
            sums[bucket(scores[i])] += w;
            total += w;
            return true;
        });
        const uint64_t wanted = part_of(total, part(p));
        cut(sums, wanted ? wanted : 1, [&](uint64_t key) { return weight(top - score_of(key), LOG2_E); });
    }

    // Calls f(index, weight) for what is kept, by rising index, until it returns false.
    template <class Function>
    void each_weight(float steepness, const Function& f) const {
        uint64_t some[BLOCK];
        each_block([&](int64_t start, int64_t count) {
            for (int64_t i = 0; i < count; i++) some[i] = weight(top - scores[start + i], steepness);
            for (int64_t i = start; i < start + count; i++)
                if (some[i - start] && kept(i) && !f(i, some[i - start])) return false;
            return true;
        });
    }

    int64_t draw(float steepness, float min_p, uint64_t bits) const {
        const uint64_t least_likely = part_of(WHOLE, part(min_p));
        const auto likely = [&](int64_t i) {
            return least_likely == 0 || weight(top - scores[i], LOG2_E) >= least_likely;
        };
        uint64_t total = 0;
        each_weight(steepness, [&](int64_t i, uint64_t w) {
            if (likely(i)) total += w;
            return true;
        });
        const uint64_t target = high_product(bits, total);
        uint64_t sum = 0;
        int64_t found = 0;
        each_weight(steepness, [&](int64_t i, uint64_t w) {
            if (!likely(i)) return true;
            sum += w;
            found = i;
            return sum <= target;
        });
        return found;
    }
};

int64_t sample_row(const float* scores, int64_t n, uint64_t* keys, const Choice& choice) {
    const float top = largest(scores, n);
    if (!(top - top == 0)) return -1;
    if (!(choice.steepness >= SMALLEST)) return find(scores, n, top);
    Row row{scores, n, top, keys};
    row.keep_top_k(choice.top_k);
    row.keep_top_p(choice.top_p);
    return row.draw(choice.steepness, choice.min_p, random_bits(choice.seed, choice.draw));
}

// Costs for a token that comes `times` times. Each step is rounded on its own: a fused one would give other
// scores than other players have.
float penalized(float score, const float* options, float times) {
    volatile float scaled = score > 0 ? score * options[0] : score * options[1];
    volatile float often = times * options[2];
    volatile float less = scaled - often;
    return less - options[3];
}

void penalize_row(const Args& args, int64_t row) {
    const Operand &out = args.operands[0], &x = args.operands[1], &recent = args.operands[2];
    const int64_t n = args.dims[1], count = args.dims[2];
    float options[4];
    for (int i = 0; i < 4; i++) options[i] = number(args.operands[3], row, i);
    for (int64_t i = 0; i < count; i++) {
        const int64_t token = (int32_t)word(recent, row, i);
        if (token < 0 || token >= n) continue;
        int64_t times = 0, first = i;
        for (int64_t j = 0; j < count; j++) {
            if ((int32_t)word(recent, row, j) != token) continue;
            times++;
            first = least(first, j);
        }
        if (first != i) continue;
        float score;
        read(&score, x.dtype, at(x, row * x.strides[0] + token * x.strides[1]), 1, 1);
        score = penalized(score, options, (float)times);
        write(at(out, row * out.strides[0] + token * out.strides[1]), out.dtype, 1, &score, 1);
    }
}

void copy_row(const Args& args, int64_t row, float* scratch) {
    const Operand &out = args.operands[0], &x = args.operands[1];
    constexpr int64_t PIECE = 4096;
    for (int64_t i = 0; i < args.dims[1]; i += PIECE) {
        const int64_t count = least(PIECE, args.dims[1] - i);
        read(scratch, x.dtype, at(x, row * x.strides[0] + i * x.strides[1]), x.strides[1], count);
        write(at(out, row * out.strides[0] + i * out.strides[1]), out.dtype, out.strides[1], scratch, count);
    }
}

}  // namespace

void penalize(const Args& args, Team& team) {
    if (args.dims[1] == 0) return;
    const double n = (double)args.dims[1], w = (double)args.dims[2];
    constexpr double ELEMENT_NS = 0.3, COMPARE_NS = 0.5;
    parallel(team, cut(team, args.dims[0], ELEMENT_NS * n + COMPARE_NS * w * w),
             [&](int64_t first, int64_t last, float* scratch) {
                 for (int64_t row = first; row < last; row++) {
                     if (row > first && overdue(team)) return;
                     copy_row(args, row, scratch);
                     penalize_row(args, row);
                 }
             });
}

// One row after another on the caller's thread: the room for keys and scores is shared.
void sample(const Args& args, Team& team) {
    const Operand &out = args.operands[0], &x = args.operands[1];
    const int64_t rows = args.dims[0], n = args.dims[1];
    static_assert(SHARED_FLOATS >= 3 * 2097152, "ops.MAX_SAMPLED scores with their keys");
    uint64_t* const keys = reinterpret_cast<uint64_t*>(shared(team));
    float* const scores = reinterpret_cast<float*>(keys + n);
    for (int64_t row = 0; row < rows; row++) {
        if (overdue(team)) return;
        read(scores, x.dtype, at(x, row * x.strides[0]), x.strides[1], n);
        for (int64_t i = 0; i < n; i++) scores[i] = scores[i] == scores[i] ? scores[i] : -__builtin_inff();
        const int64_t found = sample_row(scores, n, keys, choice_of(args, row));
        *reinterpret_cast<int32_t*>(at(out, row * out.strides[0])) = (int32_t)found;
    }
}

}  // namespace nocopy::NOCOPY_LEVEL
