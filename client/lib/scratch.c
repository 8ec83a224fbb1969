/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room in a ring's scratch memory: cells of 1 KiB, first fit in a bitmap that is ours, not shared. Requests end in any
 * order, so a bump pointer would not do; and first fit gives a thread that makes one call at a time the same, cached,
 * memory each time. One thread at a time (the ring's).
 */
#include "client/lib/client.h"

#define WORD_BITS 64

int client_scratch_init(struct client_scratch *scratch, void *base, uint64_t size_bytes)
{
    uint32_t n_cells = (uint32_t)(size_bytes / CLIENT_CELL_BYTES);
    uint64_t *used = calloc(div_round_up(n_cells, WORD_BITS), sizeof(*used));

    if (!used)
        return -ENOMEM;
    *scratch = (struct client_scratch){.base = base, .used = used, .n_cells = n_cells};
    return 0;
}

void client_scratch_deinit(struct client_scratch *scratch)
{
    free(scratch->used);
    *scratch = (struct client_scratch){0};
}

static void cells_mark(struct client_scratch *scratch, uint32_t cell, uint32_t cells, bool used)
{
    for (uint32_t i = cell; i < cell + cells; i++) {
        uint64_t bit = UINT64_C(1) << i % WORD_BITS;
        if (used)
            scratch->used[i / WORD_BITS] |= bit;
        else
            scratch->used[i / WORD_BITS] &= ~bit;
    }
}

bool client_scratch_take(struct client_scratch *scratch, uint64_t size_bytes, uint32_t *ret_cell, uint32_t *ret_cells)
{
    uint64_t wanted = MAX(div_round_up(size_bytes, CLIENT_CELL_BYTES), UINT64_C(1));
    uint32_t run = 0;

    for (uint32_t i = 0; i < scratch->n_cells;) {
        uint64_t word = scratch->used[i / WORD_BITS];
        if (i % WORD_BITS == 0 && word == UINT64_MAX) { /* a full word at a time */
            run = 0;
            i += WORD_BITS;
            continue;
        }
        run = word >> i % WORD_BITS & 1 ? 0 : run + 1;
        i++;
        if (run == wanted) {
            *ret_cell = i - run;
            *ret_cells = run;
            cells_mark(scratch, i - run, run, true);
            return true;
        }
    }
    return false;
}

void client_scratch_give(struct client_scratch *scratch, uint32_t cell, uint32_t cells)
{
    cells_mark(scratch, cell, cells, false);
}
