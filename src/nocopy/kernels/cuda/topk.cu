// argmax: out[d0,d1,d2] = lowest n where x[d0,d1,d2,n] is largest.
// topk: values[d0,d1,d2,k], indices[d0,d1,d2,k] = the k largest of x over n, in falling order, ties by lowest
// index. NaN counts as -infinity in both.
//
// Both order elements by the keys of keys.cuh. topk takes a block a row and up to CHUNK results at a time: a
// radix selection finds the key of the last one, eight bits a pass; the keys from there on are collected in
// shared memory and sorted. The next chunk continues below that key. Should x change meanwhile, the result is
// any, but no index leaves its range. Bound: the bytes of x, times the passes.
#include "keys.cuh"
#include "rows.cuh"
#include "split.cuh"

constexpr uint32_t CHUNK = 1024;
constexpr uint32_t DIGITS = 256;

NOCOPY_KERNEL(argmax, 1024, 1) {
    Tensor out(launch, 0), x(launch, 1);
    each_row(launch, [&](const Row& row) {
        uint64_t start = x.at(row.i0, row.i1, row.i2);
        auto key = [&](uint64_t i) { return rank_key(load(x, start + i * x.strides[3]), i); };
        uint64_t best = row_combine(launch, launch.record.dims[3], (uint64_t)0, key, Larger());
        if (threadIdx.x == 0) out.as<int32_t>()[out.at(row.i0, row.i1, row.i2)] = (int32_t)index_of(best);
    });
}

// The same for few long rows: launch.splits blocks a row.
NOCOPY_KERNEL(argmax_split, 256, 4) {
    Tensor out(launch, 0), x(launch, 1);
    const uint32_t* d = launch.record.dims;
    const uint64_t n = d[3], row = blockIdx.x / launch.splits, split = blockIdx.x % launch.splits;
    const uint64_t i2 = row % d[2], i1 = row / d[2] % d[1], i0 = row / d[2] / d[1];
    const uint64_t first = n * split / launch.splits, stop = n * (split + 1) / launch.splits;
    const uint64_t start = x.at(i0, i1, i2) + first * x.strides[3];
    uint64_t* parts = (uint64_t*)launch.workspace + row * launch.splits;
    auto key = [&](uint64_t i) { return rank_key(load(x, start + i * x.strides[3]), first + i); };
    uint64_t best = row_combine(launch, stop - first, (uint64_t)0, key, Larger());
    if (threadIdx.x == 0) parts[split] = best;
    if (!last_of(launch, row, (uint32_t)launch.splits)) return;
    auto part = [&](uint64_t i) { return *(volatile uint64_t*)(parts + i); };
    best = row_combine(launch, launch.splits, (uint64_t)0, part, Larger());
    if (threadIdx.x == 0) out.as<int32_t>()[out.at(i0, i1, i2)] = (int32_t)index_of(best);
}

struct Selection {
    uint32_t histogram[DIGITS];
    uint64_t keys[CHUNK];
    uint64_t prefix;  // the digits of the wanted key that are known
    uint32_t wanted;  // its rank among the keys with that prefix, counted from 1
    uint32_t found;
    bool done;  // all keys with that prefix are wanted
};

// The digit of the wanted key: the one where the count of keys from above reaches `wanted`.
__device__ inline void choose_digit(Selection& s, int shift) {
    int digit = DIGITS - 1;
    while (digit > 0 && s.histogram[digit] < s.wanted) s.wanted -= s.histogram[digit--];
    s.prefix |= (uint64_t)digit << shift;
    s.done = s.histogram[digit] == s.wanted;
}

// The smallest of the `wanted` largest keys that are at most `upper`, or a bound just below it.
template <typename Key>
__device__ inline uint64_t select_key(Selection& s, uint64_t n, Key key, uint64_t upper, uint32_t wanted) {
    if (threadIdx.x == 0) {
        s.prefix = 0;
        s.wanted = wanted;
    }
    uint64_t mask = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (uint32_t d = threadIdx.x; d < DIGITS; d += blockDim.x) s.histogram[d] = 0;
        __syncthreads();
        row_each(n, [&](uint64_t i) {
            uint64_t k = key(i);
            if (k <= upper && (k & mask) == s.prefix) atomicAdd(&s.histogram[(k >> shift) % DIGITS], 1u);
        });
        __syncthreads();
        if (threadIdx.x == 0) choose_digit(s, shift);
        __syncthreads();
        if (s.done) break;
        mask |= (uint64_t)(DIGITS - 1) << shift;
    }
    return s.prefix;
}

// Sorts keys[0..size) so that they fall; size is a power of two (a bitonic network).
__device__ inline void sort_falling(uint64_t* keys, uint32_t size) {
    for (uint32_t run = 2; run <= size; run *= 2) {
        for (uint32_t gap = run / 2; gap; gap /= 2) {
            for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) {
                uint32_t j = i ^ gap;
                if (j <= i) continue;
                uint64_t a = keys[i], b = keys[j];
                if ((a < b) == ((i & run) == 0)) {
                    keys[i] = b;
                    keys[j] = a;
                }
            }
            __syncthreads();
        }
    }
}

NOCOPY_KERNEL(topk, 1024, 1) {
    __shared__ Selection s;
    Tensor values(launch, 0), indices(launch, 1), x(launch, 2);
    uint64_t n = launch.record.dims[3], k = launch.record.dims[4];
    each_row(launch, [&](const Row& row) {
        uint64_t from = x.at(row.i0, row.i1, row.i2);
        uint64_t to_value = values.at(row.i0, row.i1, row.i2), to_index = indices.at(row.i0, row.i1, row.i2);
        auto value = [&](uint64_t i) { return load(x, from + i * x.strides[3]); };
        auto key = [&](uint64_t i) { return rank_key(value(i), i); };
        uint64_t upper = ~(uint64_t)0;
        for (uint64_t done = 0; done < k; done += CHUNK) {
            if (block_stopped(launch)) return;
            uint32_t wanted = (uint32_t)min(k - done, (uint64_t)CHUNK);
            uint64_t lowest = n <= CHUNK ? 0 : select_key(s, n, key, upper, wanted);
            if (threadIdx.x == 0) s.found = 0;
            __syncthreads();
            row_each(n, [&](uint64_t i) {
                uint64_t candidate = key(i);
                if (candidate < lowest || candidate > upper) return;
                uint32_t slot = atomicAdd(&s.found, 1u);
                if (slot < CHUNK) s.keys[slot] = candidate;
            });
            __syncthreads();
            uint32_t size = 1;
            while (size < max(s.found, wanted) && size < CHUNK) size *= 2;
            for (uint32_t i = s.found + threadIdx.x; i < size; i += blockDim.x) s.keys[i] = 0;
            __syncthreads();
            sort_falling(s.keys, size);
            row_each(wanted, [&](uint64_t i) {
                uint64_t index = min((uint64_t)index_of(s.keys[i]), n - 1);
                float v = value(index);
                if (v != v) v = __uint_as_float(0xff800000);
                store(values, to_value + (done + i) * values.strides[3], v);
                indices.as<int32_t>()[to_index + (done + i) * indices.strides[3]] = (int32_t)index;
            });
            upper = s.keys[wanted - 1] - 1;
            __syncthreads();  // all have read the keys
        }
    });
}
