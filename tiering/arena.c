/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the maps of slabs and extents. Invariants: a frame belongs to at most one slab; a slab is linked in the list of
 * its size exactly if it has room and its chunk is not closing; used_sectors is the sum over all extents in use in
 * chunks that are not; an extent never crosses a window because a slab never does.
 * What is cut out of a slab leaves up to two: the one behind may begin within a frame (its lead), where its extents
 * lie.
 */
#include "tiering/arena.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW_FRAMES ((uint32_t)(WINDOW_BYTES / FRAME_BYTES))
#define WORDS_PER_FRAME (FRAME_SECTORS / 64)
#define SLAB_FRAMES_MIN ((uint32_t)(SLAB_BYTES_MIN / FRAME_BYTES))
#define SLAB_FRAMES_MAX ((uint32_t)(SLAB_BYTES_MAX / FRAME_BYTES))

int arena_init(struct arena *a)
{
    *a = (struct arena){0};
    list_init(&a->chunks);
    a->partial = calloc(EXTENT_SECTORS_MAX + 1, sizeof(*a->partial));
    a->frames_of = calloc(EXTENT_SECTORS_MAX + 1, sizeof(*a->frames_of));
    if (!a->partial || !a->frames_of) {
        free(a->partial);
        free(a->frames_of);
        *a = (struct arena){0};
        return -ENOMEM;
    }
    for (uint32_t i = 0; i <= EXTENT_SECTORS_MAX; i++)
        list_init(&a->partial[i]);
    return 0;
}

static void arena_chunk_free(struct arena_chunk *c)
{
    free(c->slab_of);
    free(c->slabs);
    free(c->used);
    free(c->owner);
    free(c);
}

void arena_deinit(struct arena *a)
{
    if (!a->partial)
        return;
    list_for_each_safe (l, &a->chunks)
        arena_chunk_free(list_entry(l, struct arena_chunk, link));
    free(a->partial);
    free(a->frames_of);
    *a = (struct arena){0};
}

int arena_chunk_add(struct arena *a, uint32_t region, uint32_t epoch, uint64_t size_bytes,
                    struct arena_chunk **ret_chunk)
{
    size_t n = size_bytes / FRAME_BYTES;
    struct arena_chunk *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    *c = (struct arena_chunk){.arena = a,
                              .region = region,
                              .epoch = epoch,
                              .n_frames = (uint32_t)n,
                              .n_free = (uint32_t)n,
                              .slab_of = calloc(n + 1, sizeof(*c->slab_of)),
                              .slabs = calloc(n + 1, sizeof(*c->slabs)),
                              .used = calloc(n + 1, WORDS_PER_FRAME * sizeof(*c->used)),
                              .owner = calloc(n + 1, FRAME_SECTORS * sizeof(*c->owner))};
    if (!c->slab_of || !c->slabs || !c->used || !c->owner) {
        arena_chunk_free(c);
        return -ENOMEM;
    }
    list_push_tail(&a->chunks, &c->link);
    a->total_frames += c->n_frames;
    a->free_frames += c->n_frames;
    a->total_sectors += (uint64_t)c->n_frames * FRAME_SECTORS;
    *ret_chunk = c;
    return 0;
}

/* In millionths of the slab; under 0.2 % is good enough, and as good as none. */
static uint64_t arena_slab_waste(uint32_t sectors, uint32_t n_frames)
{
    uint64_t waste = UINT64_C(1000000) * (n_frames * FRAME_SECTORS % sectors) / ((uint64_t)n_frames * FRAME_SECTORS);

    return waste < 2000 ? 0 : waste;
}

uint32_t arena_slab_frames(uint32_t sectors, uint32_t max_frames)
{
    uint32_t least = (uint32_t)div_round_up(sectors, FRAME_SECTORS);
    uint32_t most = MAX(least, MIN(SLAB_FRAMES_MAX, max_frames));
    bool is_small = most < SLAB_FRAMES_MIN; /* then the longest of those that waste least, which may be short */
    uint32_t best = is_small ? least : MAX(least, SLAB_FRAMES_MIN);
    uint64_t best_waste = arena_slab_waste(sectors, best);

    for (uint32_t n = best + 1; n <= most && (is_small || best_waste > 0); n++) {
        uint64_t waste = arena_slab_waste(sectors, n);

        if (waste < best_waste || (is_small && waste == best_waste)) {
            best_waste = waste;
            best = n;
        }
    }
    return best;
}

