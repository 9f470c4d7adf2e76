// Switching from one stack to another, without asking the system: some lines of assembly where they are known.
#pragma once

#include <cstddef>
#include <cstring>
#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

constexpr size_t STACK = 256 * 1024;

#if defined(__x86_64__)

using Context = void*;

// Saves what a function has to keep, changes the stack, and takes back what was saved there.
asm(R"(
.text
.p2align 4
.local cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
extern "C" __attribute__((visibility("hidden"))) void cuda_on_cpu_switch(Context* from, Context* to);

inline void switch_context(Context* from, Context* to) { cuda_on_cpu_switch(from, to); }

inline void begin_context(Context* context, char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr; // where a return address would lie: a function finds the stack 8 bytes off a multiple of 16
    *--top = reinterpret_cast<void*>(entry);
    *context = top - 6;
    memset(*context, 0, 6 * sizeof(void*));
}

#elif defined(__aarch64__)

using Context = void*;

asm(R"(
.text
.p2align 4
.local cuda_on_cpu_switch
.type cuda_on_cpu_switch, %function
cuda_on_cpu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    ldr x9, [x1]
    mov sp, x9
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
extern "C" __attribute__((visibility("hidden"))) void cuda_on_cpu_switch(Context* from, Context* to);

inline void switch_context(Context* from, Context* to) { cuda_on_cpu_switch(from, to); }

inline void begin_context(Context* context, char* stack, void (*entry)()) {
    void** saved = reinterpret_cast<void**>(stack + STACK - 160);
    memset(saved, 0, 160);
    saved[11] = reinterpret_cast<void*>(entry);
    *context = saved;
}

#else

using Context = ucontext_t;

inline void switch_context(Context* from, Context* to) { swapcontext(from, to); }

inline void begin_context(Context* context, char* stack, void (*entry)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = STACK;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
}

#endif

} // namespace cuda_on_cpu
