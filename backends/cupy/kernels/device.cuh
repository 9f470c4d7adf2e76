// What depends on the hardware, and nothing else does: number formats, exchange within a warp, copies past the
// registers, tensor cores.  From sm_70 on; what needs sm_80 has a plain form below it or says so.
//
// NVRTC takes this without any header of a toolkit.  Every function that exchanges values is called by whole warps.
#ifndef REFIMPL_DEVICE_CUH
#define REFIMPL_DEVICE_CUH

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define HAS_TENSOR_CORES 1  // mma_16x8x16; also a matrix load and copies that need no register
#else
#define HAS_TENSOR_CORES 0
#endif

// --- numbers of 16 bits -------------------------------------------------------------------------------------------

struct float16 {
    unsigned short bits;
};

struct bfloat16 {
    unsigned short bits;
};

__device__ __forceinline__ float float_of_bits(unsigned bits) { return __uint_as_float(bits); }
__device__ __forceinline__ unsigned bits_of_float(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float not_a_number() { return float_of_bits(0x7fc00000u); }
__device__ __forceinline__ float infinity() { return float_of_bits(0x7f800000u); }

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(signed char x) { return (float)x; }
__device__ __forceinline__ float widen(bfloat16 x) { return float_of_bits((unsigned)x.bits << 16); }
__device__ __forceinline__ float widen(float16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// Rounded to the nearest, ties to even; NaN stays NaN.
template <class T>
__device__ __forceinline__ T narrow(float x);

template <>
__device__ __forceinline__ float narrow<float>(float x) {
    return x;
}

template <>
__device__ __forceinline__ float16 narrow<float16>(float x) {
    float16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

template <>
__device__ __forceinline__ bfloat16 narrow<bfloat16>(float x) {
    bfloat16 y;
#if HAS_TENSOR_CORES
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    unsigned bits = bits_of_float(x);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    y.bits = (unsigned short)(nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
    return y;
}

// 2**x to about 2 units in the last place, in one instruction; what is not a normal number becomes 0.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two neighbours in a word; the first is in the low half.
template <class T>
__device__ __forceinline__ float2 widen_pair(unsigned pair);

template <>
__device__ __forceinline__ float2 widen_pair<bfloat16>(unsigned pair) {
    return make_float2(float_of_bits(pair << 16), float_of_bits(pair & 0xffff0000u));
}

template <>
__device__ __forceinline__ float2 widen_pair<float16>(unsigned pair) {
    return make_float2(widen(float16{(unsigned short)pair}), widen(float16{(unsigned short)(pair >> 16)}));
}

template <class T>
__device__ __forceinline__ unsigned narrow_pair(float first, float second);

template <>
__device__ __forceinline__ unsigned narrow_pair<float16>(float first, float second) {
#if HAS_TENSOR_CORES
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return narrow<float16>(first).bits | (unsigned)narrow<float16>(second).bits << 16;
#endif
}

template <>
__device__ __forceinline__ unsigned narrow_pair<bfloat16>(float first, float second) {
#if HAS_TENSOR_CORES
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return narrow<bfloat16>(first).bits | (unsigned)narrow<bfloat16>(second).bits << 16;
#endif
}

// The four signed bytes of a word, the lowest first.  Each is put, less its sign, into the low bits of 2**23, which
// one subtraction takes away again: a conversion instruction runs at a fraction of that speed.
__device__ __forceinline__ float4 widen_bytes(unsigned word) {
    unsigned positive = word ^ 0x80808080u;  // + 128
    const float base = 8388608.0f + 128.0f;
    return make_float4(float_of_bits(__byte_perm(positive, 0x4b000000u, 0x7440)) - base,
                       float_of_bits(__byte_perm(positive, 0x4b000000u, 0x7441)) - base,
                       float_of_bits(__byte_perm(positive, 0x4b000000u, 0x7442)) - base,
                       float_of_bits(__byte_perm(positive, 0x4b000000u, 0x7443)) - base);
}

// --- within a warp ------------------------------------------------------------------------------------------------

// T: int, unsigned, long long, unsigned long long, float.
template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int lanes) {
    return __shfl_xor_sync(0xffffffffu, value, lanes);
}

template <class T>
__device__ __forceinline__ T shuffle_down(T value, int lanes) {
    return __shfl_down_sync(0xffffffffu, value, lanes);
}

__device__ __forceinline__ bool vote_any(bool vote) { return __any_sync(0xffffffffu, vote); }
__device__ __forceinline__ bool vote_all(bool vote) { return __all_sync(0xffffffffu, vote); }

// --- reading ------------------------------------------------------------------------------------------------------

// 16 aligned bytes that are read once and that nobody writes meanwhile: they push nothing out of the first cache.
__device__ __forceinline__ uint4 load_once16(const void* from) {
    uint4 words;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
        : "l"(from));
    return words;
}

__device__ __forceinline__ unsigned shared_address(const void* shared) {
    return (unsigned)__cvta_generic_to_shared(shared);
}

// 16 aligned bytes from global to shared memory; zeros, and nothing is read, where `there` is false.  They have arrived
// after a commit and a wait; other threads see them after __syncthreads.
__device__ __forceinline__ void copy_async16(void* shared, const void* from, bool there = true) {
#if HAS_TENSOR_CORES
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(from), "r"(bytes)
                 : "memory");
#else
    *(uint4*)shared = there ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}

// The same for 4 bytes.
__device__ __forceinline__ void copy_async4(void* shared, const void* from, bool there = true) {
#if HAS_TENSOR_CORES
    int bytes = there ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(from), "r"(bytes)
                 : "memory");
#else
    *(unsigned*)shared = there ? *(const unsigned*)from : 0u;
#endif
}

// Closes a group of the copies that this thread has asked for.
__device__ __forceinline__ void copy_async_commit() {
#if HAS_TENSOR_CORES
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all groups of this thread but the newest PENDING have arrived.
template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
#if HAS_TENSOR_CORES
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// --- tensor cores -------------------------------------------------------------------------------------------------

// d += a b, with a [16, 16] and b [16, 8] in 16 bits and d [16, 8] in float32, spread over a warp.  With
// group = lane / 4 and place = lane % 4 * 2, a lane holds, two neighbours in each word of a and b:
//   a[0]: row group,     columns place, place + 1        a[2]: row group,     columns place + 8, place + 9
//   a[1]: row group + 8, columns place, place + 1        a[3]: row group + 8, columns place + 8, place + 9
//   b[0]: rows place, place + 1, column group            b[1]: rows place + 8, place + 9, column group
//   d[0], d[1]: row group, columns place, place + 1      d[2], d[3]: row group + 8, the same columns
// Only where HAS_TENSOR_CORES is 1.
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], float16) {
#if HAS_TENSOR_CORES
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}

__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat16) {
#if HAS_TENSOR_CORES
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}

// Four matrices [8, 8] of 16 bits from shared memory.  Lane i gives the aligned address of 16 bytes: row i % 8 of matrix
// i / 8.  to[m] is then of matrix m: row lane / 4, columns lane % 4 * 2 and the next; in the transposed form rows
// lane % 4 * 2 and the next, column lane / 4.  Only where HAS_TENSOR_CORES is 1.
__device__ __forceinline__ void load_matrix_x4(unsigned (&to)[4], const void* shared_row) {
#if HAS_TENSOR_CORES
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
#else
    __trap();
#endif
}

__device__ __forceinline__ void load_matrix_x4_transposed(unsigned (&to)[4], const void* shared_row) {
#if HAS_TENSOR_CORES
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
#else
    __trap();
#endif
}

#endif
