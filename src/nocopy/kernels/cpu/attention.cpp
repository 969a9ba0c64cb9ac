// attention: out[r,h] = softmax over t <= last[r] of (scale q[r,h] . k[t,g]) times v[t,g], with h/g heads to
// each g
//
// Heads of a group share keys and values, so a task takes the queries of a few rows and one group and walks
// over their tokens in tiles, with a running maximum and sum (online softmax): no score is stored longer than
// a tile. Long caches and few tasks (decoding) are also cut along the tokens, and the parts combined. Keys
// and values of any type are decoded to f32 once per task. A row never touches tokens that it does not see,
// which may hold anything. Bound: memory bandwidth for one row, multiply-adds for many.
#include "math.hpp"
#include "ops.hpp"
#include "strips.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

constexpr int64_t TOKENS = 64;        // a tile
constexpr int64_t MOST_QUERIES = 64;  // of a task
constexpr int64_t WIDEST = 1024;      // elements of a head that the tiles are made for
constexpr int64_t Q_PITCH = WIDEST + 16, P_PITCH = TOKENS + 16;
static_assert(TOKENS % NR == 0);

struct Attention {
    int64_t rows, heads, n, tokens, groups, window;
    float scale, softcap;
    Operand out, q, k, v, last;

    int64_t per_group() const { return heads / groups; }
    int64_t width() const { return ceil_div(n, W) * W; }
    // Tokens that a row sees: indices are data, so they are clamped.
    int64_t stop(int64_t row) const {
        const int64_t seen = *reinterpret_cast<const volatile int32_t*>(at(last, row * last.strides[0]));
        return most(0, least(seen + 1, tokens));
    }
    int64_t start(int64_t stop) const { return window ? most(0, stop - window) : 0; }

    F score(F dot) const {
        const F x = scale * dot;
        return softcap != 0 ? softcap * tanh(x / softcap) : x;
    }
};

// Some rows, times some heads of one group: queries in this order.
struct Task {
    int64_t row, rows, group, head, heads;
    int64_t queries() const { return rows * heads; }
};

// What a query has gathered so far.
struct State {
    float largest, sum;
};

struct Work {
    float *q, *gathered, *tile, *turned, *p, *zeros;
    State* states;

    Work(float* scratch, int64_t width)
        : q(scratch),
          gathered(q + MOST_QUERIES * Q_PITCH),
          tile(gathered + MOST_QUERIES * width),
          turned(tile + TOKENS * width),
          p(turned + NR * width),
          zeros(p + MOST_QUERIES * P_PITCH),
          states(reinterpret_cast<State*>(zeros + width)) {}
};
static_assert(MOST_QUERIES * Q_PITCH + (MOST_QUERIES + TOKENS + NR + 1) * WIDEST + MOST_QUERIES * P_PITCH +
                  2 * MOST_QUERIES <=
              (int64_t)SCRATCH_FLOATS);

void clear(float* x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = 0;
}

// Tokens `first` .. first + count of keys or values as f32 rows, `width` apart.
void read_tile(const Attention& a, const Operand& x, int64_t group, int64_t first, int64_t count,
               float* tile) {
    for (int64_t i = 0; i < count; i++)
        read(tile + i * a.width(), x.dtype, at(x, (first + i) * x.strides[0] + group * x.strides[1]),
             x.strides[2], a.n);
}

// p[query][token] = q . k, for many queries: keys are turned, so that lanes are tokens.
void many_dots(const Attention& a, const Work& w, int64_t queries, int64_t count) {
    for (int64_t c = 0; c < count; c += NR) {
        const float* lines[NR];
        for (int64_t i = 0; i < NR; i++) lines[i] = c + i < count ? w.tile + (c + i) * a.width() : w.zeros;
        interleave<NR>(w.turned, lines, a.n);
        outer_rows<NV, Q_PITCH>(queries, a.n, w.q, w.turned, NR, w.p + c, P_PITCH, false, nullptr);
    }
}

