// What the kernels of attention share: numbers of a type that is known at launch, and which keys a query sees.
#ifndef REFIMPL_ATTENTION_CUH
#define REFIMPL_ATTENTION_CUH

#include "device.cuh"

// Queries are read once and contexts written once for many keys: their type is an argument, so that one compiled
// kernel serves them all.  The order is that of `_TYPES` in attention.py.
enum : int { FLOAT32, FLOAT16, BFLOAT16 };

__device__ __forceinline__ float load_number(const void* array, int type, long long index) {
    if (type == FLOAT32) return ((const float*)array)[index];
    if (type == FLOAT16) return widen(((const float16*)array)[index]);
    return widen(((const bfloat16*)array)[index]);
}

__device__ __forceinline__ void store_number(void* array, int type, long long index, float number) {
    if (type == FLOAT32) ((float*)array)[index] = number;
    else if (type == FLOAT16) ((float16*)array)[index] = narrow<float16>(number);
    else ((bfloat16*)array)[index] = narrow<bfloat16>(number);
}

// How many keys stand before the first query; all of them at most, so that no sum with it overflows.  Where it is kept
// on the device a recorded step reads it afresh.
__device__ __forceinline__ int keys_before(const long long* offset_at, int offset, int keys) {
    if (!offset_at) return min(offset, keys);
    const long long before = *offset_at;
    return before < keys ? (int)before : keys;
}

// Query `row` sees the keys below this, but for those that are hidden; `keys` is how many there is room for.
__device__ __forceinline__ int keys_seen(int before, int row, int keys) { return min(before + row + 1, keys); }

// 16 bytes of a row of keys or values.
template <class K>
union Piece {
    static constexpr int SIZE = 16 / (int)sizeof(K);
    uint4 words;
    K numbers[SIZE];
};

// Numbers `first` and on of a row of `size`; 0 beyond it, and everywhere, with nothing read, where `there` is false.
// WIDE: the row begins at a multiple of 16 bytes, and `size` is a multiple of 16 bytes.
template <class K, bool WIDE>
__device__ __forceinline__ void load_piece(Piece<K>& piece, const K* row, int first, int size, bool there) {
    piece.words = make_uint4(0, 0, 0, 0);
    if (WIDE) {
        if (there && first < size) piece.words = load_once16(row + first);
    } else {
#pragma unroll
        for (int i = 0; i < Piece<K>::SIZE; ++i)
            if (there && first + i < size) piece.numbers[i] = row[first + i];
    }
}

// e**(score - peak): 0 for a hidden key (-infinity), also where no key has been seen and the peak is -infinity too.
__device__ __forceinline__ float weight_of(float score, float peak) {
    return expf(score - (peak == -infinity() ? 0.0f : peak));
}

#endif
