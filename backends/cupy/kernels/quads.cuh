// Four neighbours at a time, in float32 or 16 bits, at addresses that are multiples of their size.
#ifndef REFIMPL_QUADS_CUH
#define REFIMPL_QUADS_CUH

#include "device.cuh"

template <class T>
__device__ __forceinline__ float4 load_quad(const T* from) {
    uint2 pairs = *(const uint2*)from;
    float2 low = widen_pair<T>(pairs.x), high = widen_pair<T>(pairs.y);
    return make_float4(low.x, low.y, high.x, high.y);
}

template <>
__device__ __forceinline__ float4 load_quad<float>(const float* from) {
    return *(const float4*)from;
}

template <class T>
__device__ __forceinline__ void store_quad(T* to, float4 x) {
    *(uint2*)to = make_uint2(narrow_pair<T>(x.x, x.y), narrow_pair<T>(x.z, x.w));
}

template <>
__device__ __forceinline__ void store_quad<float>(float* to, float4 x) {
    *(float4*)to = x;
}

// number / by, and what is left.  Hardly any number here needs more than 32 bits, and in them a division takes a
// fraction of the time.  Neither is negative.
__device__ __forceinline__ long long divided(long long number, int by, int& left) {
    const long long quotient =
        number <= 0xffffffffll ? (long long)((unsigned)number / (unsigned)by) : number / by;
    left = (int)(number - quotient * by);
    return quotient;
}

// The sum of a value over the lanes of a warp, which all get it.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
    return value;
}

#endif
