// The twin of the header of that name among the kernels of the cupy backend: the same names, on the CPU.
// What the hardware does between lanes is an exchange of fibers.h; formats are converted bit by bit.
#ifndef REFIMPL_DEVICE_CUH
#define REFIMPL_DEVICE_CUH

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define HAS_TENSOR_CORES 1
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
    // The exponent is put right by a product, which is exact and makes subnormal numbers normal.
    unsigned magnitude = x.bits & 0x7fffu;
    unsigned y = bits_of_float(float_of_bits(magnitude << 13) * float_of_bits(0x77800000u));
    y = magnitude >= 0x7c00u ? magnitude << 13 | 0x7f800000u : y;
    return float_of_bits(y | (x.bits & 0x8000u) << 16);
}

template <class T>
__device__ __forceinline__ T narrow(float x);

template <>
__device__ __forceinline__ float narrow<float>(float x) {
    return x;
}

template <>
__device__ __forceinline__ float16 narrow<float16>(float x) {
    unsigned sign = bits_of_float(x) >> 16 & 0x8000u, magnitude = bits_of_float(x) & 0x7fffffffu, y;
    if (magnitude > 0x7f800000u) {
        return {0x7fff};
    }
    if (magnitude >= 0x477ff000u) { // from 65520 on
        y = 0x7c00u;
    } else if (magnitude >= 0x38800000u) { // from 2 ** -14 on: normal
        y = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    } else { // the last digit of 0.5 and more is worth what that of a subnormal number is
        y = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
    }
    return {(unsigned short)(sign | y)};
}

