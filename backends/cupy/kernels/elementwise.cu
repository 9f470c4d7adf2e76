// What happens to single numbers, or to the numbers of a row, between the matrix products.
#include "device.cuh"
#include "quads.cuh"
#include "weights.cuh"

// --- layer norm -----------------------------------------------------------------------------------------------------

// The sum of a value over the threads of a block, which all get it; whole warps, `partial` has 32 numbers.
__device__ __forceinline__ float block_sum(float value, float* partial) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    value = warp_sum(value);
    __syncthreads();  // the sum before this one has been read
    if (lane == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_sum(lane < warps ? partial[lane] : 0);
}

// A block for each row.  x float32 [rows, hidden] -> T [rows, hidden], hidden a multiple of 4, all at addresses that are
// multiples of 16.  A thread keeps QUADS times four numbers, so that x is read once: blockDim.x * QUADS * 4 >= hidden.
template <class T, int QUADS>
__global__ void __launch_bounds__(1024)
    layer_norm(const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
               float eps, int hidden, T* __restrict__ y) {
    __shared__ float partial[32];
    const long long row = (long long)blockIdx.x * hidden;
    float4 mine[QUADS];
    float sum = 0;
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int at = 4 * (q * blockDim.x + threadIdx.x);
        mine[q] = at < hidden ? *(const float4*)(x + row + at) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int q = 0; q < QUADS; q++) sum += mine[q].x + mine[q].y + (mine[q].z + mine[q].w);
    const float mean = block_sum(sum, partial) / hidden;
    sum = 0;
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        if (4 * (q * blockDim.x + threadIdx.x) < hidden) {
            mine[q] = make_float4(mine[q].x - mean, mine[q].y - mean, mine[q].z - mean, mine[q].w - mean);
            sum += mine[q].x * mine[q].x + mine[q].y * mine[q].y + (mine[q].z * mine[q].z + mine[q].w * mine[q].w);
        }
    }
    const float deviation = sqrtf(block_sum(sum, partial) / hidden + eps);
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int at = 4 * (q * blockDim.x + threadIdx.x);
        if (at < hidden) {
            const float4 w = *(const float4*)(weight + at), b = *(const float4*)(bias + at);
            store_quad<T>(y + row + at, make_float4(mine[q].x / deviation * w.x + b.x, mine[q].y / deviation * w.y + b.y,
                                                    mine[q].z / deviation * w.z + b.z, mine[q].w / deviation * w.w + b.w));
        }
    }
}

// The same for rows of any length at any address; x is read three times.
template <class T>
__global__ void __launch_bounds__(1024)
    layer_norm_unaligned(const float* x, const float* weight, const float* bias, float eps, int hidden,
                         T* y) {
    __shared__ float partial[32];
    const long long row = (long long)blockIdx.x * hidden;
    float sum = 0;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) sum += x[row + i];
    const float mean = block_sum(sum, partial) / hidden;
    sum = 0;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) sum += (x[row + i] - mean) * (x[row + i] - mean);
    const float deviation = sqrtf(block_sum(sum, partial) / hidden + eps);
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
        y[row + i] = narrow<T>((x[row + i] - mean) / deviation * weight[i] + bias[i]);
    }
}

// --- activations, as backends/activations.py defines them -----------------------------------------------------------

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * erfcf(x * -0.70710678118654752f); }

__device__ __forceinline__ float sigmoid_of(float x) {
    float small = expf(-fabsf(x));  // never overflows
    return (x >= 0 ? 1.0f : small) / (1.0f + small);
}

__device__ __forceinline__ float softplus(float x) { return (x > 0 ? x : 0.0f) + log1pf(expf(-fabsf(x))); }

// NaN stays NaN, as everywhere below: it is never less than something.
__device__ __forceinline__ float between(float low, float x, float high) {
    return x < low ? low : (x > high ? high : x);
}

struct gelu {
    static __device__ __forceinline__ float of(float x) { return x * normal_cdf(x); }
};

struct gelu_tanh {
    static __device__ __forceinline__ float of(float x) {
        return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    }
};

struct gelu_fast {
    static __device__ __forceinline__ float of(float x) {
        return 0.5f * x * (1.0f + tanhf(x * 0.7978845608f * (1.0f + 0.044715f * x * x)));
    }
};

struct gelu_10 {
    static __device__ __forceinline__ float of(float x) { return between(-10.0f, gelu::of(x), 10.0f); }
};

