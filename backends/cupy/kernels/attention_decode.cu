// Attention of few queries: one new token of each text, or a handful.  The keys and values are read once, and reading
// them is all the cost.
//
// Where there are few heads and texts, the keys must be what fills the card.  So keys are cut into units of UNIT_KEYS,
// one block for each unit of each head; a second kernel merges what they found, unit after unit.  The cut depends on
// nothing but the key's position: a text gets the same numbers alone and in a batch, in a short storage and in a long
// one (a recorded step knows the capacity only), and no sum depends on the order in which blocks run.
//
// 128 keys of 128 dimensions in 16 bits are 64 kB, against 0.5 kB that a unit writes for the merge.  16 heads and 2000
// keys give 256 blocks, so each of the 132 multiprocessors of an H200 has one or two; each thread then waits for 8
// loads of 16 bytes, 32 kB for two blocks, which is what 4.8 TB/s at a latency of 0.8 us need in flight
// (29 kB for each multiprocessor).
#include "attention.cuh"

constexpr int UNIT_KEYS = 128;
constexpr int WARPS = 4;

// A row of keys or values lies across LANES lanes, CHUNKS pieces of 16 bytes in each; the 32 / LANES groups of a warp
// take different keys.  ROWS queries share what is read.
//
// query, key, value: [batch, heads, seq, head_dim], steps in numbers, head_dim without gaps.
// visible: [batch, keys] or null.  keys: how many there is room for.
// Where gridDim.y (the units) is 1: context [batch, queries, heads, head_dim].  Else for the merge
//   sums [batch, heads, queries, units, padded head_dim]: the sum of e**(score - peak) value,
//   marks [batch, heads, queries, units, 2]: the peak, and the sum of e**(score - peak).
// Grid: (batch * heads * ceil(queries / ROWS), units).  Block: 32 * WARPS.
template <class K, int LANES, int CHUNKS, int ROWS, bool WIDE>
__global__ void __launch_bounds__(32 * WARPS, ROWS == 1 ? 5 : 2) decode(
    const void* __restrict__ query, int query_type, long long query_batch, long long query_head, long long query_row,
    const K* __restrict__ key, long long key_batch, long long key_head, long long key_row,
    const K* __restrict__ value, long long value_batch, long long value_head, long long value_row,
    const unsigned char* __restrict__ visible, long long visible_batch,
    const long long* __restrict__ offset_at, int offset, int heads, int queries, int keys, int head_dim, float scale,
    float* __restrict__ sums, float* __restrict__ marks, void* __restrict__ context, int context_type) {
    constexpr int SIZE = Piece<K>::SIZE, GROUPS = 32 / LANES, WIDTH = LANES * CHUNKS * SIZE;
    // Keys that a thread has asked for at a time, each with its value; a warp has UNIT_KEYS / WARPS keys in all.
    constexpr int MOST = UNIT_KEYS / WARPS / GROUPS;
    constexpr int FLIGHT = MOST < 4 / CHUNKS ? MOST : 4 / CHUNKS;
    __shared__ float warp_sums[WARPS][ROWS][WIDTH];
    __shared__ float warp_marks[WARPS][ROWS][2];

    const int row_blocks = (queries + ROWS - 1) / ROWS;
    const int head_of_all = blockIdx.x / row_blocks, first_row = blockIdx.x % row_blocks * ROWS;
    const int batch = head_of_all / heads, head = head_of_all % heads;
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / LANES, lane = threadIdx.x % LANES;
    const int rows = min(ROWS, queries - first_row);
    const int before = keys_before(offset_at, offset, keys);
    const int begin = blockIdx.y * UNIT_KEYS;
    const int end = min(begin + UNIT_KEYS, keys_seen(before, first_row + rows - 1, keys));
    if (begin >= end && gridDim.y > 1) return;  // the merge does not look at this unit

    float q[ROWS][CHUNKS * SIZE], sum[ROWS][CHUNKS * SIZE], peak[ROWS], total[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const long long at = batch * query_batch + head * query_head + (first_row + r) * query_row;
#pragma unroll
        for (int i = 0; i < CHUNKS * SIZE; ++i) {
            const int d = (i / SIZE * LANES + lane) * SIZE + i % SIZE;
            q[r][i] = r < rows && d < head_dim ? load_number(query, query_type, at + d) : 0.0f;
            sum[r][i] = 0.0f;
        }
        peak[r] = -infinity();
        total[r] = 0.0f;
    }
    key += batch * key_batch + head * key_head;
    value += batch * value_batch + head * value_head;
    if (visible) visible += batch * visible_batch;

    for (int base = begin + warp * GROUPS * FLIGHT; base < end; base += WARPS * GROUPS * FLIGHT) {
        Piece<K> key_piece[FLIGHT][CHUNKS], value_piece[FLIGHT][CHUNKS];
        bool there[FLIGHT];
#pragma unroll
        for (int f = 0; f < FLIGHT; ++f) {
            const int at = base + f * GROUPS + group;
            there[f] = at < end && (!visible || visible[at]);
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c)
                load_piece<K, WIDE>(key_piece[f][c], key + at * key_row, (c * LANES + lane) * SIZE, head_dim, there[f]);
        }
#pragma unroll
        for (int f = 0; f < FLIGHT; ++f)
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                const int at = base + f * GROUPS + group;
                load_piece<K, WIDE>(value_piece[f][c], value + at * value_row, (c * LANES + lane) * SIZE, head_dim,
                                    there[f]);
            }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            float score[FLIGHT], highest = peak[r];
