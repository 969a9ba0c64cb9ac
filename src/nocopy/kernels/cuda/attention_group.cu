// attention (attention.cu has the formula) of many rows over a session's cache in 16 bits, by warpgroups,
// each of which has 64 rows of one head. Another one brings keys and values to a ring in shared memory, 64
// tokens at a time; warpgroups walk over it with online softmax, each at its own pace, so that one multiplies
// while another weighs. Weights are multiplied with values while the next scores are made.
// Blocks with the most tokens come first, as the last of a causal prompt have. Bound: arithmetic.
#include "attention_tensor.cuh"
#include "barrier.cuh"
#include "wgmma.cuh"

#if GROUPS_MULTIPLY

constexpr uint32_t GROUP_THREADS = 128, GROUP_ROWS = 64, GROUP_STAGES = 4;

// A block's ring of tiles, keys before values.
template <int HEAD, int GROUPS>
struct TileRing {
    static constexpr uint32_t STAGE_BYTES = 2 * TileOf<HEAD>::BYTES;

    uint8_t *tiles, *queries;
    uint64_t *filled, *emptied;  // barriers of each stage
    uint8_t* words;              // two for each row

    __device__ TileRing() {
        tiles = (uint8_t*)(((uint64_t)dynamic_shared() + 1023) / 1024 * 1024);  // as swizzling has it
        queries = tiles + GROUP_STAGES * STAGE_BYTES;
        filled = (uint64_t*)(queries + GROUPS * TileOf<HEAD>::BYTES), emptied = filled + GROUP_STAGES;
        words = (uint8_t*)(emptied + GROUP_STAGES);
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < GROUP_STAGES; ++i)
                begin_barrier(filled + i, GROUP_THREADS), begin_barrier(emptied + i, 4 * GROUPS);
            show_barriers();  // all meet once rows are known
        }
    }

    __device__ uint8_t* keys(uint32_t tile) const { return tiles + tile % GROUP_STAGES * STAGE_BYTES; }
    __device__ void await_filled(uint32_t tile) const {
        await(filled + tile % GROUP_STAGES, tile / GROUP_STAGES % 2);
    }
    // For the tile that was there before.
    __device__ void await_emptied(uint32_t tile) const {
        if (tile >= GROUP_STAGES) await(emptied + tile % GROUP_STAGES, (tile / GROUP_STAGES + 1) % 2);
    }
    // The calling warp needs the tile no more.
    __device__ void release(uint32_t tile) const {
        if (threadIdx.x % 32 == 0) arrive(emptied + tile % GROUP_STAGES);
    }
    // Other warpgroups need it, this one does not.
    __device__ void skip(uint32_t tile) const {
        await_filled(tile);
        release(tile);
    }
    // What the calling thread has brought of a tile is there.
    __device__ void announce(uint32_t tile) const {
        show_to_products();
        arrive(filled + tile % GROUP_STAGES);
    }
};

// All threads bring the block's queries, rounded; they have met when rows are known. In registers queries
// left none to spare, and ptxas of CUDA 13.0 had weights take theirs.
template <int HEAD, bool BF16, int GROUPS>
__device__ inline void bring_queries(const nocopy_launch& launch, const TileRing<HEAD, GROUPS>& ring,
                                     uint64_t block, uint64_t head) {
    constexpr uint32_t WORDS = HEAD / 8;
    const Tensor q(launch, 1);
    const uint64_t rows = launch.record.dims[0], n = launch.record.dims[2];
    const float scale = query_scale(launch);
    for (uint32_t i = threadIdx.x; i < GROUPS * GROUP_ROWS * WORDS; i += blockDim.x) {
        const uint32_t row = i / WORDS, word = i % WORDS;
        Words<4> pairs = {};
        if (block + row < rows && 8 * word < n) {
            float x[8];
            const uint8_t* from = (const uint8_t*)(q.as<float>() + q.at(block + row, head) + 8 * word);
            F32Words::decode(F32Words::fetch(from, 0), *(float (*)[4]) & x[0]);
            F32Words::decode(F32Words::fetch(from + 16, 0), *(float (*)[4]) & x[4]);
#pragma unroll
            for (int j = 0; j < 4; ++j) pairs.v[j] = pack_pair<BF16>(x[2 * j] * scale, x[2 * j + 1] * scale);
        }
        uint8_t* tile = ring.queries + row / GROUP_ROWS * TileOf<HEAD>::BYTES;
        *(Words<4>*)(tile + TileOf<HEAD>::place(row % GROUP_ROWS, word)) = pairs;
    }
    show_to_products();
}

// The warpgroup that brings tiles. Two are on their way at a time.
template <int HEAD, int READING, int GROUPS>
__device__ inline void bring_tiles(const nocopy_launch& launch, const TileRing<HEAD, GROUPS>& ring,
                                   const SeenTokens& seen, uint64_t group) {
    const uint32_t n = launch.record.dims[2];
    const TokenFetch<HEAD, READING, GROUP_THREADS> keys(Tensor(launch, 2), group, n),
        values(Tensor(launch, 3), group, n);
    uint32_t tile = 0;
    for (int32_t token = seen.start; token < seen.stop; token += TENSOR_TOKENS, ++tile) {
        ring.await_emptied(tile);
        keys(ring.keys(tile), token, seen.stop);
        values(ring.keys(tile) + TileOf<HEAD>::BYTES, token, seen.stop);
        end_copies();
        if (tile == 0) continue;
        wait_copies<1>();
        ring.announce(tile - 1);
    }
    wait_copies<0>();
    if (tile) ring.announce(tile - 1);
}

