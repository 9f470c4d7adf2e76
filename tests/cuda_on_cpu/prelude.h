// CUDA C++ for a compiler of the host: the words of the language that kernels use, over fibers.h.
// Everything that kernels may name without a header stands here; device.cuh beside it knows the rest.
#pragma once

#include <algorithm>
#include <cmath>
#include <tuple>
#include <type_traits>
#include <utility>

#include "fibers.h"

// What NVRTC does not define without a header of a toolkit.
#undef INFINITY
#undef NAN

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// All of a module in one section, so that it can be poisoned before every block.
#define __shared__ static __attribute__((section("cuda_shared"), aligned(16)))

#ifdef CUDA_ON_CPU_ARCHITECTURE
#define __CUDA_ARCH__ CUDA_ON_CPU_ARCHITECTURE
#else
#define __CUDA_ARCH__ 900
#endif

// --- vectors ------------------------------------------------------------------------------------------------------

#define CUDA_ON_CPU_VECTORS(name, type, unsigned_bytes)                                                            \
    struct name##2 {                                                                                               \
        alignas(2 * unsigned_bytes) type x;                                                                        \
        type y;                                                                                                    \
    };                                                                                                             \
    struct name##3 {                                                                                               \
        type x, y, z;                                                                                              \
    };                                                                                                             \
    struct name##4 {                                                                                               \
        alignas(4 * unsigned_bytes > 16 ? 16 : 4 * unsigned_bytes) type x;                                         \
        type y, z, w;                                                                                              \
    };                                                                                                             \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                               \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                                    \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_ON_CPU_VECTORS(char, signed char, 1)
CUDA_ON_CPU_VECTORS(uchar, unsigned char, 1)
CUDA_ON_CPU_VECTORS(short, short, 2)
CUDA_ON_CPU_VECTORS(ushort, unsigned short, 2)
CUDA_ON_CPU_VECTORS(int, int, 4)
CUDA_ON_CPU_VECTORS(uint, unsigned, 4)
CUDA_ON_CPU_VECTORS(longlong, long long, 8)
CUDA_ON_CPU_VECTORS(ulonglong, unsigned long long, 8)
CUDA_ON_CPU_VECTORS(float, float, 4)
CUDA_ON_CPU_VECTORS(double, double, 8)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

#define threadIdx (::cuda_on_cpu::current->index)
#define blockIdx (::cuda_on_cpu::launch.block)
#define blockDim (::cuda_on_cpu::launch.block_size)
#define gridDim (::cuda_on_cpu::launch.grid)
constexpr int warpSize = 32;

// --- waiting ------------------------------------------------------------------------------------------------------

inline void __syncthreads(int line = __builtin_LINE()) { cuda_on_cpu::wait_for_block(line); }

inline void __syncwarp(int line = __builtin_LINE()) {
    cuda_on_cpu::exchange<char, char>("__syncwarp", line, 0, [](const char*, char*) {});
}

inline void __threadfence() {}
inline void __threadfence_block() {}

[[noreturn]] inline void __trap(int line = __builtin_LINE()) {
    cuda_on_cpu::fail("the kernel gave up: __trap (line %d)", line);
}

// --- numbers ------------------------------------------------------------------------------------------------------

#define CUDA_ON_CPU_LEAST(type)                                                                                    \
    inline type min(type a, type b) { return b < a ? b : a; }                                                      \
    inline type max(type a, type b) { return a < b ? b : a; }

CUDA_ON_CPU_LEAST(int)
CUDA_ON_CPU_LEAST(unsigned)
CUDA_ON_CPU_LEAST(long)
CUDA_ON_CPU_LEAST(unsigned long)
CUDA_ON_CPU_LEAST(long long)
CUDA_ON_CPU_LEAST(unsigned long long)

// As fminf and fmaxf: a NaN gives way to a number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline float rsqrtf(float x) { return float(1 / sqrt(double(x))); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { volatile float sum = a + b; return sum; }
inline float __fsub_rn(float a, float b) { volatile float difference = a - b; return difference; }
inline float __fmul_rn(float a, float b) { volatile float product = a * b; return product; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline int __float2int_rn(float x) { return int(rintf(x)); }

namespace cuda_on_cpu {
template <class To, class From>
To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}
} // namespace cuda_on_cpu

inline unsigned __float_as_uint(float x) { return cuda_on_cpu::bits<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_on_cpu::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::bits<float>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::bits<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) {
        y = y << 1 | (x >> i & 1);
    }
    return y;
}

// Four bytes chosen from the eight of `low` and `high`; the highest bit of a choice spreads the sign of the byte.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned choices) {
    unsigned long long all = (unsigned long long)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned choice = choices >> 4 * i & 15, byte = unsigned(all >> 8 * (choice & 7)) & 255;
        result |= (choice & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return result;
}

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) {
        c += (signed char)(a >> 8 * i) * (signed char)(b >> 8 * i);
    }
    return c;
}