#pragma unroll
            for (int f = 0; f < FLIGHT; ++f) {
                score[f] = 0.0f;
#pragma unroll
                for (int i = 0; i < CHUNKS * SIZE; ++i)
                    score[f] = fmaf(q[r][i], widen(key_piece[f][i / SIZE].numbers[i % SIZE]), score[f]);
#pragma unroll
                for (int step = LANES / 2; step > 0; step /= 2) score[f] += shuffle_xor(score[f], step);
                const bool sees = there[f] && base + f * GROUPS + group <= before + first_row + r;
                score[f] = sees ? score[f] * scale : -infinity();
                highest = fmaxf(highest, score[f]);
            }
            const float shrink = weight_of(peak[r], highest);
            peak[r] = highest;
            total[r] *= shrink;
#pragma unroll
            for (int i = 0; i < CHUNKS * SIZE; ++i) sum[r][i] *= shrink;
#pragma unroll
            for (int f = 0; f < FLIGHT; ++f) {
                const float weight = weight_of(score[f], highest);
                total[r] += weight;
#pragma unroll
                for (int i = 0; i < CHUNKS * SIZE; ++i)
                    sum[r][i] = fmaf(weight, widen(value_piece[f][i / SIZE].numbers[i % SIZE]), sum[r][i]);
            }
        }
    }

    // The groups of a warp, by exchange: partners add the same two numbers, so all groups hold the same in the end.
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int step = LANES; step < 32; step *= 2) {
            const float highest = fmaxf(peak[r], shuffle_xor(peak[r], step));
            const float shrink = weight_of(peak[r], highest);
            peak[r] = highest;
            total[r] *= shrink;
            total[r] += shuffle_xor(total[r], step);
#pragma unroll
            for (int i = 0; i < CHUNKS * SIZE; ++i) {
                const float mine = sum[r][i] * shrink;
                sum[r][i] = mine + shuffle_xor(mine, step);
            }
        }
        if (group == 0) {
#pragma unroll
            for (int i = 0; i < CHUNKS * SIZE; ++i)
                warp_sums[warp][r][(i / SIZE * LANES + lane) * SIZE + i % SIZE] = sum[r][i];
            if (lane == 0) {
                warp_marks[warp][r][0] = peak[r];
                warp_marks[warp][r][1] = total[r];
            }
        }
    }
    __syncthreads();

    // The warps, the first one first.
    const int padded = (head_dim + 3) / 4 * 4;
    for (int i = threadIdx.x; i < rows * WIDTH; i += 32 * WARPS) {
        const int r = i / WIDTH, d = i % WIDTH;
        float highest = -infinity(), all = 0.0f, of_all = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) highest = fmaxf(highest, warp_marks[w][r][0]);
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float shrink = weight_of(warp_marks[w][r][0], highest);
            all = fmaf(shrink, warp_marks[w][r][1], all);
            of_all = fmaf(shrink, warp_sums[w][r][d], of_all);
        }
        if (gridDim.y == 1) {
            const long long at = (((long long)batch * queries + first_row + r) * heads + head) * head_dim;
            // as `merge` does, so that the bits are the same
            const float part = all > 0.0f ? 1.0f / all : 0.0f;
            if (d < head_dim) store_number(context, context_type, at + d, of_all * part);
        } else {
            const long long at = ((long long)head_of_all * queries + first_row + r) * gridDim.y + blockIdx.y;
            if (d < padded) sums[at * padded + d] = of_all;
            if (d == 0) {
                marks[at * 2] = highest;
                marks[at * 2 + 1] = all;
            }
        }
    }
}

