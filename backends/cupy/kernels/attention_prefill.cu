// Attention of many queries on tensor cores: keys, values and queries in 16 bits, sums in float32 (sm_80 and later).
//
// A block takes ROWS = 64 * STRIPS queries of one head and goes over the keys in tiles; the scores of a tile live in
// registers only, with the largest score and the sum of each row carried from tile to tile (arXiv:2205.14135,
// arXiv:2307.08691).  What is rounded: each weight e**(score - peak), to the 16-bit type, before it multiplies values.
// The peak is that of the keys so far, so weights lie in [0, 1] and nothing overflows.  Their sum is of the unrounded
// weights.
//
// Why these sizes.  Every warp reads the whole tile of keys and values from shared memory, at 128 bytes a clock for a
// multiprocessor.  With 16 queries in a warp that takes 2 * KEYS * DIM * 2 bytes / 128 = KEYS * DIM / 32 clocks for
// 4 * 16 * KEYS * DIM operations: 2048 in a clock, less than mma.sync does on an H200 (about 2800).  With 32 queries
// (STRIPS = 2) it is 4096, and the tensor cores set the pace.  Then the context takes 2 * DIM / 2 registers of a thread
// and the scores KEYS: 128 + 64 at DIM 128 and KEYS 64, so the query is read again from shared memory for each tile,
// and two blocks fit by their registers.  Beyond DIM 128 only STRIPS = 1 and KEYS = 32 leave room.
// There is one tile of keys and one of values: the values are on their way while scores are computed, the next keys
// while values are added.  DIM 128 then takes 68 kB of shared memory for a block: two on an H200 (227 kB) and an A100
// (163 kB), one on cards with 99 kB, where two tiles of each would not fit at all.
#include "attention.cuh"

constexpr int WARPS = 4;

// Rows `begin` and on of an array [.., head_dim] into a tile [ROWS][PITCH]; zeros beyond head_dim and where a row is at
// `end` or beyond, or hidden.  `wide`: rows of the array begin and end at multiples of 16 bytes.
template <class T, int DIM, int ROWS, int PITCH>
__device__ __forceinline__ void load_tile(T* tile, const T* from, long long step, int begin, int end, int head_dim,
                                          bool wide, const unsigned char* visible) {
    constexpr int PIECES = DIM / 8;
    for (int i = threadIdx.x; i < ROWS * PIECES; i += 32 * WARPS) {
        const int r = i / PIECES, d = i % PIECES * 8, at = begin + r;
        const bool there = at < end && (!visible || visible[at]);
        T* to = tile + r * PITCH + d;
        const T* row = from + at * step;
        if (wide) {
            const bool read = there && d < head_dim;
            copy_async16(to, read ? row + d : from, read);
        } else {
            Piece<T> piece;
            load_piece<T, false>(piece, row, d, head_dim, there);
            *(uint4*)to = piece.words;
        }
    }
}

// Neighbours of a row that one store takes.
__device__ __forceinline__ void store_pair(float* to, float first, float second) {
    *(float2*)to = make_float2(first, second);
}

template <class T>
__device__ __forceinline__ void store_pair(T* to, float first, float second) {
    *(unsigned*)to = narrow_pair<T>(first, second);
}

// A lane's columns below `size` of one of its rows, times `factor`.
template <class T, int TILES>
__device__ __forceinline__ void store_row(T* row, const float (&sum)[TILES][4], int half, int lane, int size,
                                          float factor) {
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
        const int d = n * 8 + lane % 4 * 2;
        const float first = sum[n][2 * half] * factor, second = sum[n][2 * half + 1] * factor;
        if (size % 2 == 0) {
            if (d < size) store_pair(row + d, first, second);
        } else {
            if (d < size) row[d] = narrow<T>(first);
            if (d + 1 < size) row[d + 1] = narrow<T>(second);
        }
    }
}