struct quick_gelu {
    static __device__ __forceinline__ float of(float x) { return x * sigmoid_of(1.702f * x); }
};

struct silu {
    static __device__ __forceinline__ float of(float x) { return x * sigmoid_of(x); }
};

struct sigmoid {
    static __device__ __forceinline__ float of(float x) { return sigmoid_of(x); }
};

struct relu {
    static __device__ __forceinline__ float of(float x) { return x < 0 ? 0.0f : x; }
};

struct relu2 {
    static __device__ __forceinline__ float of(float x) { return relu::of(x) * relu::of(x); }
};

struct relu6 {
    static __device__ __forceinline__ float of(float x) { return between(0.0f, x, 6.0f); }
};

struct leaky_relu {
    static __device__ __forceinline__ float of(float x) { return x >= 0 ? x : 0.01f * x; }
};

struct hardswish {
    static __device__ __forceinline__ float of(float x) { return x * between(0.0f, x + 3.0f, 6.0f) / 6.0f; }
};

struct laplace {
    static __device__ __forceinline__ float of(float x) { return normal_cdf((x - 0.707107f) / 0.282095f); }
};

struct mish {
    static __device__ __forceinline__ float of(float x) { return x * tanhf(softplus(x)); }
};

struct sqrtsoftplus {
    static __device__ __forceinline__ float of(float x) { return sqrtf(softplus(x)); }
};

struct hyperbolic_tangent {
    static __device__ __forceinline__ float of(float x) { return tanhf(x); }
};

struct identity {
    static __device__ __forceinline__ float of(float x) { return x; }
};

// x float32 [count] -> T [count].  QUADS: x and y are at addresses that are multiples of the size of four.
template <class F, class T, bool QUADS>
__global__ void __launch_bounds__(256) activate(const float* __restrict__ x, long long count, T* __restrict__ y) {
    const long long begin = (blockIdx.x * 256ll + threadIdx.x) * 4, across = gridDim.x * 1024ll;
    for (long long i = begin; i < count; i += across) {
        if (QUADS && i + 4 <= count) {
            float4 quad = *(const float4*)(x + i);
            store_quad<T>(y + i, make_float4(F::of(quad.x), F::of(quad.y), F::of(quad.z), F::of(quad.w)));
        } else {
            for (long long j = i; j < i + 4 && j < count; j++) y[j] = narrow<T>(F::of(x[j]));
        }
    }
}

// --- rotary embedding -----------------------------------------------------------------------------------------------

// x X [batch, heads, seq, head_dim] with strides in numbers, head_dim contiguous; cos and sin float32 [batch or 1, seq,
// half], `angle_batch` numbers from one of the batch to the next (0 for 1) -> T [batch, heads, seq, head_dim].
// A warp for each row of head_dim numbers.
template <class X, class T>
__global__ void __launch_bounds__(256)
    rotary(const X* __restrict__ x, long long batch_stride, long long head_stride, long long seq_stride,
           const float* __restrict__ cos, const float* __restrict__ sin, long long angle_batch, int half, int heads,
           int seq, int head_dim, long long rows, T* __restrict__ y) {
    const long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    if (row >= rows) return;
    int t, head;
    const long long batch = divided(divided(row, seq, t), heads, head);
    const X* from = x + batch * batch_stride + head * head_stride + t * seq_stride;
    const long long angle = batch * angle_batch + (long long)t * half;
    T* to = y + row * head_dim;
    for (int i = threadIdx.x % 32; i < head_dim - half; i += 32) {
        if (i < half) {
            const float first = widen(from[i]), second = widen(from[i + half]), c = cos[angle + i], s = sin[angle + i];
            to[i] = narrow<T>(first * c - second * s);
            to[i + half] = narrow<T>(second * c + first * s);
        } else {
            to[i + half] = narrow<T>(widen(from[i + half]));
        }
    }
}

// --- the cache ------------------------------------------------------------------------------------------------------

// Keys and values of new tokens [batch, heads, seq, head_dim] into storage [batch, heads, capacity, head_dim] from a
// position on: `*at` where `at` is given, else `position`.  What lies outside of the storage is not written.
// All strides are in numbers; head_dim is contiguous.  A warp for each row; blockIdx.y is 0 for keys and 1 for values.

template <class S, class C>
__device__ __forceinline__ void copy_row(const S* from, C* to, int head_dim) {
    for (int i = threadIdx.x % 32; i < head_dim; i += 32) to[i] = narrow<C>(widen(from[i]));
}