// The same for few: lanes run along the head.
void few_dots(const Attention& a, const Work& w, int64_t queries, int64_t count) {
    constexpr int AT_ONCE = 4;
    const int64_t width = a.width();
    for (int64_t i = 0; i < count; i += AT_ONCE)
        for (int64_t query = 0; query < queries; query++) {
            const float* q = w.q + query * Q_PITCH;
            F sums[AT_ONCE] = {};
            for (int64_t j = 0; j < width; j += W)
                for (int t = 0; t < AT_ONCE; t++)  // past `count` lies the tile's older content
                    sums[t] += load(q + j) * load(w.tile + (i + t) * width + j);
            for (int t = 0; t < AT_ONCE; t++) w.p[query * P_PITCH + i + t] = sum_lanes(sums[t]);
        }
}

// Scores to weights for tokens [first, last) of the tile, 0 for the others; rescales what was gathered.
void weigh(const Attention& a, const Work& w, int64_t query, int64_t first, int64_t last) {
    float* p = w.p + query * P_PITCH;
    State& state = w.states[query];
    if (first >= last) return;
    I lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    const F nothing = set(-__builtin_inff());
    F highest = set(state.largest);
    for (int64_t i = first / W * W; i < last; i += W) {
        const I token = lane + (int32_t)i;
        const F x = (token >= (int32_t)first) & (token < (int32_t)last) ? a.score(load(p + i)) : nothing;
        store(p + i, x);
        highest = x > highest ? x : highest;
    }
    float largest = highest[0];
    for (int i = 1; i < W; i++) largest = highest[i] > largest ? highest[i] : largest;
    // Where all scores are -infinity so far, any base will do: their weights are 0.
    const float base = largest == -__builtin_inff() ? 0 : largest;
    F sums{};
    for (int64_t i = first / W * W; i < last; i += W) {
        const F weight = exp(load(p + i) - base);
        store(p + i, weight);
        sums += weight;
    }
    const float factor = exp(set(state.largest - base))[0];
    state.sum = state.sum * factor + sum_lanes(sums);
    state.largest = largest;
    if (factor == 1) return;
    float* gathered = w.gathered + query * a.width();
    for (int64_t j = 0; j < a.width(); j += W) store(gathered + j, load(gathered + j) * factor);
}

// gathered[query] += weights times values, for queries that all see tokens [first, last) of the tile.
void gather_values(const Attention& a, const Work& w, int64_t query, int64_t queries, int64_t first,
                   int64_t last) {
    const int64_t width = a.width();
    const float *p = w.p + query * P_PITCH + first, *values = w.tile + first * width;
    float* to = w.gathered + query * width;
    for (int64_t j = 0; j < width; j += NR) {
        const auto kernel = width - j < NR ? outer_rows<1, P_PITCH> : outer_rows<NV, P_PITCH>;
        kernel(queries, last - first, p, values + j, width, to + j, width, true, nullptr);
    }
}

// Walks over the tokens of a task that lie in [from, to).
void gather_tokens(const Attention& a, const Task& task, Team& team, int64_t from, int64_t to,
                   const Work& w) {
    constexpr int64_t MANY = 8;
    const int64_t width = a.width(), queries = task.queries();
    clear(w.gathered, queries * width);
    clear(w.tile, TOKENS * width);
    clear(w.zeros, width);
    int64_t starts[MOST_QUERIES], stops[MOST_QUERIES], lowest = to, highest = from;
    for (int64_t r = 0; r < task.rows; r++) {
        stops[r] = a.stop(task.row + r);
        starts[r] = most(from, a.start(stops[r]));
        stops[r] = least(to, stops[r]);
        if (starts[r] >= stops[r]) continue;
        lowest = least(lowest, starts[r]);
        highest = most(highest, stops[r]);
    }
    for (int64_t i = 0; i < queries; i++) {
        const int64_t head = task.group * a.per_group() + task.head + i % task.heads;
        float* q = w.q + i * Q_PITCH;
        clear(q + a.n, width - a.n);
        read(q, a.q.dtype, at(a.q, (task.row + i / task.heads) * a.q.strides[0] + head * a.q.strides[1]),
             a.q.strides[2], a.n);
        w.states[i] = {-__builtin_inff(), 0};
    }
    for (int64_t t = lowest; t < highest && !overdue(team); t += TOKENS) {
        const int64_t count = least(TOKENS, highest - t);
        const auto first = [&](int64_t r) { return least(count, most(0, starts[r] - t)); };
        const auto last = [&](int64_t r) { return most(first(r), least(count, stops[r] - t)); };
        read_tile(a, a.k, task.group, t, count, w.tile);
        queries < MANY ? few_dots(a, w, queries, count) : many_dots(a, w, queries, count);
        bool whole = true;
        for (int64_t r = 0; r < task.rows; r++) {
            for (int64_t i = 0; i < task.heads; i++) weigh(a, w, r * task.heads + i, first(r), last(r));
            whole &= first(r) == 0 && last(r) == count;
        }
        read_tile(a, a.v, task.group, t, count, w.tile);
        if (whole) {
            gather_values(a, w, 0, queries, 0, count);
            continue;
        }
        for (int64_t r = 0; r < task.rows; r++)
            if (first(r) < last(r)) gather_values(a, w, r * task.heads, task.heads, first(r), last(r));
    }
}