/* As arena_slab_new() makes them: short ones first. */
uint64_t arena_frames_of(uint32_t sectors, uint64_t n, uint64_t total_frames)
{
    uint64_t least = div_round_up(sectors, FRAME_SECTORS), frames = 0;
    uint32_t most = (uint32_t)MAX(MIN(total_frames / 8, (uint64_t)SLAB_FRAMES_MAX), least);
    uint32_t best = arena_slab_frames(sectors, most);

    for (uint64_t slab; n > 0 && (slab = MIN((uint64_t)best, MAX(least, frames))) < best;) {
        uint64_t here = MIN(n, slab * FRAME_SECTORS / sectors);

        frames += here == n ? div_round_up(n * sectors, FRAME_SECTORS) : slab;
        n -= here;
    }
    uint64_t each = (uint64_t)best * FRAME_SECTORS / sectors;

    assert(each > 0);
    return frames + n / each * best + div_round_up(n % each * sectors, FRAME_SECTORS);
}

/* The sector of its first extent. */
static uint32_t arena_slab_start(const struct arena_slab *s)
{
    return s->first_frame * FRAME_SECTORS + s->lead;
}

/* Sets how many frames the slab has, and so how many extents. */
static void arena_slab_resize(struct arena_slab *s, uint32_t n_frames)
{
    s->n_frames = (uint16_t)n_frames;
    s->n_extents = (uint16_t)((n_frames * FRAME_SECTORS - s->lead) / s->sectors);
}

/* The first run of n free frames that does not cross a window. UINT32_MAX if there is none. */
static uint32_t arena_find_run(const struct arena_chunk *c, uint32_t n)
{
    uint32_t run = 0;

    if (c->n_free < n)
        return UINT32_MAX;
    for (uint32_t i = 0; i < c->n_frames; i++) {
        if (i % WINDOW_FRAMES == 0)
            run = 0;
        run = c->slab_of[i] ? 0 : run + 1;
        if (run == n)
            return i + 1 - n;
    }
    return UINT32_MAX;
}

/* Frames become a slab, whose bitmap is as it was. */
static struct arena_slab *arena_slab_claim(struct arena_chunk *c, uint32_t first, uint32_t n, uint32_t sectors,
                                           uint32_t lead)
{
    struct arena *a = c->arena;
    struct arena_slab *s = &c->slabs[first];

    *s = (struct arena_slab){.first_frame = first, .sectors = sectors, .lead = (uint16_t)lead};
    arena_slab_resize(s, n);
    for (uint32_t i = 0; i < n; i++)
        c->slab_of[first + i] = first + 1;
    c->n_free -= n;
    a->free_frames -= n; /* its chunk is not closing */
    a->frames_of[sectors] += n;
    a->slab_sectors += (uint64_t)n * FRAME_SECTORS;
    list_push_tail(&a->partial[sectors], &s->link);
    return s;
}

static struct arena_slab *arena_slab_make(struct arena_chunk *c, uint32_t first, uint32_t n, uint32_t sectors,
                                          uint32_t lead)
{
    memset(&c->used[(size_t)first * WORDS_PER_FRAME], 0, (size_t)n * WORDS_PER_FRAME * sizeof(*c->used));
    return arena_slab_claim(c, first, n, sectors, lead);
}

/* A new slab: of the best length, but no longer than all that its size has already; or any shorter that fits. */
static struct arena_slab *arena_slab_new(struct arena *a, uint32_t sectors, struct arena_chunk **ret_chunk)
{
    uint32_t least = (uint32_t)div_round_up(sectors, FRAME_SECTORS);
    uint32_t most = MAX(a->total_frames / 8, least);
    uint32_t want = MIN(arena_slab_frames(sectors, most), MAX(least, a->frames_of[sectors]));

    if (a->free_frames < least)
        return NULL;
    for (uint32_t n = want; n >= least && n > 0; n--) {
        list_for_each (l, &a->chunks) {
            struct arena_chunk *c = list_entry(l, struct arena_chunk, link);
            uint32_t first = c->closing ? UINT32_MAX : arena_find_run(c, n);

            if (first != UINT32_MAX) {
                if (a->stripe) {
                    list_unlink(&c->link);
                    list_push_tail(&a->chunks, &c->link);
                }
                *ret_chunk = c;
                return arena_slab_make(c, first, n, sectors, 0);
            }
        }
    }
    return NULL;
}