// What the units of `unit_keys` keys of one query found -> context [batch, queries, heads, head_dim].  sums, marks: as
// `decode` writes them.  A thread has four neighbouring dimensions; teams of threads that have all dimensions between
// them take turns with the units, so that the many units of a long text are not one long chain of loads.
// Grid: batch * heads * queries.  Block: THREADS.
template <int THREADS>
__global__ void __launch_bounds__(THREADS) merge(
    const float* __restrict__ sums, const float* __restrict__ marks, const long long* __restrict__ offset_at,
    int offset, int heads, int queries, int keys, int units, int unit_keys, int head_dim,
    void* __restrict__ context, int context_type) {
    __shared__ float4 parts[THREADS];
    __shared__ float totals[THREADS], peaks[THREADS / 32];
    const int row = blockIdx.x % queries, head_of_all = blockIdx.x / queries;
    const int seen = keys_seen(keys_before(offset_at, offset, keys), row, keys);
    const int used = (seen + unit_keys - 1) / unit_keys;
    marks += (long long)blockIdx.x * units * 2;
    const int padded = (head_dim + 3) / 4 * 4;
    sums += (long long)blockIdx.x * units * padded;

    float peak = -infinity();
    for (int u = threadIdx.x; u < used; u += THREADS) peak = fmaxf(peak, marks[u * 2]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) peak = fmaxf(peak, shuffle_xor(peak, step));
    if (threadIdx.x % 32 == 0) peaks[threadIdx.x / 32] = peak;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < THREADS / 32; ++w) peak = fmaxf(peak, peaks[w]);

    const int quads = padded / 4, teams = THREADS / quads;
    const int quad = threadIdx.x % quads, team = threadIdx.x / quads;
    float4 sum = make_float4(0, 0, 0, 0);
    float total = 0.0f;
    if (team < teams) {
#pragma unroll 4
        for (int u = team; u < used; u += teams) {
            const float weight = weight_of(marks[u * 2], peak);
            const float4 found = ((const float4*)(sums + (long long)u * padded))[quad];
            total = fmaf(weight, marks[u * 2 + 1], total);
            sum.x = fmaf(weight, found.x, sum.x);
            sum.y = fmaf(weight, found.y, sum.y);
            sum.z = fmaf(weight, found.z, sum.z);
            sum.w = fmaf(weight, found.w, sum.w);
        }
    }
    parts[threadIdx.x] = sum;
    totals[threadIdx.x] = total;
    __syncthreads();
    if (team != 0) return;
    for (int t = 1; t < teams; ++t) {
        const float4 more = parts[t * quads + quad];
        total += totals[t * quads + quad];
        sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
    }
    const int batch = head_of_all / heads, head = head_of_all % heads;
    const long long at = (((long long)batch * queries + row) * heads + head) * head_dim + quad * 4;
    const float part = total > 0.0f ? 1.0f / total : 0.0f;
    const float result[4] = {sum.x * part, sum.y * part, sum.z * part, sum.w * part};
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (quad * 4 + i < head_dim) store_number(context, context_type, at + i, result[i]);
}
