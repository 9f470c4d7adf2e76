// y = x weights^T + bias for a few rows of x, at the speed of reading the weights; and weights widened for the rest.
#include "device.cuh"
#include "quads.cuh"
#include "weights.cuh"

constexpr int WARPS = 8;      // in a block
constexpr int CHUNK = 512;    // bytes of a row of weights that a warp asks for at once: 16 for each lane
constexpr int UNITS = 32 * 4; // bytes of units beside it, for nf4: one for the 32 numbers that lie in 16 bytes

// values[i] is summed over the lanes of a warp for every i, in the same order of additions whatever i is.  Lane l gets
// the sum of i = l / (32 / N).  N is a power of two, at most 32.  LEFT: how many sums this lane still has; LANES: how
// far away its partner is.  Both are known to the compiler, so that values stay in registers.
template <int N, int LEFT = N, int LANES = 16>
__device__ __forceinline__ float sum_over_lanes(float (&values)[N], int lane) {
    if constexpr (LANES == 0) {
        return values[0];
    } else if constexpr (LEFT > 1) {
        // Half of the values go to the other lane of a pair, which adds them to its own.
        constexpr int HALF = LEFT / 2;
        const bool upper = lane & LANES;
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            const float away = upper ? values[i] : values[i + HALF];
            values[i] = (upper ? values[i + HALF] : values[i]) + shuffle_xor(away, LANES);
        }
        return sum_over_lanes<N, HALF, LANES / 2>(values, lane);
    } else {
        values[0] += shuffle_xor(values[0], LANES);
        return sum_over_lanes<N, 1, LANES / 2>(values, lane);
    }
}