// query [batch, heads, queries, head_dim]; key, value [batch, heads, keys, head_dim]; steps in numbers.
// visible: [batch, keys] or null.  wide: rows of all three begin and end at multiples of 16 bytes.
// DIM: head_dim, filled up with zeros to a multiple of 16.
// Where gridDim.y is 1: context [batch, queries, heads, head_dim].  Else each takes `part_keys` keys, a multiple of
// KEYS, and writes sums and marks for `merge` (attention_decode.cu): a few queries after many keys keep the card busy.
// Grid: (tiles of queries * batch * heads, parts); the tiles that see the most keys come first, so that the card does
// not wait for one long block in the end.  Block: 32 * WARPS.  Shared: (ROWS + 2 * KEYS) * (DIM + 8) numbers.
template <class T, int DIM, int STRIPS, int KEYS>
__global__ void __launch_bounds__(32 * WARPS, 2) prefill(
    const T* __restrict__ query, long long query_batch, long long query_head, long long query_row,
    const T* __restrict__ key, long long key_batch, long long key_head, long long key_row,
    const T* __restrict__ value, long long value_batch, long long value_head, long long value_row,
    const unsigned char* __restrict__ visible, long long visible_batch,
    const long long* __restrict__ offset_at, int offset, int heads, int queries, int keys, int head_dim, int wide,
    int part_keys, float scale, float* __restrict__ sums, float* __restrict__ marks, void* __restrict__ context,
    int context_type) {
    constexpr int ROWS = 16 * WARPS * STRIPS;
    // 8 numbers of padding: rows begin 16 bytes further on in the 128 bytes of banks, so the 8 rows of a matrix load
    // (and of a copy) fall into different banks.
    constexpr int PITCH = DIM + 8;
    extern __shared__ float4 shared[];
    T* const query_tile = (T*)shared;
    const T* const warp_queries = query_tile + threadIdx.x / 32 * STRIPS * 16 * PITCH;
    T* const key_tile = query_tile + ROWS * PITCH;
    T* const value_tile = key_tile + KEYS * PITCH;

    const int tiles = (queries + ROWS - 1) / ROWS, columns = gridDim.x / tiles;
    const int first_row = (tiles - 1 - (int)(blockIdx.x / columns)) * ROWS;
    const int head_of_all = blockIdx.x % columns, batch = head_of_all / heads, head = head_of_all % heads;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int before = keys_before(offset_at, offset, keys);
    const int rows = min(ROWS, queries - first_row);
    const int seen = keys_seen(before, first_row + rows - 1, keys);
    const int start = blockIdx.y * part_keys, end = gridDim.y == 1 ? seen : min(start + part_keys, seen);
    if (start >= end && gridDim.y > 1) return;  // the merge does not look at this part
    key += batch * key_batch + head * key_head;
    value += batch * value_batch + head * value_head;
    if (visible) visible += batch * visible_batch;

    query += batch * query_batch + head * query_head;
    load_tile<T, DIM, ROWS, PITCH>(query_tile, query, query_row, first_row, queries, head_dim, wide, nullptr);
    load_tile<T, DIM, KEYS, PITCH>(key_tile, key, key_row, start, end, head_dim, wide, visible);
    copy_async_commit();

    // Of strip s, a lane has rows lane / 4 and lane / 4 + 8: [..][0], [..][1].  Columns: see mma_16x8x16.
    float sum[STRIPS][DIM / 8][4], peak[STRIPS][2], total[STRIPS][2];
#pragma unroll
    for (int s = 0; s < STRIPS; ++s) {
#pragma unroll
        for (int n = 0; n < DIM / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[s][n][i] = 0.0f;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            peak[s][half] = -infinity();
            total[s][half] = 0.0f;
        }
    }
    // Weights as powers of two: the instruction that there is.
    const float to_powers_of_two = scale * 1.4426950408889634f;
    const int warp_row = first_row + warp * 16 * STRIPS, last_row = warp_row + 16 * STRIPS - 1;

    for (int begin = start; begin < end; begin += KEYS) {
        copy_async_wait<0>();
        __syncthreads();  // the keys are there, and nobody needs the last values any more
        load_tile<T, DIM, KEYS, PITCH>(value_tile, value, value_row, begin, end, head_dim, wide, visible);
        copy_async_commit();

        // Above the diagonal: a warp has nothing to do where only the queries of later warps see these keys.
        const bool busy = begin <= before + last_row;
        float score[STRIPS][KEYS / 8][4];
#pragma unroll
        for (int s = 0; s < STRIPS; ++s)
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) score[s][n][i] = 0.0f;
        if (busy) {
#pragma unroll
            for (int d = 0; d < DIM; d += 16) {
                unsigned a[STRIPS][4];
#pragma unroll
                for (int s = 0; s < STRIPS; ++s)
                    load_matrix_x4(a[s], warp_queries + (s * 16 + lane % 16) * PITCH + d + lane / 16 * 8);
#pragma unroll
                for (int n = 0; n < KEYS / 8; n += 2) {
                    unsigned b[4];  // two tiles of 8 keys
                    load_matrix_x4(b, key_tile + (n * 8 + lane / 16 * 8 + lane % 8) * PITCH + d + lane / 8 % 2 * 8);
                    const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
                    for (int s = 0; s < STRIPS; ++s) {
                        mma_16x8x16(score[s][n], a[s], first, T());
                        mma_16x8x16(score[s][n + 1], a[s], second, T());
                    }
                }
            }

            // Only the tiles on the diagonal, the last one, and padding need a look at each key.
            const bool look = visible || begin + KEYS > before + first_row + 1 || begin + KEYS > end;
#pragma unroll
            for (int s = 0; s < STRIPS; ++s) {
                const int row = warp_row + s * 16 + lane / 4;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) score[s][n][i] *= to_powers_of_two;
                if (look) {
#pragma unroll
                    for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const int at = begin + n * 8 + lane % 4 * 2 + i % 2;
                            const bool sees = at < end && at <= before + row + i / 2 * 8 && (!visible || visible[at]);
                            if (!sees) score[s][n][i] = -infinity();
                        }
                }
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float highest = peak[s][half];
#pragma unroll
                    for (int n = 0; n < KEYS / 8; ++n)
                        highest = fmaxf(highest, fmaxf(score[s][n][2 * half], score[s][n][2 * half + 1]));
                    highest = fmaxf(highest, shuffle_xor(highest, 1));
                    highest = fmaxf(highest, shuffle_xor(highest, 2));
                    const float base = highest == -infinity() ? 0.0f : highest;
                    const float shrink = power_of_two(peak[s][half] - base);
                    peak[s][half] = highest;
                    float more = 0.0f;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                        for (int i = 2 * half; i < 2 * half + 2; ++i) {
                            score[s][n][i] = power_of_two(score[s][n][i] - base);
                            more += score[s][n][i];
                        }
                    total[s][half] = fmaf(total[s][half], shrink, more);  // of this lane's columns; added up in the end
#pragma unroll
                    for (int n = 0; n < DIM / 8; ++n) {
                        sum[s][n][2 * half] *= shrink;
                        sum[s][n][2 * half + 1] *= shrink;
                    }
                }
            }
        }

        copy_async_wait<0>();
        __syncthreads();  // the values are there, and nobody needs these keys any more
        if (begin + KEYS < end) {
            load_tile<T, DIM, KEYS, PITCH>(key_tile, key, key_row, begin + KEYS, end, head_dim, wide, visible);
            copy_async_commit();
        }

        if (!busy) continue;
        // Two tiles of 8 columns of scores lie in the registers as one [16, 16] factor does.