template <>
__device__ __forceinline__ bfloat16 narrow<bfloat16>(float x) {
    unsigned bits = bits_of_float(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return {0x7fff};
    }
    return {(unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <class T>
__device__ __forceinline__ float2 widen_pair(unsigned pair) {
    return make_float2(widen(T{(unsigned short)pair}), widen(T{(unsigned short)(pair >> 16)}));
}

template <class T>
__device__ __forceinline__ unsigned narrow_pair(float first, float second) {
    return narrow<T>(first).bits | (unsigned)narrow<T>(second).bits << 16;
}

// Four signed bytes, the lowest first.
__device__ __forceinline__ float4 widen_bytes(unsigned word) {
    return make_float4((float)(signed char)word, (float)(signed char)(word >> 8), (float)(signed char)(word >> 16),
                       (float)(signed char)(word >> 24));
}

__device__ __forceinline__ float power_of_two(float x) {
    float y = exp2f(x);
    return y < float_of_bits(0x00800000u) ? 0.0f : y;
}

// --- within a warp ------------------------------------------------------------------------------------------------

namespace twin {

template <class T>
struct Sent {
    T value;
    int from;
};

template <class T>
T fetch(const char* kind, T value, int from, int line) {
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, long long> ||
                      std::is_same_v<T, unsigned long long> || std::is_same_v<T, float> || std::is_same_v<T, double>,
                  "the hardware shuffles no such type");
    return cuda_on_cpu::exchange<Sent<T>, T>(kind, line, Sent<T>{value, from}, [](const Sent<T>* in, T* out) {
        for (int lane = 0; lane < 32; lane++) {
            out[lane] = in[in[lane].from].value;
        }
    });
}

inline int lane() { return cuda_on_cpu::current->number % 32; }

} // namespace twin

template <class T>
__device__ __forceinline__ T shuffle(T value, int lane, int line = __builtin_LINE()) {
    return twin::fetch("shuffle", value, lane & 31, line);
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int lanes, int line = __builtin_LINE()) {
    return twin::fetch("shuffle_xor", value, (twin::lane() ^ lanes) & 31, line);
}

template <class T>
__device__ __forceinline__ T shuffle_down(T value, int lanes, int line = __builtin_LINE()) {
    int from = twin::lane() + lanes;
    return twin::fetch("shuffle_down", value, from < 32 ? from : twin::lane(), line);
}

__device__ inline bool vote_any(bool vote, int line = __builtin_LINE()) {
    return cuda_on_cpu::exchange<bool, bool>("vote_any", line, vote, [](const bool* in, bool* out) {
        std::fill(out, out + 32, std::find(in, in + 32, true) != in + 32);
    });
}

__device__ inline bool vote_all(bool vote, int line = __builtin_LINE()) {
    return cuda_on_cpu::exchange<bool, bool>("vote_all", line, vote, [](const bool* in, bool* out) {
        std::fill(out, out + 32, std::find(in, in + 32, false) == in + 32);
    });
}

// --- reading ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint4 load_once16(const void* from) { return *(const uint4*)from; }


__device__ __forceinline__ unsigned shared_address(const void* shared) { return (unsigned)(uintptr_t)shared; }

__device__ inline void copy_async16(void* shared, const void* from, bool there = true) {
#if HAS_TENSOR_CORES
    cuda_on_cpu::begin_copy(shared, from, 16, there);
#else
    *(uint4*)shared = there ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}

__device__ inline void copy_async4(void* shared, const void* from, bool there = true) {
#if HAS_TENSOR_CORES
    cuda_on_cpu::begin_copy(shared, from, 4, there);
#else
    *(unsigned*)shared = there ? *(const unsigned*)from : 0;
#endif
}

__device__ inline void copy_async_commit() { cuda_on_cpu::close_group(); }

template <int PENDING>
__device__ inline void copy_async_wait() {
    cuda_on_cpu::end_copies(cuda_on_cpu::current, PENDING);
}

// --- tensor cores -------------------------------------------------------------------------------------------------

namespace twin {

struct Fragments {
    unsigned a[4], b[2];
    float d[4];
};

struct Sums {
    float d[4];
};

template <class T>
void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line) {
#if HAS_TENSOR_CORES
    Fragments own;
    memcpy(own.a, a, sizeof a);
    memcpy(own.b, b, sizeof b);
    memcpy(own.d, d, sizeof d);
    Sums sums = cuda_on_cpu::exchange<Fragments, Sums>("mma_16x8x16", line, own, [](const Fragments* in, Sums* out) {
        float left[16][16], right[16][8], sum[16][8]; // [row, middle], [middle, column], [row, column]
        for (int lane = 0; lane < 32; lane++) {
            int group = lane / 4, place = lane % 4 * 2;
            for (int word = 0; word < 4; word++) {
                float2 pair = widen_pair<T>(in[lane].a[word]);
                float* at = &left[group + word % 2 * 8][place + word / 2 * 8];
                at[0] = pair.x;
                at[1] = pair.y;
            }
            for (int word = 0; word < 2; word++) {
                float2 pair = widen_pair<T>(in[lane].b[word]);
                right[place + word * 8][group] = pair.x;
                right[place + word * 8 + 1][group] = pair.y;
            }
        }
        for (int row = 0; row < 16; row++) {
            for (int column = 0; column < 8; column++) {
                sum[row][column] = 0;
            }
            for (int middle = 0; middle < 16; middle++) {
                for (int column = 0; column < 8; column++) {
                    sum[row][column] += left[row][middle] * right[middle][column];
                }
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            int group = lane / 4, place = lane % 4 * 2;
            for (int i = 0; i < 4; i++) {
                out[lane].d[i] = in[lane].d[i] + sum[group + i / 2 * 8][place + i % 2];
            }
        }
    });
    memcpy(d, sums.d, sizeof d);
#else
    __trap(line);
#endif
}

template <bool TRANSPOSED>
void load_matrix(const char* kind, unsigned (&to)[4], const void* shared_row, int line) {
#if HAS_TENSOR_CORES
    struct Words {
        unsigned to[4];
    };
    if ((uintptr_t)shared_row % 16) {
        cuda_on_cpu::fail("%s (line %d): the address of a row is no multiple of 16", kind, line);
    }
    Words words = cuda_on_cpu::exchange<const void*, Words>(kind, line, shared_row, [](const void* const* in, Words* out) {
        for (int lane = 0; lane < 32; lane++) {
            for (int matrix = 0; matrix < 4; matrix++) {
                int row = lane / 4, column = lane % 4 * 2;
                unsigned pair[2];
                for (int i = 0; i < 2; i++) {
                    int r = TRANSPOSED ? column + i : row, c = TRANSPOSED ? row : column + i;
                    pair[i] = ((const unsigned short*)in[matrix * 8 + r])[c];
                }
                out[lane].to[matrix] = pair[0] | pair[1] << 16;
            }
        }
    });
    memcpy(to, words.to, sizeof to);
#else
    __trap(line);
#endif
}

} // namespace twin

__device__ inline void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], float16,
                                   int line = __builtin_LINE()) {
    twin::multiply<float16>(d, a, b, line);
}

__device__ inline void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat16,
                                   int line = __builtin_LINE()) {
    twin::multiply<bfloat16>(d, a, b, line);
}

__device__ inline void load_matrix_x4(unsigned (&to)[4], const void* shared_row, int line = __builtin_LINE()) {
    twin::load_matrix<false>("load_matrix_x4", to, shared_row, line);
}

__device__ inline void load_matrix_x4_transposed(unsigned (&to)[4], const void* shared_row,
                                                 int line = __builtin_LINE()) {
    twin::load_matrix<true>("load_matrix_x4_transposed", to, shared_row, line);
}

#endif
