/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that a peer changes while it is read, at moments that the input chooses. The code under test is compiled so that each
 * of its loads tells before it happens (cmake/Fuzz.cmake, fuzz_changing_X); loads from memory that is watched are counted, and
 * at some of them it is changed first. So the second of two reads of a value sees another one: whoever reads twice what he
 * checked once is found without a race. Where the compiler cannot do that (gcc) nothing ever changes.
 */
#pragma once

#include "include/base/base.h"
#include "tests/fuzz/fuzz.h"

#define CHANGING_MAX 8 /* pieces of memory, and changes */

/* Nothing is watched, and nothing is to change. */
void changing_reset(void);
void changing_watch(void *mem, size_t size_bytes);
/* The code under test has it mapped at `mem`, perhaps not as long as we have it at `ours`. */
void changing_watch_as(const void *mem, size_t size_bytes, void *ours);
/* One change, as the input has it: after so many loads, at so many in a row, in which memory, where, what. */
void changing_arm(struct fuzz *f);
/* How often something was changed since the reset. */
uint32_t changing_count(void);