/* slab pointers live in their chunk's array: the chunk is found through the arena's list, which is short. */
static struct arena_chunk *arena_chunk_of(const struct arena *a, const struct arena_slab *s)
{
    list_for_each (l, &a->chunks) {
        struct arena_chunk *c = list_entry(l, struct arena_chunk, link);

        if (s >= c->slabs && s < c->slabs + c->n_frames)
            return c;
    }
    return NULL;
}

static uint32_t arena_slab_take(struct arena_chunk *c, struct arena_slab *s, uint32_t owner)
{
    uint64_t *words = &c->used[(size_t)s->first_frame * WORDS_PER_FRAME];
    uint32_t n_words = (uint32_t)div_round_up(s->n_extents, 64);

    for (uint32_t k = 0; k < n_words; k++) {
        uint32_t w = (s->hint + k) % n_words;
        uint64_t free_bits = ~words[w];

        if (w == n_words - 1 && s->n_extents % 64)
            free_bits &= (UINT64_C(1) << (s->n_extents % 64)) - 1;
        if (!free_bits)
            continue;
        uint32_t i = w * 64 + (uint32_t)__builtin_ctzll(free_bits);
        words[w] |= UINT64_C(1) << (i % 64);
        s->hint = (uint16_t)w;
        c->owner[(size_t)s->first_frame * FRAME_SECTORS + i] = owner;
        return i;
    }
    assert(!"a slab in the list has room");
    return 0;
}

int arena_alloc(struct arena *a, uint32_t sectors, uint32_t owner, struct arena_chunk **ret_chunk, uint32_t *ret_sector)
{
    struct arena_chunk *c;
    struct arena_slab *s;

    assert(sectors > 0 && sectors <= EXTENT_SECTORS_MAX);
    s = list_first_entry(&a->partial[sectors], struct arena_slab, link);
    if (s) {
        c = arena_chunk_of(a, s);
    } else {
        s = arena_slab_new(a, sectors, &c);
        if (!s)
            return -ENOSPC;
    }
    uint32_t i = arena_slab_take(c, s, owner);
    if (++s->n_used == s->n_extents)
        list_unlink(&s->link);
    a->used_sectors += sectors;
    *ret_chunk = c;
    *ret_sector = arena_slab_start(s) + i * sectors;
    return 0;
}

bool arena_has_room(const struct arena *a, uint32_t sectors)
{
    return !list_is_empty(&a->partial[sectors]);
}

static struct arena_slab *arena_slab_at(const struct arena_chunk *c, uint32_t sector, uint32_t *ret_i)
{
    uint32_t first = c->slab_of[sector / FRAME_SECTORS];

    assert(first != 0);
    struct arena_slab *s = &c->slabs[first - 1];
    *ret_i = (sector - arena_slab_start(s)) / s->sectors;
    return s;
}

static void arena_slab_release(struct arena_chunk *c, struct arena_slab *s)
{
    struct arena *a = c->arena;

    list_unlink(&s->link);
    for (uint32_t i = 0; i < s->n_frames; i++)
        c->slab_of[s->first_frame + i] = 0;
    c->n_free += s->n_frames;
    if (c->closing)
        return;
    a->free_frames += s->n_frames;
    a->frames_of[s->sectors] -= s->n_frames;
    a->slab_sectors -= (uint64_t)s->n_frames * FRAME_SECTORS;
}

void arena_free(struct arena_chunk *c, uint32_t sector)
{
    uint32_t i;
    struct arena *a = c->arena;
    struct arena_slab *s = arena_slab_at(c, sector, &i);
    uint64_t *word = &c->used[(size_t)s->first_frame * WORDS_PER_FRAME + i / 64];

    assert(*word & (UINT64_C(1) << (i % 64)));
    *word &= ~(UINT64_C(1) << (i % 64));
    s->hint = (uint16_t)(i / 64);
    c->owner[(size_t)s->first_frame * FRAME_SECTORS + i] = ARENA_OWNER_NONE;
    if (c->closing)
        a->closing_used_sectors -= s->sectors;
    else
        a->used_sectors -= s->sectors;
    if (s->n_used-- == s->n_extents && !c->closing)
        list_push_head(&a->partial[s->sectors], &s->link);
    if (s->n_used == 0)
        arena_slab_release(c, s);
}