// A row that sees nothing gives zeros.
void put(const Attention& a, int64_t row, int64_t head, const float* gathered, float sum, bool sees) {
    alignas(64) float values[WIDEST];
    for (int64_t j = 0; j < a.n; j++) values[j] = sees ? gathered[j] / sum : 0;
    write(at(a.out, row * a.out.strides[0] + head * a.out.strides[1]), a.out.dtype, a.out.strides[2], values,
          a.n);
}

// How the work is cut: `rows` and `heads` to a task, and each task into `parts` along the tokens.
struct Plan {
    int64_t rows, heads, row_tasks, head_tasks, parts, part;

    Plan(const Attention& a, Team& team, int64_t longest) {
        heads = least(a.per_group(), MOST_QUERIES);
        rows = most(1, MOST_QUERIES / heads);
        row_tasks = ceil_div(a.rows, rows);
        head_tasks = ceil_div(a.per_group(), heads);
        constexpr int64_t SHORTEST = 4 * TOKENS;  // of a part
        const int64_t wanted = ceil_div(4 * (int64_t)threads(team), tasks(a));
        const int64_t room = (int64_t)SHARED_FLOATS / (a.rows * a.heads * (a.width() + 2));
        parts = most(1, least(least(wanted, room), longest / SHORTEST));
        if (tasks(a) >= 2 * (int64_t)threads(team)) parts = 1;
        part = ceil_div(ceil_div(most(longest, 1), parts), TOKENS) * TOKENS;
    }
    int64_t tasks(const Attention& a) const { return row_tasks * head_tasks * a.groups; }
    Task task(const Attention& a, int64_t index) const {
        const int64_t group = index % a.groups, rest = index / a.groups;
        const int64_t head = rest % head_tasks * heads, row = rest / head_tasks * rows;
        return {row, least(rows, a.rows - row), group, head, least(heads, a.per_group() - head)};
    }
};

// A query's share of the tokens, kept until all parts are there: its state, then its values.
float* kept(const Attention& a, const Plan& plan, Team& team, int64_t row, int64_t head, int64_t part) {
    return shared(team) + ((row * a.heads + head) * plan.parts + part) * (a.width() + 2);
}

void combine(const Attention& a, const Plan& plan, Team& team, int64_t row, int64_t head) {
    float largest = -__builtin_inff(), sum = 0;
    for (int64_t i = 0; i < plan.parts; i++) {
        const float x = kept(a, plan, team, row, head, i)[0];
        largest = x > largest ? x : largest;
    }
    const float base = largest == -__builtin_inff() ? 0 : largest;
    alignas(64) float values[WIDEST] = {};
    for (int64_t i = 0; i < plan.parts; i++) {
        const float* part = kept(a, plan, team, row, head, i);
        const float factor = exp(set(part[0] - base))[0];
        sum += part[1] * factor;
        for (int64_t j = 0; j < a.n; j++) values[j] += part[2 + j] * factor;
    }
    const int64_t stop = a.stop(row);
    put(a, row, head, values, sum, stop > a.start(stop));
}

