/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which of the versions of adam_kernel.inc runs, and in which rounding mode. Decided by hand as the program runs: sanitizers
 * and static programs do not go well with the loader's way (ifunc). No state. Any thread.
 */
#include "client/lib/train.h"

/* --- Rounding --------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)

#define MXCSR_MODE 0x9fc0u /* all exceptions masked, to nearest, flush to zero, denormals are zeros */

unsigned client_train_mode_enter(void)
{
    unsigned before = __builtin_ia32_stmxcsr();

    __builtin_ia32_ldmxcsr(MXCSR_MODE);
    return before;
}

void client_train_mode_leave(unsigned before)
{
    __builtin_ia32_ldmxcsr(before);
}

#elif defined(__aarch64__)

#define FPCR_MODE (UINT64_C(1) << 24) /* to nearest, flush to zero */

unsigned client_train_mode_enter(void)
{
    uint64_t before;

    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"(FPCR_MODE));
    return (unsigned)before;
}

void client_train_mode_leave(unsigned before)
{
    __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)before));
}

#else
#error "how is this processor told to flush denormal numbers to zero?"
#endif

/* --- Versions --------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)

const struct adam_code *client_adam_code(unsigned nth)
{
    const struct adam_code *all[3];
    unsigned count = 0;

    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        all[count++] = &client_adam_avx512;
    if (__builtin_cpu_supports("avx2"))
        all[count++] = &client_adam_avx2;
    all[count++] = &client_adam_baseline;
    return nth < count ? all[nth] : NULL;
}

#else

const struct adam_code *client_adam_code(unsigned nth)
{
    return nth == 0 ? &client_adam_baseline : NULL;
}

#endif