/* --- Closing ----------------------------------------------------------------------------------------------------- */

/* What the chunk's slabs add to the arena's sums; sign: whether they come or go. */
static void arena_chunk_account(struct arena_chunk *c, bool comes)
{
    struct arena *a = c->arena;
    uint64_t one = comes ? 1 : UINT64_MAX; /* modulo 2^64: adding it subtracts 1 */
    uint32_t one32 = comes ? 1 : UINT32_MAX;
    uint64_t sectors = (uint64_t)c->n_frames * FRAME_SECTORS;

    a->total_frames += one32 * c->n_frames;
    a->free_frames += one32 * c->n_free;
    a->total_sectors += one * sectors;
    a->closing_sectors -= one * sectors;
    for (uint32_t f = 0, n; f < c->n_frames; f += n) {
        struct arena_slab *s = &c->slabs[f];

        n = 1;
        if (!c->slab_of[f])
            continue;
        n = s->n_frames;
        a->frames_of[s->sectors] += one32 * n;
        a->slab_sectors += one * n * FRAME_SECTORS;
        a->used_sectors += one * s->n_used * s->sectors;
        a->closing_used_sectors -= one * s->n_used * s->sectors;
        if (comes && s->n_used < s->n_extents)
            list_push_tail(&a->partial[s->sectors], &s->link);
        else
            list_unlink(&s->link);
    }
}

void arena_chunk_close(struct arena_chunk *c)
{
    assert(!c->closing);
    c->closing = true;
    c->scan = (struct arena_cursor){0};
    arena_chunk_account(c, false);
}

void arena_chunk_reopen(struct arena_chunk *c)
{
    assert(c->closing);
    c->closing = false;
    arena_chunk_account(c, true);
}

bool arena_chunk_is_empty(const struct arena_chunk *c)
{
    return c->closing && c->n_free == c->n_frames;
}

void arena_chunk_remove(struct arena_chunk *c)
{
    assert(arena_chunk_is_empty(c));
    c->arena->closing_sectors -= (uint64_t)c->n_frames * FRAME_SECTORS;
    list_unlink(&c->link);
    arena_chunk_free(c);
}

/* --- Again, from what is in use ------------------------------------------------------------------------------------ */

/*
 * The last frame at or before the extent's, from `from` on, where its slab can begin: its extents lie one behind the
 * other from there. If there is none, the slab is what was left behind a cut: it begins in the extent's frame, with a
 * lead.
 */
static uint32_t arena_slab_begin(uint32_t sector, uint32_t sectors, uint32_t from, uint32_t *ret_lead)
{
    uint32_t at = sector / FRAME_SECTORS, least = MAX(at / WINDOW_FRAMES * WINDOW_FRAMES, from);

    *ret_lead = 0;
    for (uint32_t f = at + 1; f-- > least && at - f <= sectors;) {
        if ((sector - f * FRAME_SECTORS) % sectors == 0)
            return f;
    }
    *ret_lead = sector % FRAME_SECTORS % sectors;
    return at;
}

/* The extent belongs to the slab before it: it begins in its last frame, or right behind, and the slab is short; or
 * nowhere else could a slab without a lead begin. */
static bool arena_slab_reaches(const struct arena_slab *s, uint32_t sector, uint32_t sectors)
{
    if (s->sectors != sectors || (sector - arena_slab_start(s)) % sectors != 0)
        return false;
    uint32_t end = s->first_frame + s->n_frames, at = sector / FRAME_SECTORS, lead;

    if (at / WINDOW_FRAMES != s->first_frame / WINDOW_FRAMES)
        return false;
    return at < end || (at == end && s->n_frames < SLAB_FRAMES_MIN) ||
           (!s->lead && arena_slab_begin(sector, sectors, 0, &lead) < end);
}

static void arena_slab_extend(struct arena_chunk *c, struct arena_slab *s, uint32_t end_frame)
{
    uint32_t end = s->first_frame + s->n_frames;

    for (uint32_t f = end; f < end_frame; f++)
        c->slab_of[f] = s->first_frame + 1;
    uint32_t n = end_frame > end ? end_frame - end : 0;
    arena_slab_resize(s, s->n_frames + n);
    c->n_free -= n;
    c->arena->free_frames -= n;
    c->arena->frames_of[s->sectors] += n;
    c->arena->slab_sectors += (uint64_t)n * FRAME_SECTORS;
}

