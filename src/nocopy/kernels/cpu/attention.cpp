// attention: out[r,h] = softmax over t <= last[r] of (scale q[r,h] . k[t,g]) times v[t,g], with h/g heads to
// each g
//
// Heads of a group share keys and values, so a task takes the queries of some rows and a group and walks over
// their tokens in tiles, with a running maximum and sum (online softmax): no score is stored longer than a
// tile. Keys and values are decoded to f32 once per task. A row never touches tokens that it does not see,
// which may hold anything. Bound: multiply-adds.
//
// Few rows (decoding) are bound by memory bandwidth. In a cache, groups lie side by side and tokens far
// apart, so a task takes all groups of a part of the tokens, and reads what is no block where it lies. The
// parts are combined.
#include "attention.hpp"

#include "ops.hpp"

namespace nocopy::NOCOPY_LEVEL {

namespace {

// body(span, group of the task, first token of the tile) for a tile's `count` tokens from t on: in steps of
// all groups for few queries.
template <class Body>
NOCOPY_INLINE void each_span(const Operand& x, const Task& task, int64_t t, int64_t count, const Body& body) {
    const int64_t step = task.few() ? STEP : TOKENS;
    for (int64_t s = 0; s < count; s += step)
        for (int64_t g = 0; g < task.groups; g++)
            body(Span{x, task.group + g, t + s, least(step, count - s)}, g, s);
}

// p[query][token] = q . k for a tile's tokens.
void dots(const Attention& a, const Task& task, const Work& w, int64_t t, int64_t count) {
    const int64_t width = a.width(), each = task.to_a_group();
    each_span(a.k, task, t, count, [&](const Span& span, int64_t g, int64_t s) {
        if (!task.few()) return many_dots(w, span, a.n, width, each);
        with_rows(w, span, a.n, width, [&](const auto* rows, int64_t pitch) {
            few_dots(rows, pitch, span.count, width, w.q + g * each * Q_PITCH, each,
                     w.p + g * each * P_PITCH + s);
        });
    });
}

// Walks over the tokens of a task that lie in [from, to).
void gather_tokens(const Attention& a, const Task& task, Team& team, int64_t from, int64_t to,
                   const Work& w) {
    const int64_t width = a.width(), queries = task.queries(), each = task.to_a_group();
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
        float* q = w.q + i * Q_PITCH;
        clear(q + a.n, width - a.n);
        read(q, a.q.dtype, at(a.q, task.row_of(i) * a.q.strides[0] + task.head_of(a, i) * a.q.strides[1]),
             a.q.strides[2], a.n);
        w.states[i] = {-__builtin_inff(), 0};
    }
    for (int64_t t = lowest; t < highest && !overdue(team); t += TOKENS) {
        const int64_t count = least(TOKENS, highest - t);
        const auto first = [&](int64_t r) { return least(count, most(0, starts[r] - t)); };
        const auto last = [&](int64_t r) { return most(first(r), least(count, stops[r] - t)); };
        dots(a, task, w, t, count);
        bool whole = true;
        for (int64_t r = 0; r < task.rows; r++) whole &= first(r) == 0 && last(r) == count;
        for (int64_t i = 0; i < queries; i++) {
            const int64_t r = task.row_of(i) - task.row;
            weigh(a, w, i, first(r), last(r));
        }
        each_span(a.v, task, t, count, [&](const Span& span, int64_t g, int64_t s) {
            with_rows(w, span, a.n, width, [&](const auto* rows, int64_t pitch) {
                const float* p = w.p + g * each * P_PITCH;
                float* gathered = w.gathered + g * each * width;
                if (whole) return gather_values(rows, pitch, span.count, width, p + s, each, gathered);
                for (int64_t r = 0; r < task.rows; r++) {
                    const int64_t low = most(first(r), s), high = least(last(r), s + span.count);
                    if (low < high)
                        gather_values(rows + (low - s) * pitch, pitch, high - low, width,
                                      p + r * task.heads * P_PITCH + low, task.heads,
                                      gathered + r * task.heads * width);
                }
            });
        });
    }
}

// A row that sees nothing gives zeros.
void put(const Attention& a, int64_t row, int64_t head, const float* gathered, float sum, bool sees) {
    alignas(64) float values[WIDEST];
    for (int64_t j = 0; j < a.n; j++) values[j] = sees ? gathered[j] / sum : 0;
    write(at(a.out, row * a.out.strides[0] + head * a.out.strides[1]), a.out.dtype, a.out.strides[2], values,
          a.n);
}

// How the work is cut: `groups`, `rows` and `heads` to a task, and each task into `parts` along the tokens.
struct Plan {
    int64_t groups, rows, heads, group_tasks, row_tasks, head_tasks, parts, part;

