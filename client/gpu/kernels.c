/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels' machine code, as part of the library: no file to install, none to find. */
#include "client/gpu/kernels.h"

__asm__(".pushsection .rodata\n"
        ".global kernels_ptx\n"
        ".hidden kernels_ptx\n"
        ".type kernels_ptx, %object\n"
        "kernels_ptx:\n"
        ".incbin \"client/gpu/kernels.ptx\"\n"
        ".byte 0\n"
        ".size kernels_ptx, . - kernels_ptx\n"
        ".popsection\n");