static void arena_slab_put(struct arena_chunk *c, struct arena_slab *s, uint32_t sector, uint32_t owner)
{
    uint32_t i = (sector - arena_slab_start(s)) / s->sectors;

    c->used[(size_t)s->first_frame * WORDS_PER_FRAME + i / 64] |= UINT64_C(1) << (i % 64);
    c->owner[(size_t)s->first_frame * FRAME_SECTORS + i] = owner;
    c->arena->used_sectors += s->sectors;
    s->n_used++;
}

/* All of its extents are known: it is in the list exactly if it has room. */
static void arena_slab_restored(struct arena_slab *s)
{
    if (s && s->n_used == s->n_extents)
        list_unlink(&s->link);
}

int arena_chunk_restore(struct arena_chunk *c, const uint32_t *at, arena_extent_fn extent, void *ctx)
{
    struct arena_slab *s = NULL;
    uint32_t end = 0; /* of the last extent */

    for (uint32_t sector = 0; sector < c->n_frames * FRAME_SECTORS; sector++) {
        uint32_t owner, sectors;

        if (!at[sector])
            continue;
        extent(ctx, at[sector], &owner, &sectors);
        uint32_t end_frame = (uint32_t)div_round_up((uint64_t)sector + sectors, FRAME_SECTORS);
        if (sector < end || end_frame > c->n_frames ||
            (end_frame - 1) / WINDOW_FRAMES != sector / FRAME_SECTORS / WINDOW_FRAMES)
            return -EUCLEAN;
        end = sector + sectors;
        if (!s || !arena_slab_reaches(s, sector, sectors)) {
            uint32_t from = s ? s->first_frame + s->n_frames : 0, lead;
            uint32_t first = arena_slab_begin(sector, sectors, from, &lead);

            if (first < from)
                return -EUCLEAN; /* its frame is another slab's */
            arena_slab_restored(s);
            s = arena_slab_make(c, first, end_frame - first, sectors, lead);
        }
        arena_slab_extend(c, s, end_frame);
        arena_slab_put(c, s, sector, owner);
    }
    arena_slab_restored(s);
    return 0;
}

bool arena_chunk_next(const struct arena_chunk *c, struct arena_cursor *cursor, uint32_t *ret_owner,
                      uint32_t *ret_sector)
{
    while (cursor->frame < c->n_frames) {
        /* The slab that was there at the last call may have become free frames, or part of another one. */
        const struct arena_slab *s = c->slab_of[cursor->frame] == cursor->frame + 1 ? &c->slabs[cursor->frame] : NULL;
        const uint64_t *words = &c->used[(size_t)cursor->frame * WORDS_PER_FRAME];

        for (; s && cursor->extent < s->n_extents; cursor->extent++) {
            uint32_t i = cursor->extent;

            if (words[i / 64] & (UINT64_C(1) << (i % 64))) {
                *ret_owner = c->owner[(size_t)cursor->frame * FRAME_SECTORS + i];
                *ret_sector = arena_slab_start(s) + i * s->sectors;
                cursor->extent++;
                return true;
            }
        }
        *cursor = (struct arena_cursor){.frame = cursor->frame + (s ? s->n_frames : 1)};
    }
    *cursor = (struct arena_cursor){0};
    return false;
}

bool arena_has_slab(const struct arena_chunk *c, uint32_t sector)
{
    return c->slab_of[sector / FRAME_SECTORS] != 0;
}

uint32_t arena_owner(const struct arena_chunk *c, uint32_t sector)
{
    uint32_t i;
    const struct arena_slab *s = arena_slab_at(c, sector, &i);

    return c->owner[(size_t)s->first_frame * FRAME_SECTORS + i];
}

bool arena_find_clearable(const struct arena *a, uint32_t n_frames, arena_stuck_fn is_stuck, void *ctx,
                          struct arena_chunk **ret_chunk, uint32_t *ret_first)
{
    list_for_each (l, &a->chunks) {
        struct arena_chunk *c = list_entry(l, struct arena_chunk, link);
        uint32_t run = 0, n;

        for (uint32_t i = 0; i < c->n_frames && !c->closing; i += n) {
            const struct arena_slab *s = c->slab_of[i] ? &c->slabs[i] : NULL;

            n = s ? s->n_frames : 1;
            if (i % WINDOW_FRAMES == 0)
                run = 0;
            run = s && is_stuck(ctx, c, s) ? 0 : run + n;
            if (run >= n_frames) {
                *ret_chunk = c;
                *ret_first = i + n - run;
                return true;
            }
        }
    }
    return false;
}