template <class T>
T __ldg(const T* from) {
    return *from;
}
template <class T>
T __ldcs(const T* from) {
    return *from;
}
template <class T>
T __ldcg(const T* from) {
    return *from;
}
template <class T>
void __stcs(T* to, T value) {
    *to = value;
}
template <class T>
void __stcg(T* to, T value) {
    *to = value;
}

// Of whole numbers only: sums of floats would depend on who comes first.
template <class T>
T atomicAdd(T* at, std::enable_if_t<std::is_integral_v<T>, T> value) {
    T before = *at;
    *at += value;
    return before;
}
template <class T>
T atomicMax(T* at, std::enable_if_t<std::is_integral_v<T>, T> value) {
    T before = *at;
    *at = before < value ? value : before;
    return before;
}
template <class T>
T atomicMin(T* at, std::enable_if_t<std::is_integral_v<T>, T> value) {
    T before = *at;
    *at = value < before ? value : before;
    return before;
}
template <class T>
T atomicExch(T* at, std::enable_if_t<std::is_arithmetic_v<T>, T> value) {
    T before = *at;
    *at = value;
    return before;
}
template <class T>
T atomicCAS(T* at, std::enable_if_t<std::is_integral_v<T>, T> expected, std::enable_if_t<std::is_integral_v<T>, T> value) {
    T before = *at;
    *at = before == expected ? value : before;
    return before;
}

// --- what the host sees of a module -------------------------------------------------------------------------------

extern "C" __attribute__((weak, visibility("hidden"))) char __start_cuda_shared[];
extern "C" __attribute__((weak, visibility("hidden"))) char __stop_cuda_shared[];

namespace cuda_on_cpu {

// Of a parameter: its size, and what it is: 'p'ointer, 'f'loat, 'i'nteger (signed), 'u'nsigned, 's'tructure.
// Of what a pointer points to: the same; 0 bytes of kind 'v' for void.
struct Parameter {
    int size;
    char kind;
    int pointee_size;
    char pointee_kind;
};

template <class T>
constexpr char kind_of() {
    if constexpr (std::is_pointer_v<T>) {
        return 'p';
    } else if constexpr (std::is_floating_point_v<T>) {
        return 'f';
    } else if constexpr (std::is_integral_v<T>) {
        return std::is_signed_v<T> ? 'i' : 'u';
    } else {
        return 's';
    }
}

template <class T>
constexpr Parameter parameter() {
    using Pointee = std::remove_cv_t<std::remove_pointer_t<T>>;
    if constexpr (!std::is_pointer_v<T>) {
        return {sizeof(T), kind_of<T>(), 0, 0};
    } else if constexpr (std::is_void_v<Pointee>) {
        return {sizeof(T), 'p', 0, 'v'};
    } else {
        return {sizeof(T), 'p', sizeof(Pointee), kind_of<Pointee>()};
    }
}

struct Instance {
    const char* name;
    const Parameter* parameters;
    int count;
    void (*run)(void** arguments);
};

template <class... P, size_t... I>
void apply(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<P>*>(arguments[I])...);
}

template <class... P>
constexpr int count_of(void (*)(P...)) {
    return sizeof...(P);
}

template <class... P>
const Parameter* parameters_of(void (*)(P...)) {
    static constexpr Parameter all[] = {parameter<P>()..., {0, 0, 0, 0}};
    return all;
}

template <class... P>
void call(void (*kernel)(P...), void** arguments) {
    apply(kernel, arguments, std::index_sequence_for<P...>());
}

// What -fsanitize calls.
struct SourceLocation {
    const char* file;
    unsigned line, column;
};

struct MismatchedType {
    SourceLocation at;
    const void* type;
    unsigned char log_alignment, kind;
};

} // namespace cuda_on_cpu

#define CUDA_ON_CPU_HANDLER extern "C" __attribute__((visibility("hidden"), noinline))

CUDA_ON_CPU_HANDLER void __ubsan_handle_type_mismatch_v1(const cuda_on_cpu::MismatchedType* data, uintptr_t address) {
    if (address) {
        cuda_on_cpu::fail("misaligned address (line %u): it has to be a multiple of %u", data->at.line,
                          1u << data->log_alignment);
    }
    cuda_on_cpu::fail("null pointer (line %u)", data->at.line);
}

CUDA_ON_CPU_HANDLER void __ubsan_handle_out_of_bounds(const cuda_on_cpu::SourceLocation* data, uintptr_t index) {
    cuda_on_cpu::fail("index %lld outside of the array (line %u)", (long long)index, data->line);
}