#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
            unsigned a[STRIPS][4];
#pragma unroll
            for (int s = 0; s < STRIPS; ++s)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float* const two = score[s][2 * k + i / 2] + i % 2 * 2;
                    a[s][i] = narrow_pair<T>(two[0], two[1]);
                }
#pragma unroll
            for (int n = 0; n < DIM / 8; n += 2) {
                unsigned b[4];
                load_matrix_x4_transposed(b, value_tile + (k * 16 + lane % 16) * PITCH + n * 8 + lane / 16 * 8);
                const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
                for (int s = 0; s < STRIPS; ++s) {
                    mma_16x8x16(sum[s][n], a[s], first, T());
                    mma_16x8x16(sum[s][n + 1], a[s], second, T());
                }
            }
        }
    }

#pragma unroll
    for (int s = 0; s < STRIPS; ++s)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float all = total[s][half];
            all += shuffle_xor(all, 1);
            all += shuffle_xor(all, 2);
            const int row = warp_row + s * 16 + lane / 4 + half * 8;
            if (row >= queries) continue;
            const long long of_all = (long long)head_of_all * queries + row;
            const bool whole = gridDim.y == 1;
            const float part = all > 0.0f ? 1.0f / all : 0.0f;
            if (!whole && lane % 4 == 0) {
                const long long at = of_all * gridDim.y + blockIdx.y;
                marks[at * 2] = peak[s][half] * 0.6931471805599453f;  // as a power of e, as the merge takes it
                marks[at * 2 + 1] = all;
            }
            const int padded = (head_dim + 3) / 4 * 4, size = whole ? head_dim : padded;
            const long long at = whole ? (((long long)batch * queries + row) * heads + head) * head_dim
                                       : (of_all * gridDim.y + blockIdx.y) * padded;
            if (!whole) store_row(sums + at, sum[s], half, lane, size, 1.0f);
            else if (context_type == FLOAT32) store_row((float*)context + at, sum[s], half, lane, size, part);
            else store_row((T*)context + at, sum[s], half, lane, size, part);
        }
}
