// Attention of many queries by plain float32 arithmetic: for float32 queries, and on cards before sm_80 for all.
//
// As attention_prefill.cu, with the weights of a tile [TILE, TILE] handed to the second product through shared memory.
// Nothing is rounded but what float32 arithmetic rounds.
//
// 256 threads stand as 16 x 16.  A thread computes [TILE / 16, TILE / 16] scores: at TILE 64 four numbers of four
// queries and of four keys, 8 loads of 16 bytes, serve 64 multiplications, so that the loads (12 clocks of shared memory
// for a warp) hide behind the arithmetic (16 clocks of 128 lanes).  Keys and values take turns in one tile: at DIM 128 a
// block then needs 83 kB, and two blocks, of which one loads while the other computes, stand on an H200 or A100.  Where
// 64 rows do not fit, TILE is 32 or 16 (attention.py).
#include "attention.cuh"

constexpr int SIDE = 16;
constexpr int THREADS = SIDE * SIDE;

// Rows `begin` and on of an array [.., head_dim] as float32 into a tile [TILE][PITCH]; zeros beyond head_dim and where
// a row is at `end` or beyond, or hidden.
template <class K, int DIM, int TILE, int PITCH>
__device__ __forceinline__ void load_tile(float* tile, const K* from, long long step, int begin, int end, int head_dim,
                                          bool wide, const unsigned char* visible) {
    constexpr int SIZE = Piece<K>::SIZE, PIECES = DIM / SIZE;
    for (int i = threadIdx.x; i < TILE * PIECES; i += THREADS) {
        const int r = i / PIECES, d = i % PIECES * SIZE, at = begin + r;
        const bool there = at < end && (!visible || visible[at]);
        Piece<K> piece;
        if (wide) load_piece<K, true>(piece, from + at * step, d, head_dim, there);
        else load_piece<K, false>(piece, from + at * step, d, head_dim, there);
        float4* to = (float4*)(tile + r * PITCH + d);
#pragma unroll
        for (int j = 0; j < SIZE; j += 4)
            to[j / 4] = make_float4(widen(piece.numbers[j]), widen(piece.numbers[j + 1]), widen(piece.numbers[j + 2]),
                                    widen(piece.numbers[j + 3]));
    }
}

// Arguments and grid: as `prefill`, but for queries of any type; ROWS and KEYS are TILE.  Block: THREADS.
// Shared: 2 * TILE * (DIM + 4) + TILE * (TILE + 4) floats.
template <class K, int DIM, int TILE>
__global__ void __launch_bounds__(THREADS, 2) prefill_plain(
    const void* __restrict__ query, int query_type, long long query_batch, long long query_head, long long query_row,
    const K* __restrict__ key, long long key_batch, long long key_head, long long key_row,
    const K* __restrict__ value, long long value_batch, long long value_head, long long value_row,
    const unsigned char* __restrict__ visible, long long visible_batch,
    const long long* __restrict__ offset_at, int offset, int heads, int queries, int keys, int head_dim, int wide,
    int part_keys, float scale, float* __restrict__ sums, float* __restrict__ marks, void* __restrict__ context,
    int context_type) {
    // 4 numbers of padding: the 8 rows that 16-byte loads take at a time begin in different banks.
    constexpr int PITCH = DIM + 4, SCORES = TILE + 4, EACH = TILE / SIDE;
    // Neighbouring dimensions that a thread adds up, and how many such pieces.
    constexpr int NEXT = DIM % 32 == 0 ? 2 : 1, PIECES = DIM / SIDE / NEXT;
    extern __shared__ float4 shared[];
    float* const query_tile = (float*)shared;
    float* const tile = query_tile + TILE * PITCH;
    float* const weights = tile + TILE * PITCH;

    const int tiles = (queries + TILE - 1) / TILE, columns = gridDim.x / tiles;
    const int first_row = (tiles - 1 - (int)(blockIdx.x / columns)) * TILE;
    const int head_of_all = blockIdx.x % columns, batch = head_of_all / heads, head = head_of_all % heads;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const int before = keys_before(offset_at, offset, keys);
    const int rows = min(TILE, queries - first_row);
    const int seen = keys_seen(before, first_row + rows - 1, keys);
    const int start = blockIdx.y * part_keys, end = gridDim.y == 1 ? seen : min(start + part_keys, seen);
    if (start >= end && gridDim.y > 1) return;  // the merge does not look at this part
    key += batch * key_batch + head * key_head;
    value += batch * value_batch + head * value_head;
    if (visible) visible += batch * visible_batch;

    const long long query_at = batch * query_batch + head * query_head + first_row * query_row;
    for (int i = threadIdx.x; i < TILE * DIM; i += THREADS) {
        const int r = i / DIM, d = i % DIM;
        query_tile[r * PITCH + d] =
            r < rows && d < head_dim ? load_number(query, query_type, query_at + r * query_row + d) : 0.0f;
    }

    float sum[EACH][PIECES * NEXT], peak[EACH], total[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (int c = 0; c < PIECES * NEXT; ++c) sum[i][c] = 0.0f;
        peak[i] = -infinity();
        total[i] = 0.0f;
    }

    for (int begin = start; begin < end; begin += TILE) {
        __syncthreads();  // nobody needs the last values any more
        load_tile<K, DIM, TILE, PITCH>(tile, key, key_row, begin, end, head_dim, wide, visible);
        __syncthreads();

        float score[EACH][EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i)
#pragma unroll
            for (int j = 0; j < EACH; ++j) score[i][j] = 0.0f;
#pragma unroll 1  // more of it would not fit into the registers of two blocks
        for (int d = 0; d < DIM; d += 4) {
            float4 q[EACH], k[EACH];
#pragma unroll
            for (int i = 0; i < EACH; ++i) q[i] = *(const float4*)(query_tile + (y * EACH + i) * PITCH + d);
#pragma unroll
            for (int j = 0; j < EACH; ++j) k[j] = *(const float4*)(tile + (x + j * SIDE) * PITCH + d);
#pragma unroll
            for (int i = 0; i < EACH; ++i)
#pragma unroll
                for (int j = 0; j < EACH; ++j) {
                    score[i][j] = fmaf(q[i].x, k[j].x, score[i][j]);
                    score[i][j] = fmaf(q[i].y, k[j].y, score[i][j]);
                    score[i][j] = fmaf(q[i].z, k[j].z, score[i][j]);
                    score[i][j] = fmaf(q[i].w, k[j].w, score[i][j]);
                }
        }

#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            float highest = peak[i], more = 0.0f;
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const int at = begin + x + j * SIDE;
                const bool sees = at < end && at <= before + first_row + y * EACH + i && (!visible || visible[at]);
                score[i][j] = sees ? score[i][j] * scale : -infinity();
                highest = fmaxf(highest, score[i][j]);
            }
#pragma unroll
            for (int step = 1; step < SIDE; step *= 2) highest = fmaxf(highest, shuffle_xor(highest, step));
            const float shrink = weight_of(peak[i], highest);
            peak[i] = highest;
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const float weight = weight_of(score[i][j], highest);
                weights[(y * EACH + i) * SCORES + x + j * SIDE] = weight;
                more += weight;
            }
            total[i] = fmaf(total[i], shrink, more);  // of this thread's keys; added up in the end
