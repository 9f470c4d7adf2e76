// Matrices [out, in] in every form in which weights are kept, read as floats.
//
// A form W is float, float16, bfloat16, signed char (whole numbers; a row has one unit) or nf4 (two codes in a byte, the
// first in the high bits; a block of codes, counted along the matrix row by row, has one unit).
#ifndef REFIMPL_WEIGHTS_CUH
#define REFIMPL_WEIGHTS_CUH

#include "device.cuh"
#include "quads.cuh"

struct nf4 {
    unsigned char pair;
};

// `is_nf4<W>`: two numbers in a byte, a table, a unit for each block.
template <class W>
constexpr bool is_nf4 = false;
template <>
constexpr bool is_nf4<nf4> = true;

// So many numbers lie in so many bytes.
template <class W>
__host__ __device__ constexpr int bytes_of(int numbers) {
    return is_nf4<W> ? numbers / 2 : numbers * (int)sizeof(W);
}

// What the kernels are told of a matrix.  `units`: of each row for signed char, of each block for nf4; else not read.
// `table`: the 16 values of nf4, else not read.  `block_shift`: log2 of the block of nf4.
template <class W>
struct Matrix {
    const W* numbers;
    const float* units;
    const float* table;
    int block_shift;
    int out;
    int in;
};

// The first byte of a number that begins one.
template <class W>
__device__ __forceinline__ const unsigned char* address_of(const Matrix<W>& matrix, int row, int k) {
    long long place = (long long)row * matrix.in + k;
    return (const unsigned char*)matrix.numbers + (is_nf4<W> ? place >> 1 : place * (long long)sizeof(W));
}

// One number, before `finish`.
template <class W>
__device__ __forceinline__ float number_at(const Matrix<W>& matrix, int row, int k) {
    return widen(matrix.numbers[(long long)row * matrix.in + k]);
}

template <>
__device__ __forceinline__ float number_at<nf4>(const Matrix<nf4>& matrix, int row, int k) {
    long long place = (long long)row * matrix.in + k;
    int pair = matrix.numbers[place >> 1].pair;
    return matrix.table[place & 1 ? pair & 15 : pair >> 4] * matrix.units[place >> matrix.block_shift];
}

// Four neighbours at an address that is a multiple of their size, before their unit; `table` is that of nf4.
template <class W>
__device__ __forceinline__ float4 quad_at(const unsigned char* from, const float* table) {
    return load_quad<W>((const W*)from);
}

template <>
__device__ __forceinline__ float4 quad_at<signed char>(const unsigned char* from, const float* table) {
    return widen_bytes(*(const unsigned*)from);
}

template <>
__device__ __forceinline__ float4 quad_at<nf4>(const unsigned char* from, const float* table) {
    unsigned codes = *(const unsigned short*)from;
    return make_float4(table[codes >> 4 & 15], table[codes & 15], table[codes >> 12], table[codes >> 8 & 15]);
}

// What is the same for a whole row is multiplied last.
template <class W>
__device__ __forceinline__ float finish(const Matrix<W>& matrix, int row, float value) {
    return value;
}

template <>
__device__ __forceinline__ float finish<signed char>(const Matrix<signed char>& matrix, int row, float value) {
    return value * matrix.units[row] * (1.0f / 127.0f);
}

// Numbers k .. k + 3 of a row as they are in the dense matrix; QUADS: k and every row begin at multiples of four, and the
// addresses at multiples of the size of four.  Else those beyond the row are zeros.
template <class W, bool QUADS>
__device__ __forceinline__ float4 dense_quad(const Matrix<W>& matrix, int row, int k) {
    float4 x = make_float4(0, 0, 0, 0);
    if constexpr (QUADS) {
        x = quad_at<W>(address_of(matrix, row, k), matrix.table);
        if constexpr (is_nf4<W>) {
            float unit = matrix.units[((long long)row * matrix.in + k) >> matrix.block_shift];
            x = make_float4(x.x * unit, x.y * unit, x.z * unit, x.w * unit);
        }
    } else {
        x.x = number_at<W>(matrix, row, k);
        if (k + 1 < matrix.in) x.y = number_at<W>(matrix, row, k + 1);
        if (k + 2 < matrix.in) x.z = number_at<W>(matrix, row, k + 2);
        if (k + 3 < matrix.in) x.w = number_at<W>(matrix, row, k + 3);
    }
    return make_float4(finish<W>(matrix, row, x.x), finish<W>(matrix, row, x.y), finish<W>(matrix, row, x.z),
                       finish<W>(matrix, row, x.w));
}

// Four numbers to k .. k + 3 of a row that begins at `to` and has `in` numbers.
template <class T, bool QUADS>
__device__ __forceinline__ void store_in_row(T* to, int in, int k, float4 x) {
    if constexpr (QUADS) {
        store_quad<T>(to + k, x);
    } else {
        to[k] = narrow<T>(x.x);
        if (k + 1 < in) to[k + 1] = narrow<T>(x.y);
        if (k + 2 < in) to[k + 2] = narrow<T>(x.z);
        if (k + 3 < in) to[k + 3] = narrow<T>(x.w);
    }
}

#endif