void run_tasks(const Attention& a, Team& team, int64_t longest) {
    const Plan plan(a, team, longest);
    constexpr double MULTIPLY_ADD_NS = 0.03, DECODE_NS = 0.3;
    const double elements = 2 * (double)(least(plan.part, longest) * a.n);
    const double cost = elements * (MULTIPLY_ADD_NS * (double)(plan.rows * plan.heads) + DECODE_NS) + 100;
    parallel(
        team, cut(team, plan.tasks(a) * plan.parts, cost), [&](int64_t begin, int64_t end, float* scratch) {
            const Work w(scratch, a.width());
            for (int64_t index = begin; index < end && !overdue(team); index++) {
                const int64_t part = index % plan.parts;
                const Task task = plan.task(a, index / plan.parts);
                gather_tokens(a, task, team, part * plan.part, least(longest, (part + 1) * plan.part), w);
                for (int64_t i = 0; i < task.queries(); i++) {
                    const int64_t row = task.row + i / task.heads;
                    const int64_t head = task.group * a.per_group() + task.head + i % task.heads;
                    const float* gathered = w.gathered + i * a.width();
                    if (plan.parts == 1) {
                        const int64_t stop = a.stop(row);
                        put(a, row, head, gathered, w.states[i].sum, stop > a.start(stop));
                        continue;
                    }
                    float* to = kept(a, plan, team, row, head, part);
                    to[0] = w.states[i].largest;
                    to[1] = w.states[i].sum;
                    for (int64_t j = 0; j < a.n; j++) to[2 + j] = gathered[j];
                }
            }
        });
    if (plan.parts == 1) return;
    for (int64_t row = 0; row < a.rows; row++)
        for (int64_t head = 0; head < a.heads; head++) combine(a, plan, team, row, head);
}

// Heads of more than WIDEST elements, which no model has: three passes over the tokens, scores made anew for
// every piece of the output.
struct Wide {
    const Attention& a;
    int64_t row, head, group;

    float score(int64_t token) const {
        alignas(64) float x[TILE] = {}, y[TILE] = {};
        F sums{};
        for (int64_t i = 0; i < a.n; i += TILE) {
            const int64_t count = least(TILE, a.n - i);
            const Operand &q = a.q, &k = a.k;
            read(x, q.dtype, at(q, row * q.strides[0] + head * q.strides[1] + i * q.strides[2]), q.strides[2],
                 count);
            read(y, k.dtype, at(k, token * k.strides[0] + group * k.strides[1] + i * k.strides[2]),
                 k.strides[2], count);
            for (int64_t j = count; j < TILE; j++) x[j] = y[j] = 0;
            for (int64_t j = 0; j < TILE; j += W) sums += load(x + j) * load(y + j);
        }
        return a.score(set(sum_lanes(sums)))[0];
    }

    void run(Team& team) const {
        const int64_t stop = a.stop(row), start = a.start(stop);
        float largest = -__builtin_inff(), sum = 0;
        for (int64_t t = start; t < stop && !overdue(team); t++) {
            const float x = score(t);
            largest = x > largest ? x : largest;
        }
        const Operand &out = a.out, &v = a.v;
        alignas(64) float values[TILE], tile[TILE];
        for (int64_t i = 0; i < a.n; i += TILE) {
            const int64_t count = least(TILE, a.n - i);
            clear(values, TILE);
            sum = 0;
            for (int64_t t = start; t < stop && !overdue(team); t++) {
                const float weight = exp(set(score(t) - largest))[0];
                sum += weight;
                read(tile, v.dtype, at(v, t * v.strides[0] + group * v.strides[1] + i * v.strides[2]),
                     v.strides[2], count);
                for (int64_t j = 0; j < count; j++) values[j] += weight * tile[j];
            }
            for (int64_t j = 0; j < count && stop > start; j++) values[j] /= sum;
            write(at(out, row * out.strides[0] + head * out.strides[1] + i * out.strides[2]), out.dtype,
                  out.strides[2], values, count);
        }
    }
};

}  // namespace

void attention(const Args& args, Team& team) {
    const Attention a{args.dims[0],     args.dims[1],     args.dims[2],    args.dims[3],     args.dims[4],
                      args.params[2],   param(args, 0),   param(args, 1),  args.operands[0], args.operands[1],
                      args.operands[2], args.operands[3], args.operands[4]};
    if (a.rows == 0 || a.heads == 0 || a.n == 0) return;
    if (a.n > WIDEST) {
        constexpr double COST_NS = 1e6;
        parallel(team, cut(team, a.rows * a.heads, COST_NS), [&](int64_t first, int64_t end, float*) {
            for (int64_t i = first; i < end; i++)
                Wide{a, i / a.heads, i % a.heads, i % a.heads / a.per_group()}.run(team);
        });
        return;
    }
    int64_t longest = 0;
    for (int64_t row = 0; row < a.rows; row++) longest = most(longest, a.stop(row));
    run_tasks(a, team, longest);
}

}  // namespace nocopy::NOCOPY_LEVEL