template <class K, class V, class C>
__global__ void __launch_bounds__(256)
    store(const K* __restrict__ key, long long key_batch, long long key_head, long long key_seq,
          const V* __restrict__ value, long long value_batch, long long value_head, long long value_seq,
          C* __restrict__ key_storage, long long key_storage_batch, long long key_storage_head,
          long long key_storage_seq, C* __restrict__ value_storage, long long value_storage_batch,
          long long value_storage_head, long long value_storage_seq, const long long* __restrict__ at, int position,
          int heads, int seq, int head_dim, int capacity, long long rows) {
    const long long row = blockIdx.x * 8ll + threadIdx.x / 32;
    if (row >= rows) return;
    int t, head;
    const long long batch = divided(divided(row, seq, t), heads, head);
    const long long place = (at ? *at : position) + t;
    if (place < 0 || place >= capacity) return;
    if (blockIdx.y == 0) {
        copy_row<K, C>(key + batch * key_batch + head * key_head + t * key_seq,
                       key_storage + batch * key_storage_batch + head * key_storage_head + place * key_storage_seq,
                       head_dim);
    } else {
        copy_row<V, C>(value + batch * value_batch + head * value_head + t * value_seq,
                       value_storage + batch * value_storage_batch + head * value_storage_head +
                           place * value_storage_seq,
                       head_dim);
    }
}

// --- rows of weights ------------------------------------------------------------------------------------------------

// ids [count] -> float32 [count, in]; a row of NaN for an id that there is not.  A block for each id.
template <class W, bool QUADS>
__global__ void __launch_bounds__(256)
    embedding(const W* numbers, const float* units, const float* table, int block_shift, int out, int in,
              const long long* __restrict__ ids, float* __restrict__ y) {
    const Matrix<W> matrix = {numbers, units, table, block_shift, out, in};
    const long long id = ids[blockIdx.x];
    const bool there = id >= 0 && id < out;
    float* row = y + (long long)blockIdx.x * in;
    for (int k = threadIdx.x * 4; k < in; k += 256 * 4) {
        float nan = not_a_number();
        float4 quad = there ? dense_quad<W, QUADS>(matrix, (int)id, k) : make_float4(nan, nan, nan, nan);
        store_in_row<float, QUADS>(row, in, k, quad);
    }
}

// --- looking for one number -----------------------------------------------------------------------------------------

// Whether a stands before b where the largest is looked for: NaN before all numbers, the first of equal ones.
__device__ __forceinline__ bool stands_before(float a, int a_at, float b, int b_at) {
    const bool a_nan = a != a, b_nan = b != b;
    if (a_nan != b_nan) return a_nan;
    if (!a_nan && a != b) return a > b;
    return a_at < b_at;
}

// The place of the largest number of each row, -1 where that is infinite or NaN.  A block for each row.
// x X [rows, count], `stride` numbers from row to row -> int64 [rows].
template <class X>
__global__ void __launch_bounds__(1024)
    likeliest(const X* __restrict__ x, long long stride, int count, long long* __restrict__ y) {
    __shared__ float values[32];
    __shared__ int places[32];
    const X* row = x + blockIdx.x * stride;
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    float best = -infinity();
    int at = 0x7fffffff;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const float value = widen(row[i]);
        if (stands_before(value, i, best, at)) best = value, at = i;
    }
    for (int round = 0; round < 2; round++) {
        for (int lanes = 16; lanes > 0; lanes /= 2) {
            const float value = shuffle_xor(best, lanes);
            const int place = shuffle_xor(at, lanes);
            if (stands_before(value, place, best, at)) best = value, at = place;
        }
        if (round == 0) {
            if (lane == 0) values[threadIdx.x / 32] = best, places[threadIdx.x / 32] = at;
            __syncthreads();
            best = lane < warps ? values[lane] : -infinity();
            at = lane < warps ? places[lane] : 0x7fffffff;
        }
    }
    if (threadIdx.x == 0) y[blockIdx.x] = fabsf(best) < infinity() ? at : -1;
}

// *found becomes 1 if there is NaN or infinity in x; else it stays.
template <class X>
__global__ void __launch_bounds__(256) find_nonfinite(const X* __restrict__ x, long long count, int* found) {
    bool wrong = false;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
        wrong |= (bits_of_float(widen(x[i])) & 0x7f800000u) == 0x7f800000u;
    }
    if (vote_any(wrong) && threadIdx.x % 32 == 0) *found = 1;
}