uint32_t arena_slab_owners(const struct arena_chunk *c, uint32_t sector, uint32_t *cursor, uint32_t *ret_owners,
                           uint32_t n)
{
    uint32_t ignored, got = 0;
    const struct arena_slab *s = arena_slab_at(c, sector, &ignored);
    const uint64_t *words = &c->used[(size_t)s->first_frame * WORDS_PER_FRAME];

    for (; *cursor < s->n_extents && got < n; (*cursor)++) {
        if (words[*cursor / 64] & (UINT64_C(1) << (*cursor % 64)))
            ret_owners[got++] = c->owner[(size_t)s->first_frame * FRAME_SECTORS + *cursor];
    }
    return got;
}

/* --- Cutting ------------------------------------------------------------------------------------------------------ */

static bool arena_extent_is_used(const struct arena_chunk *c, const struct arena_slab *s, uint32_t i)
{
    return c->used[(size_t)s->first_frame * WORDS_PER_FRAME + i / 64] >> (i % 64) & 1;
}

/* How many extents end at or before this sector: the next one holds it, or begins behind it. */
static uint32_t arena_extent_behind(const struct arena_slab *s, uint32_t sector)
{
    uint32_t start = arena_slab_start(s);

    return sector <= start ? 0 : MIN((sector - start) / s->sectors, (uint32_t)s->n_extents);
}

uint32_t arena_run_owners(const struct arena_chunk *c, uint32_t first, uint32_t n_frames, uint32_t *cursor,
                          uint32_t *ret_owners, uint32_t n)
{
    uint32_t begin = first * FRAME_SECTORS, end = begin + n_frames * FRAME_SECTORS, got = 0;

    for (*cursor = MAX(*cursor, begin); *cursor < end && got < n;) {
        uint32_t frame = *cursor / FRAME_SECTORS;
        const struct arena_slab *s = c->slab_of[frame] ? &c->slabs[c->slab_of[frame] - 1] : NULL;
        uint32_t i = s ? arena_extent_behind(s, *cursor) : 0;

        if (!s || i >= s->n_extents) {
            *cursor = (s ? s->first_frame + s->n_frames : frame + 1) * FRAME_SECTORS;
            continue;
        }
        if (arena_slab_start(s) + i * s->sectors < end && arena_extent_is_used(c, s, i))
            ret_owners[got++] = c->owner[(size_t)s->first_frame * FRAME_SECTORS + i];
        *cursor = arena_slab_start(s) + (i + 1) * s->sectors;
    }
    return got;
}

/* Does the run of n_frames from *first on end in this slab? What is stuck there begins another run behind it, and what
 * else reaches only into frames before that is not looked at: where most is stuck, few extents of a frame are. */
static bool arena_run_in_slab(const struct arena_chunk *c, const struct arena_slab *s, uint32_t n_frames,
                              arena_owner_fn is_stuck, void *ctx, uint32_t *first)
{
    uint32_t i = arena_extent_behind(s, *first * FRAME_SECTORS);

    while (i < s->n_extents) {
        uint32_t begin = arena_slab_start(s) + i * s->sectors;

        if (begin / FRAME_SECTORS >= *first + n_frames)
            return true;
        i++;
        if (arena_extent_is_used(c, s, i - 1) &&
            is_stuck(ctx, c->owner[(size_t)s->first_frame * FRAME_SECTORS + i - 1])) {
            *first = (uint32_t)div_round_up((uint64_t)begin + s->sectors, FRAME_SECTORS);
            i = MAX(i, arena_extent_behind(s, *first * FRAME_SECTORS));
        }
    }
    return s->first_frame + s->n_frames >= *first + n_frames;
}

bool arena_find_cuttable(const struct arena *a, uint32_t n_frames, arena_owner_fn is_stuck, void *ctx,
                         struct arena_chunk **ret_chunk, uint32_t *ret_first)
{
    list_for_each (l, &a->chunks) {
        struct arena_chunk *c = list_entry(l, struct arena_chunk, link);
        uint32_t first = 0, n;

        for (uint32_t f = 0; f < c->n_frames && !c->closing; f += n) {
            const struct arena_slab *s = c->slab_of[f] ? &c->slabs[f] : NULL;

            n = s ? s->n_frames : 1;
            if (f % WINDOW_FRAMES == 0)
                first = f;
            if (s ? arena_run_in_slab(c, s, n_frames, is_stuck, ctx, &first) : f + 1 >= first + n_frames) {
                *ret_chunk = c;
                *ret_first = first;
                return true;
            }
        }
    }
    return false;
}