// A warp's part of what its warpgroup does. What products read and write is kept until they are done.
template <int HEAD, bool BF16>
struct GroupWalk {
    float softcap, uncap;
    Band<HEAD, BF16> band;
    float scores[TENSOR_TOKENS / 8][4] = {};
    uint32_t weights[TENSOR_TOKENS / 16][4] = {};

    __device__ GroupWalk(const nocopy_launch& launch, const RowTokens& tokens, uint64_t block) {
        softcap = param_f32(launch, 1), uncap = 1.0f / softcap;
        band.begin(tokens, block, threadIdx.x / 32 * 16);
    }

    __device__ void begin_scores(const GroupMatrix& queries, const GroupMatrix& keys) {
        begin_products();
#pragma unroll
        for (uint32_t i = 0; i < HEAD / 16; ++i)
            multiply_group<BF16>(scores, queries, keys, i / 4 * TileOf<HEAD>::PANEL_BYTES + i % 4 * 32,
                                 i > 0);
        end_products();
    }

    // Scores to weights, of tokens from `token` on.
    __device__ void weigh(const SeenTokens& own, int32_t token) {
        if (softcap != 0.0f) band.bend(scores, softcap, uncap);
        if (!own.all(token)) band.mask(scores, token);
        band.weigh(scores);
#pragma unroll
        for (uint32_t i = 0; i < TENSOR_TOKENS / 16; ++i) band.round(weights[i], scores, i);
    }

    __device__ void begin_values(const GroupMatrix& tile) {
        begin_products();
#pragma unroll
        for (uint32_t i = 0; i < TENSOR_TOKENS / 16; ++i)
#pragma unroll
            for (uint32_t panel = 0; panel < HEAD / 64; ++panel)
                multiply_group_across<BF16>(*(float (*)[8][4]) & band.values[8 * panel], weights[i], tile,
                                            panel * TileOf<HEAD>::PANEL_BYTES + i * 16 * 128);
        end_products();
    }

    // Every product that was begun is done.
    __device__ void settle() {
        wait_products();
        pin(scores);
        pin(weights);
        pin(band.values);
    }
};

template <int HEAD, int READING, int GROUPS>
__device__ inline void attend_group(const nocopy_launch& launch) {
    constexpr uint32_t ROWS = GROUPS * GROUP_ROWS;
    const uint64_t rows = launch.record.dims[0], heads = launch.record.dims[1];
    const uint64_t blocks = (rows + ROWS - 1) / ROWS;
    const uint64_t block = (blocks - 1 - blockIdx.x / heads) * ROWS, head = blockIdx.x % heads;
    if (block_stopped(launch)) return;
    constexpr bool BF16 = READING == READ_BF16;
    const TileRing<HEAD, GROUPS> ring;
    bring_queries<HEAD, BF16, GROUPS>(launch, ring, block, head);
    const RowTokens tokens(launch, block, ROWS, ring.words);
    const SeenTokens seen(tokens, 0, ROWS);
    if (threadIdx.x >= GROUPS * GROUP_THREADS) {
        bring_tiles<HEAD, READING, GROUPS>(launch, ring, seen, head / (heads / launch.record.dims[4]));
        return;
    }
    const uint32_t warpgroup = threadIdx.x / GROUP_THREADS;
    const GroupMatrix queries(ring.queries + warpgroup * TileOf<HEAD>::BYTES);
    const SeenTokens own(tokens, warpgroup * GROUP_ROWS, GROUP_ROWS);
    GroupWalk<HEAD, BF16> walk(launch, tokens, block);
    // Of the block's tiles, those that this warpgroup's rows see.
    const uint32_t count = seen.tiles_before(seen.stop + TENSOR_TOKENS - 1);
    const uint32_t begin = min(seen.tiles_before(own.start), count);
    const uint32_t end = seen.tiles_before(own.stop + TENSOR_TOKENS - 1);
    uint32_t tile = 0;
    for (; tile < begin; ++tile) ring.skip(tile);
    for (; tile < end; ++tile) {
        ring.await_filled(tile);
        walk.begin_scores(queries, GroupMatrix(ring.keys(tile)));
        walk.settle();
        if (tile > begin) ring.release(tile - 1);
        walk.weigh(own, seen.start + (int32_t)tile * TENSOR_TOKENS);
        walk.begin_values(GroupMatrix(ring.keys(tile) + TileOf<HEAD>::BYTES));
    }
    walk.settle();
    if (end > begin) ring.release(tile - 1);
    for (; tile < count; ++tile) ring.skip(tile);
    walk.band.finish(launch, head);
}

NOCOPY_KERNEL(attention_group_64_f16, 512, 1) {
    attend_group<64, READ_F16, 3>(launch);
}
NOCOPY_KERNEL(attention_group_64_bf16, 512, 1) {
    attend_group<64, READ_BF16, 3>(launch);
}
NOCOPY_KERNEL(attention_group_128_f16, 384, 1) {
    attend_group<128, READ_F16, 2>(launch);
}
NOCOPY_KERNEL(attention_group_128_bf16, 384, 1) {
    attend_group<128, READ_BF16, 2>(launch);
}

#endif