// Adds up what the lanes and the `splits` warps of a group have, always in the same order; then unit, bias and y.
template <class W, int ROWS, int OUTPUTS>
__device__ __forceinline__ void finish_outputs(const Matrix<W>& matrix, float (&sums)[ROWS * OUTPUTS], int first,
                                               int rows, int splits, const float* bias, float* y) {
    constexpr int SUMS = ROWS * OUTPUTS;
    static_assert(SUMS <= 32 && (SUMS & (SUMS - 1)) == 0, "");
    __shared__ float partial[WARPS][SUMS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = sum_over_lanes<SUMS>(sums, lane);
    if (lane % (32 / SUMS) == 0) partial[warp][lane / (32 / SUMS)] = sum;
    __syncthreads();
    if (warp % splits == 0 && lane < SUMS) {
        const int output = first + lane / ROWS, row = lane % ROWS;
        if (output < matrix.out && row < rows) {
            float total = partial[warp][lane];
            for (int other = 1; other < splits; other++) total += partial[warp + other][lane];
            total = finish<W>(matrix, output, total);
            y[(long long)row * matrix.out + output] = bias ? total + bias[output] : total;
        }
    }
}

template <int ROWS, int OUTPUTS>
__device__ __forceinline__ void add_products(float4 weights, const float4 (&inputs)[ROWS], int o,
                                             float (&sums)[ROWS * OUTPUTS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float sum = sums[o * ROWS + r];
        sum = fmaf(weights.x, inputs[r].x, sum);
        sum = fmaf(weights.y, inputs[r].y, sum);
        sum = fmaf(weights.z, inputs[r].z, sum);
        sums[o * ROWS + r] = fmaf(weights.w, inputs[r].w, sum);
    }
}

// --- rows that begin at multiples of 16 bytes -----------------------------------------------------------------------

// A chunk of OUTPUTS rows that has arrived, times x from `k` on.  Four numbers for each lane at a time, so that the
// warp reads x in one piece.  ASKING: the chunk goes beyond the end of the row (there are zeros); x is not read there.
template <class W, int ROWS, int OUTPUTS, bool ASKING>
__device__ __forceinline__ void add_chunk(const unsigned char* arrived, const float* table, const float* x, int in,
                                          int rows, int k, float (&sums)[ROWS * OUTPUTS]) {
    constexpr int STEPS = CHUNK / bytes_of<W>(32 * 4), ROW_BYTES = CHUNK + (is_nf4<W> ? UNITS : 0);
    constexpr int UNROLL = ROWS >= 4 ? 1 : STEPS;  // registers are for what is under way
    const int lane = threadIdx.x % 32;
#pragma unroll UNROLL
    for (int step = 0; step < STEPS; step++) {
        const int quad = step * 32 + lane, at = k + 4 * quad;
        float4 inputs[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float* row = x + (long long)min(r, rows - 1) * in;
            inputs[r] = !ASKING || at < in ? *(const float4*)(row + at) : make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            const unsigned char* row = arrived + o * ROW_BYTES;
            float4 weights = quad_at<W>(row + bytes_of<W>(4) * quad, table);
            if constexpr (is_nf4<W>) {
                float unit = ((const float*)(row + CHUNK))[quad / 8];
                weights = make_float4(weights.x * unit, weights.y * unit, weights.z * unit, weights.w * unit);
            }
            add_products<ROWS, OUTPUTS>(weights, inputs, o, sums);
        }
    }
}

// x float32 [rows, in], bias float32 [out] or null, y float32 [rows, out]; rows <= ROWS.  The rows of weights and of x
// begin at multiples of 16 bytes; a row of nf4 has whole pieces of 32 numbers.
//
// A group of `splits` warps (1, 2, 4 or 8) computes OUTPUTS outputs of every row and takes turns with their chunks; a
// block holds WARPS / splits groups.  How fast memory is depends on how much it is asked for at a time: a warp has
// STAGES - 1 chunks of OUTPUTS rows under way, on their way to shared memory past the registers, while it computes with
// one more.  x is read through the first cache, into which no weight goes.
// Dynamic shared memory: WARPS * STAGES * OUTPUTS * (CHUNK, and UNITS for nf4) bytes.
template <class W, int ROWS, int OUTPUTS, int STAGES>
__global__ void __launch_bounds__(WARPS * 32, ROWS >= 4 ? 2 : 3)
    matvec(const W* numbers, const float* units, const float* table, int block_shift, int out, int in,
           const float* __restrict__ x, const float* __restrict__ bias, float* __restrict__ y, int rows, int splits) {
    constexpr int ROW_BYTES = CHUNK + (is_nf4<W> ? UNITS : 0), STAGE_BYTES = OUTPUTS * ROW_BYTES;
    constexpr int NUMBERS = CHUNK * 4 / bytes_of<W>(4);  // in a chunk
    extern __shared__ float4 shared[];
    __shared__ float values[16];
    if constexpr (is_nf4<W>) {
        if (threadIdx.x < 16) values[threadIdx.x] = table[threadIdx.x];
        __syncthreads();
    }
    const Matrix<W> matrix = {numbers, units, table, block_shift, out, in};
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % splits;
    const int first = (blockIdx.x * (WARPS / splits) + warp / splits) * OUTPUTS;
    const int chunks = (in + NUMBERS - 1) / NUMBERS;
    unsigned char* ring = (unsigned char*)shared + warp * STAGES * STAGE_BYTES;

    // Ask for a chunk: 16 bytes for each lane, zeros beyond the end of a row.
    auto ask = [&](int chunk, int stage) {
        if (chunk < chunks) {
            const int k = chunk * NUMBERS + lane * (NUMBERS / 32);
            const bool there = k < in;
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++) {
                const int row = min(first + o, out - 1);
                unsigned char* to = ring + stage * STAGE_BYTES + o * ROW_BYTES;
                copy_async16(to + 16 * lane, address_of(matrix, row, there ? k : 0), there);
                if constexpr (is_nf4<W>) {
                    const long long place = (long long)row * in + (there ? k : 0);
                    copy_async4(to + CHUNK + 4 * lane, units + (place >> block_shift), there);
                }
            }
        }
        copy_async_commit();  // an empty group where there is no such chunk: groups are counted
    };

    float sums[ROWS * OUTPUTS];
#pragma unroll
    for (int i = 0; i < ROWS * OUTPUTS; i++) sums[i] = 0;

    for (int stage = 0; stage < STAGES - 1; stage++) ask(part + stage * splits, stage);
    int stage = 0;
    for (int chunk = part; chunk < chunks; chunk += splits) {
        copy_async_wait<STAGES - 2>();
        __syncwarp();  // what other lanes have copied is seen, and nobody reads the stage any more that is filled next
        ask(chunk + (STAGES - 1) * splits, stage == 0 ? STAGES - 1 : stage - 1);
        const unsigned char* arrived = ring + stage * STAGE_BYTES;
        const int k = chunk * NUMBERS;
        if (k + NUMBERS <= in) {
            add_chunk<W, ROWS, OUTPUTS, false>(arrived, values, x, in, rows, k, sums);
        } else {
            add_chunk<W, ROWS, OUTPUTS, true>(arrived, values, x, in, rows, k, sums);
        }
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    copy_async_wait<0>();
    finish_outputs<W, ROWS, OUTPUTS>(matrix, sums, first, rows, splits, bias, y);
}

// --- rows of any length at any address ------------------------------------------------------------------------------

// As `matvec`, number by number.
template <class W, int ROWS, int OUTPUTS>
__global__ void __launch_bounds__(WARPS * 32, 2)
    matvec_unaligned(const W* numbers, const float* units, const float* table, int block_shift, int out, int in,
                     const float* __restrict__ x, const float* __restrict__ bias, float* __restrict__ y, int rows,
                     int splits) {
    const Matrix<W> matrix = {numbers, units, table, block_shift, out, in};
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first = (blockIdx.x * (WARPS / splits) + warp / splits) * OUTPUTS;
    float sums[ROWS * OUTPUTS];
#pragma unroll
    for (int i = 0; i < ROWS * OUTPUTS; i++) sums[i] = 0;
    for (int k = warp % splits * 32 + lane; k < in; k += splits * 32) {
        float inputs[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) inputs[r] = x[(long long)min(r, rows - 1) * in + k];
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            float weight = number_at<W>(matrix, min(first + o, out - 1), k);
#pragma unroll
            for (int r = 0; r < ROWS; r++) sums[o * ROWS + r] = fmaf(weight, inputs[r], sums[o * ROWS + r]);
        }
    }
    finish_outputs<W, ROWS, OUTPUTS>(matrix, sums, first, rows, splits, bias, y);
}

// --- weights of one form in another -------------------------------------------------------------------------------

// `count` rows from `first` on, in T.  to [count, in]
template <class W, class T, bool QUADS>
__global__ void __launch_bounds__(256)
    widen_rows(const W* numbers, const float* units, const float* table, int block_shift, int out, int in, int first,
               int count, T* __restrict__ to) {
    const Matrix<W> matrix = {numbers, units, table, block_shift, out, in};
    const int across = (in + 3) / 4;
    const long long quads = (long long)across * count;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < quads; i += gridDim.x * 256ll) {
        int quad;
        const int row = (int)divided(i, across, quad), k = quad * 4;
        store_in_row<T, QUADS>(to + (long long)row * in, in, k, dense_quad<W, QUADS>(matrix, first + row, k));
    }
}
