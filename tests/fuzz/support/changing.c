/* SPDX-License-Identifier: Apache-2.0 */
/* See changing.h. */
#include "tests/fuzz/support/changing.h"

struct change {
    uint32_t skip, left; /* loads */
    uint8_t *at;
    uint8_t xor, n_bytes;
};

struct watched {
    const uint8_t *base;
    size_t size_bytes;
    uint8_t *ours;
};

static struct {
    struct watched watched[CHANGING_MAX];
    uint32_t n_watched;
    struct change changes[CHANGING_MAX];
    uint32_t n_changes, n_changed;
} c;

void changing_reset(void)
{
    memset(&c, 0, sizeof(c));
}

void changing_watch_as(const void *mem, size_t size_bytes, void *ours)
{
    if (c.n_watched < CHANGING_MAX)
        c.watched[c.n_watched++] = (struct watched){mem, size_bytes, ours};
}

void changing_watch(void *mem, size_t size_bytes)
{
    changing_watch_as(mem, size_bytes, mem);
}

void changing_arm(struct fuzz *f)
{
    uint8_t how = fuzz_u8(f), which = fuzz_u8(f);
    uint16_t off = fuzz_u16(f);

    if (c.n_changes == CHANGING_MAX || c.n_watched == 0)
        return;
    const struct watched *w = &c.watched[which % c.n_watched];
    struct change *change = &c.changes[c.n_changes++];

    *change = (struct change){.skip = how % 64, .left = 1 + how / 64, .n_bytes = which & 128 ? 4 : 1};
    change->at = w->ours + off % (w->size_bytes - change->n_bytes + 1);
    change->xor = fuzz_u8(f);
}

uint32_t changing_count(void)
{
    return c.n_changed;
}

static bool is_watched(const void *at)
{
    for (uint32_t i = 0; i < c.n_watched; i++)
        if ((uintptr_t)at - (uintptr_t)c.watched[i].base < c.watched[i].size_bytes)
            return true;
    return false;
}

static void on_load(const void *at)
{
    if (c.n_changes == 0 || !is_watched(at))
        return;
    for (uint32_t i = 0; i < c.n_changes; i++) {
        struct change *change = &c.changes[i];

        if (change->skip > 0) {
            change->skip--;
            continue;
        }
        for (uint8_t b = 0; change->left > 0 && b < change->n_bytes; b++)
            change->at[b] ^= change->xor ;
        c.n_changed += change->left > 0;
        change->left -= change->left > 0;
        if (change->left == 0) { /* the last takes its place */
            c.changes[i] = c.changes[--c.n_changes];
            i--;
        }
    }
}

/* What the compiler calls. */
#define ON_LOAD(n)                                                                                                     \
    void __sanitizer_cov_load##n(const void *at);                                                                      \
    void __sanitizer_cov_load##n(const void *at)                                                                       \
    {                                                                                                                  \
        on_load(at);                                                                                                   \
    }
ON_LOAD(1)
ON_LOAD(2)
ON_LOAD(4)
ON_LOAD(8)
ON_LOAD(16)
