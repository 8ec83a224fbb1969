/* SPDX-License-Identifier: Apache-2.0 */
/* "did you mean 'x'?": the known name nearest to a word that is not known. */
#pragma once

#include <stddef.h>

/*
 * The name with the fewest edits (insert, delete, replace, swap of neighbours; case is free) from `word`, or NULL if
 * none is near enough to be worth saying: a third of the word's length, at least one edit. The result is one of `names`.
 */
const char *suggest_nearest(const char *word, const char *const *names, size_t n_names);
