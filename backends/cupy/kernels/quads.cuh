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

// The sum of a value over the lanes of a warp, which all get it.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
    return value;
}

#endif
