/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the loss of power at a tick may leave of the writes in the log.
 *
 * A write that was answered before a flush came is there, once that flush has been answered. All others that had come
 * by then may be there, or not, or in part: in sectors of 4096 bytes, and within one in parts of 512. They are put in the
 * order in which they came.
 *
 * The ticks go up, and so does what must be there: it is written for good. The rest is put on top for one look, and
 * taken off again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/torture/power.h"

#define PART_BYTES 512
#define CACHE_EVERY 4 /* looks also read the cache */

enum rest { REST_NOTHING, REST_ALL, REST_SOME, RESTS };
static const char *const rest_names[RESTS] = {"nothing more", "all of the rest", "some of the rest"};

struct cutter {
    struct look *look;
    const struct p_log *log;
    int data;
    uint64_t seed;
    uint64_t flushed; /* the latest arrival of a flush that has been answered */
    uint8_t *written; /* for good, by entry */
    uint32_t first;   /* entries before it are all written or flushes */
    char *bytes;
    struct p_counts counts;
};

static const char *bytes_of(struct cutter *c, const struct p_entry *e)
{
    if (pread(c->data, c->bytes, e->len_bytes, (off_t)e->data_at) != (ssize_t)e->len_bytes)
        torture_fail("the log of writes: %s", strerror(errno));
    return c->bytes;
}

static bool must_be_there(const struct cutter *c, const struct p_entry *e)
{
    return e->answered < c->flushed;
}

/* What must be there at this tick. */
static void advance(struct cutter *c, uint64_t tick)
{
    const struct p_log *log = c->log;

    for (uint32_t i = 0; i < log->n && log->at[i].arrived <= tick; i++)
        if (log->at[i].type == P_FLUSH && log->at[i].answered <= tick && log->at[i].arrived > c->flushed)
            c->flushed = log->at[i].arrived;
    for (uint32_t i = c->first; i < log->n && log->at[i].arrived <= tick; i++) {
        const struct p_entry *e = &log->at[i];

        if (e->type == P_WRITE && !c->written[i] && must_be_there(c, e)) {
            look_write(c->look, e->off_bytes, bytes_of(c, e), e->len_bytes, true);
            c->written[i] = 1;
        }
    }
    while (c->first < log->n && (c->written[c->first] || log->at[c->first].type == P_FLUSH))
        c->first++;
}

static void write_part(struct cutter *c, const struct p_entry *e, struct t_random *random)
{
    uint32_t unit = random_percent(random, 50) ? PART_BYTES : SECTOR_BYTES;
    const char *bytes = bytes_of(c, e);

    for (uint32_t at = 0; at < e->len_bytes; at += unit)
        if (random_percent(random, 50))
            look_write(c->look, e->off_bytes + at, bytes + at, MIN(unit, e->len_bytes - at), false);
    c->counts.torn++;
}

static void write_rest(struct cutter *c, uint64_t tick, enum rest rest, struct t_random *random)
{
    for (uint32_t i = c->first; i < c->log->n && c->log->at[i].arrived <= tick; i++) {
        const struct p_entry *e = &c->log->at[i];

        if (e->type != P_WRITE || c->written[i])
            continue;
        uint64_t x = rest == REST_SOME ? random_below(random, 100) : 0;

        if (x < 45)
            look_write(c->look, e->off_bytes, bytes_of(c, e), e->len_bytes, false);
        else if (x < 60)
            write_part(c, e, random);
        else
            c->counts.lost++;
    }
}

static void cut(struct cutter *c, uint64_t tick, enum rest rest)
{
    struct t_random random = random_for(c->seed, tick, rest);
    char what[96];

    snprintf(what, sizeof(what), "power lost at tick %llu, %s", (unsigned long long)tick, rest_names[rest]);
    if (rest != REST_NOTHING)
        write_rest(c, tick, rest, &random);
    c->counts.looked_at += look_check(c->look, tick, c->counts.cuts % CACHE_EVERY == 0, what);
    c->counts.cuts++;
    look_undo(c->look);
}

/* Prefixes end at each write's arrival; flushes are of interest as they come, and as they are answered. */
static int compare_ticks(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

void cut_all(struct look *l, const struct p_log *log, int data, uint64_t seed, uint64_t max,
             struct p_counts *ret_counts)
{
    struct cutter c = {
        .look = l, .log = log, .data = data, .seed = seed, .written = calloc(log->n + 1, 1), .bytes = malloc(2 * MIB)};
    uint64_t *ticks = calloc(2 * (size_t)log->n + 1, sizeof(*ticks)), n = 0;
    struct t_random random = random_for(seed, 1, 2);

    if (!c.written || !c.bytes || !ticks)
        torture_fail("no memory");
    for (uint32_t i = 0; i < log->n; i++) {
        ticks[n++] = log->at[i].arrived;
        if (log->at[i].type == P_FLUSH && log->at[i].answered != UINT64_MAX)
            ticks[n++] = log->at[i].answered;
    }
    qsort(ticks, n, sizeof(*ticks), compare_ticks);
    for (uint64_t i = 0; i < n; i++) {
        /* Three looks at each; of too many ticks some are left out. */
        if (max && random_below(&random, n) >= max / RESTS)
            continue;
        advance(&c, ticks[i]);
        for (int rest = 0; rest < RESTS; rest++)
            cut(&c, ticks[i], (enum rest)rest);
    }
    *ret_counts = c.counts;
    free(ticks);
    free(c.written);
    free(c.bytes);
}