    Plan(const Attention& a, Team& team, int64_t longest) {
        constexpr int64_t SHORTEST = 4 * TOKENS;  // of a part
        // Small enough that a thread which joins late is missed for little longer than it was away.
        const int64_t wanted = 8 * (int64_t)threads(team);
        heads = least(a.per_group(), MOST_QUERIES);
        rows = least(a.rows, most(1, MOST_QUERIES / heads));
        row_tasks = ceil_div(a.rows, rows);
        head_tasks = ceil_div(a.per_group(), heads);
        const int64_t others = row_tasks * head_tasks;
        const bool few = are_few(rows * heads);
        groups = few ? least(a.groups, MOST_QUERIES / (rows * heads)) : 1;
        const int64_t room = (int64_t)SHARED_FLOATS / (a.rows * a.heads * (a.width() + 2));
        const int64_t most_parts = most(1, least(room, longest / SHORTEST));
        while (groups > 1 && ceil_div(a.groups, groups) * others * most_parts < wanted)
            groups = ceil_div(groups, 2);
        group_tasks = ceil_div(a.groups, groups);
        const int64_t tasks = group_tasks * others;
        parts = least(most_parts, ceil_div(wanted, tasks));
        if (!few && 2 * tasks >= wanted) parts = 1;
        const int64_t seen = most(longest, 1);
        part = ceil_div(ceil_div(seen, parts), TOKENS) * TOKENS;
        parts = ceil_div(seen, part);  // whole tiles may reach the end sooner: none begins beyond it
    }
    int64_t items() const { return group_tasks * row_tasks * head_tasks * parts; }
    Task task(const Attention& a, int64_t index) const {
        const int64_t group = index % group_tasks * groups, rest = index / group_tasks;
        const int64_t head = rest % head_tasks * heads, row = rest / head_tasks * rows;
        return {group, least(groups, a.groups - group),   row, least(rows, a.rows - row),
                head,  least(heads, a.per_group() - head)};
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
    const double elements = 2 * (double)(least(plan.part, longest) * plan.groups * a.n);
    const double cost = elements * (MULTIPLY_ADD_NS * (double)(plan.rows * plan.heads) + DECODE_NS) + 100;
    parallel(team, cut(team, plan.items(), cost), [&](int64_t begin, int64_t end, float* scratch) {
        const Work w(scratch, a.width());
        for (int64_t index = begin; index < end && !overdue(team); index++) {
            const int64_t part = index % plan.parts;
            const Task task = plan.task(a, index / plan.parts);
            gather_tokens(a, task, team, part * plan.part, least(longest, (part + 1) * plan.part), w);
            for (int64_t i = 0; i < task.queries(); i++) {
                const int64_t row = task.row_of(i), head = task.head_of(a, i);
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
    parallel(team, cut(team, a.rows * a.heads, (double)(plan.parts * (a.n + 50)) * DECODE_NS),
             [&](int64_t begin, int64_t end, float*) {
                 for (int64_t i = begin; i < end; i++) combine(a, plan, team, i / a.heads, i % a.heads);
             });
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