/* Extents from i on become those of the slab `to`, behind s in the same chunk: what they have moves up, or stays. */
static void arena_slab_move(struct arena_chunk *c, const struct arena_slab *s, uint32_t i, struct arena_slab *to)
{
    uint64_t *words = &c->used[(size_t)s->first_frame * WORDS_PER_FRAME];
    uint64_t *to_words = &c->used[(size_t)to->first_frame * WORDS_PER_FRAME];
    uint32_t *owner = &c->owner[(size_t)s->first_frame * FRAME_SECTORS];
    uint32_t *to_owner = &c->owner[(size_t)to->first_frame * FRAME_SECTORS];

    for (uint32_t k = to->n_extents; k-- > 0;) {
        uint64_t from_bit = UINT64_C(1) << ((i + k) % 64), to_bit = UINT64_C(1) << (k % 64);
        bool is_used = words[(i + k) / 64] & from_bit;

        words[(i + k) / 64] &= ~from_bit;
        to_words[k / 64] = is_used ? to_words[k / 64] | to_bit : to_words[k / 64] & ~to_bit;
        to_owner[k] = owner[i + k];
        to->n_used = (uint16_t)(to->n_used + is_used);
    }
}

/* It is in the list exactly if it has room, and nowhere if nothing in it is in use. */
static void arena_slab_settle(struct arena_chunk *c, struct arena_slab *s)
{
    if (s->n_used == 0)
        arena_slab_release(c, s);
    else if (s->n_used == s->n_extents)
        list_unlink(&s->link);
}

/* Frames [begin, end), in which no extent is in use, leave the slab: it goes on as what is before and behind. */
static void arena_slab_cut(struct arena_chunk *c, struct arena_slab *s, uint32_t begin, uint32_t end)
{
    const struct arena_slab old = *s;
    uint32_t start = arena_slab_start(s), slab_end = s->first_frame + s->n_frames;
    uint32_t n_before = arena_extent_behind(s, begin * FRAME_SECTORS);
    uint32_t i = arena_extent_behind(s, end * FRAME_SECTORS + s->sectors - 1), n_used = s->n_used;

    arena_slab_release(c, s);
    if (i < old.n_extents) {
        uint32_t sector = start + i * old.sectors, first = sector / FRAME_SECTORS;
        struct arena_slab *behind = arena_slab_claim(c, first, slab_end - first, old.sectors, sector % FRAME_SECTORS);

        arena_slab_move(c, &old, i, behind);
        n_used -= behind->n_used;
        arena_slab_settle(c, behind);
    }
    if (n_before > 0) {
        uint32_t n = (uint32_t)div_round_up(old.lead + (uint64_t)n_before * old.sectors, FRAME_SECTORS);
        struct arena_slab *before = arena_slab_claim(c, old.first_frame, n, old.sectors, old.lead);

        before->n_used = (uint16_t)n_used;
        arena_slab_settle(c, before);
    }
}

bool arena_cut(struct arena_chunk *c, uint32_t first, uint32_t n_frames)
{
    uint32_t cursor = 0, owner;

    if (c->closing || arena_run_owners(c, first, n_frames, &cursor, &owner, 1) > 0)
        return false;
    for (uint32_t f = first; f < first + n_frames; f++)
        if (c->slab_of[f])
            arena_slab_cut(c, &c->slabs[c->slab_of[f] - 1], first, first + n_frames);
    return true;
}

uint64_t arena_tail_waste_bytes(const struct arena *a)
{
    uint64_t waste_sectors = 0;

    list_for_each (l, &a->chunks) {
        const struct arena_chunk *c = list_entry(l, struct arena_chunk, link);

        for (uint32_t f = 0; f < c->n_frames; f++) {
            const struct arena_slab *s = &c->slabs[f];

            if (c->slab_of[f] == f + 1)
                waste_sectors += s->n_frames * FRAME_SECTORS - (uint32_t)s->n_extents * s->sectors;
        }
    }
    return waste_sectors * SECTOR_BYTES;
}