#pragma unroll
            for (int c = 0; c < PIECES * NEXT; ++c) sum[i][c] *= shrink;
        }

        __syncthreads();  // nobody needs the keys any more
        load_tile<K, DIM, TILE, PITCH>(tile, value, value_row, begin, end, head_dim, wide, visible);
        __syncthreads();

#pragma unroll 1
        for (int k = 0; k < TILE; k += 4) {
            float weight[EACH][4];
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const float4 four = *(const float4*)(weights + (y * EACH + i) * SCORES + k);
                weight[i][0] = four.x;
                weight[i][1] = four.y;
                weight[i][2] = four.z;
                weight[i][3] = four.w;
            }
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int c = 0; c < PIECES; ++c) {
                    const float* from = tile + (k + j) * PITCH + (c * SIDE + x) * NEXT;
                    float2 found;
                    if (NEXT == 2) found = *(const float2*)from;
                    else found = make_float2(*from, 0.0f);
#pragma unroll
                    for (int i = 0; i < EACH; ++i) {
                        float* const to = sum[i] + c * NEXT;
                        to[0] = fmaf(weight[i][j], found.x, to[0]);
                        if (NEXT == 2) to[NEXT - 1] = fmaf(weight[i][j], found.y, to[NEXT - 1]);
                    }
                }
        }
    }

#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        float all = total[i];
#pragma unroll
        for (int step = 1; step < SIDE; step *= 2) all += shuffle_xor(all, step);
        const int row = first_row + y * EACH + i;
        if (row >= queries) continue;
        const bool whole = gridDim.y == 1;
        const float part = all > 0.0f ? 1.0f / all : 0.0f;
        const long long of_all = ((long long)head_of_all * queries + row) * gridDim.y + blockIdx.y;
        if (!whole && x == 0) {
            marks[of_all * 2] = peak[i];
            marks[of_all * 2 + 1] = all;
        }
        const int padded = (head_dim + 3) / 4 * 4, size = whole ? head_dim : padded;
        const long long at =
            whole ? (((long long)batch * queries + row) * heads + head) * head_dim : of_all * padded;
#pragma unroll
        for (int c = 0; c < PIECES * NEXT; ++c) {
            const int d = (c / NEXT * SIDE + x) * NEXT + c % NEXT;
            if (d >= size) continue;
            if (whole) store_number(context, context_type, at + d, sum[i][c] * part);
            else sums[at + d] = sum[i][c];
        }
    }
}
