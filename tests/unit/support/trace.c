/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads traces with json-c, strictly: a line that is no object with an array of small non-negative integers fails the
 * whole file, because a trace read half would give figures that look right. The replay keeps residency as the daemon
 * does, so that the policy under test decides about order alone.
 */
#include "tests/unit/support/trace.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "include/base/cleanup.h"
#include "include/base/mix.h"

#ifndef SPILLWAY_SOURCE_DIR
#define SPILLWAY_SOURCE_DIR "."
#endif

#define IDS_MAX (UINT32_C(1) << 24)
#define REFS_MAX (UINT32_C(1) << 26)

static inline void json_p(struct json_object **o)
{
    json_object_put(*o);
}

void trace_deinit(struct trace *t)
{
    free(t->refs);
    free(t->ends);
    *t = (struct trace){0};
}

/* Room for the ends doubles whenever it is full. */
static int trace_end_request(struct trace *t)
{
    if (is_pow2(t->n_requests) || t->n_requests == 0) {
        size_t *ends = realloc(t->ends, ((size_t)t->n_requests * 2 + 1) * sizeof(*ends));

        if (!ends)
            return -ENOMEM;
        t->ends = ends;
    }
    t->ends[t->n_requests++] = t->n_refs;
    return 0;
}

static int trace_add(struct trace *t, size_t *capacity, const struct json_object *ids)
{
    size_t n = json_object_array_length(ids);

    if (n > REFS_MAX - t->n_refs)
        return -E2BIG;
    if (t->n_refs + n > *capacity) {
        size_t grown = MAX(t->n_refs + n, *capacity * 2);
        uint32_t *refs = realloc(t->refs, grown * sizeof(*refs));

        if (!refs)
            return -ENOMEM;
        t->refs = refs;
        *capacity = grown;
    }
    for (size_t i = 0; i < n; i++) {
        struct json_object *id = json_object_array_get_idx(ids, i);

        if (!json_object_is_type(id, json_type_int) || json_object_get_int64(id) < 0 ||
            json_object_get_int64(id) >= IDS_MAX)
            return -EBADMSG;
        t->refs[t->n_refs] = (uint32_t)json_object_get_int64(id);
        t->n_ids = MAX(t->n_ids, t->refs[t->n_refs] + 1);
        t->n_refs++;
    }
    return trace_end_request(t);
}

static int trace_parse_line(struct trace *t, size_t *capacity, const char *line)
{
    cleanup_(json_p) struct json_object *request = json_tokener_parse(line);
    struct json_object *ids;

    if (!json_object_is_type(request, json_type_object) || !json_object_object_get_ex(request, "hash_ids", &ids) ||
        !json_object_is_type(ids, json_type_array))
        return -EBADMSG;
    return trace_add(t, capacity, ids);
}

static int trace_count_distinct(struct trace *t)
{
    cleanup_free bool *seen = calloc((size_t)t->n_ids + 1, sizeof(*seen));

    if (!seen)
        return -ENOMEM;
    for (size_t i = 0; i < t->n_refs; i++) {
        t->n_distinct += !seen[t->refs[i]];
        seen[t->refs[i]] = true;
    }
    return 0;
}

int trace_load(const char *path, struct trace *ret_trace, uint32_t *ret_bad_line)
{
    cleanup_fclose FILE *file = fopen(path, "re");
    cleanup_free char *line = NULL;
    cleanup_(trace_deinit) struct trace t = {0};
    size_t line_bytes = 0, capacity = 1024;
    int r;

    if (!file)
        return -errno;
    t.refs = calloc(capacity, sizeof(*t.refs));
    if (!t.refs)
        return -ENOMEM;
    while (getline(&line, &line_bytes, file) >= 0) {
        r = trace_parse_line(&t, &capacity, line);
        if (r == -EBADMSG)
            *ret_bad_line = t.n_requests + 1;
        if (r < 0)
            return r;
    }
    if (ferror(file))
        return -EIO;
    r = trace_count_distinct(&t);
    if (r < 0)
        return r;
    *ret_trace = t;
    t = (struct trace){0};
    return 0;
}

bool trace_find(const char *name, char ret_path[PATH_MAX])
{
    const char *path = getenv("SPILLWAY_TRACE"), *folders = getenv("SPILLWAY_DATA");
    cleanup_free char *copy = strdup(folders ? folders : "");
    char *rest = copy, *folder;

    if (path && *path) {
        snprintf(ret_path, PATH_MAX, "%s", path);
        return true; /* whoever names a file wants to hear that it is not there */
    }
    while (copy && (folder = strsep(&rest, ":"))) {
        char candidate[PATH_MAX];

        if (*folder == '\0' ||
            snprintf(candidate, sizeof(candidate), "%s/traces/%s", folder, name) >= (int)sizeof(candidate))
            continue;
        if (access(candidate, R_OK) == 0) {
            memcpy(ret_path, candidate, sizeof(candidate));
            return true;
        }
    }
    return false;
}

void trace_source_path(const char *name, char ret_path[PATH_MAX])
{
    const char *root = getenv("SPILLWAY_SOURCE");

    snprintf(ret_path, PATH_MAX, "%s/%s", root && *root ? root : SPILLWAY_SOURCE_DIR, name);
}

/* ── replay ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

enum residency { ABSENT = 0, IN_FLIGHT, RESIDENT };

struct player {
    const struct policy_ops *ops;
    const struct replay *how;
    struct policy *policy;
    struct policy_node *nodes;
    uint8_t *residency;
    uint32_t *in_flight;     /* a ring of n_in_flight ids */
    uint32_t *by_hash;       /* id + 1, by the lower bits of its hash: for policies that ask */
    struct policy_ref *refs; /* of the longest request */
    uint32_t *missing;       /* of the same */
    struct policy_chain open;
    uint32_t n_ids;
    uint64_t n_started;
    uint64_t used, capacity, low; /* sectors */
};

#define BY_HASH_BITS 20

static void player_deinit(struct player *pl)
{
    if (pl->policy)
        pl->ops->free(pl->policy);
    free(pl->nodes);
    free(pl->residency);
    free(pl->in_flight);
    free(pl->by_hash);
    free(pl->refs);
    free(pl->missing);
}

static uint64_t identity_hash(uint32_t id)
{
    return mix64((id + UINT64_C(1)) * MIX64_GOLDEN);
}

static uint32_t sectors_of_id(const struct player *pl, uint32_t id)
{
    return pl->how->sectors ? pl->how->sectors : 1 + (uint32_t)(identity_hash(id) >> 32) % 16;
}

static enum policy_pin never_pinned(void *ctx, uint32_t obj)
{
    (void)ctx;
    (void)obj;
    return POLICY_FREE;
}

/* Evicts until `sectors` more would fit under the limit. */
static void make_room(struct player *pl, uint64_t limit, uint32_t sectors, uint64_t incoming)
{
    while (pl->used + sectors > limit) {
        uint32_t victim = pl->ops->victim(pl->policy, incoming, never_pinned, NULL);

        if (victim == POLICY_NONE)
            return;
        pl->ops->evict(pl->policy, victim, identity_hash(victim), sectors_of_id(pl, victim));
        pl->used -= sectors_of_id(pl, victim);
        pl->residency[victim] = ABSENT;
    }
}

static void land(struct player *pl, uint32_t id)
{
    uint32_t sectors = sectors_of_id(pl, id);

    make_room(pl, pl->capacity, sectors, identity_hash(id));
    pl->ops->insert(pl->policy, id, identity_hash(id), sectors);
    pl->residency[id] = RESIDENT;
    pl->used += sectors;
    if (pl->low > 0 && pl->used + sectors > pl->capacity)
        make_room(pl, pl->low, 0, 0);
}

static bool refer(struct player *pl, uint32_t id)
{
    if (pl->residency[id] == RESIDENT)
        pl->ops->hit(pl->policy, id);
    if (pl->residency[id] != ABSENT)
        return true;

    pl->ops->miss(pl->policy, 0, identity_hash(id), sectors_of_id(pl, id));
    if (pl->how->n_in_flight == 0) {
        land(pl, id);
        return false;
    }
    uint32_t *slot = &pl->in_flight[pl->n_started++ % pl->how->n_in_flight];
    if (pl->n_started > pl->how->n_in_flight)
        land(pl, *slot);
    *slot = id;
    pl->residency[id] = IN_FLIGHT;
    return false;
}

/* --- whole requests ----------------------------------------------------------------------------------------------- */

static uint32_t slot_of(uint32_t hash_low)
{
    return hash_low >> (32 - BY_HASH_BITS);
}

static uint32_t find_resident(void *ctx, uint32_t hash_low)
{
    const struct player *pl = ctx;

    for (uint32_t i = slot_of(hash_low); pl->by_hash[i] != 0; i = (i + 1) % (1U << BY_HASH_BITS)) {
        uint32_t id = pl->by_hash[i] - 1;

        if ((uint32_t)identity_hash(id) == hash_low)
            return pl->residency[id] == RESIDENT ? id : POLICY_NONE;
    }
    return POLICY_NONE;
}

static void name(struct player *pl, const uint32_t *ids, uint32_t n, enum policy_use use)
{
    if (!pl->ops->chain || n == 0)
        return;
    for (uint32_t i = 0; i < n; i++)
        pl->refs[i] = (struct policy_ref){.hash = identity_hash(ids[i]),
                                          .obj = pl->residency[ids[i]] == RESIDENT ? ids[i] : POLICY_NONE};
    pl->ops->chain(pl->policy, &pl->open, pl->refs, n, use);
}

/* RESERVE gives each block its memory; COMMIT makes it resident. */
static void store_list(struct player *pl, const uint32_t *ids, uint32_t n)
{
    name(pl, ids, n, POLICY_STORED);
    for (uint32_t i = 0; i < n; i++) {
        if (pl->residency[ids[i]] != ABSENT)
            continue; /* twice in one request */
        pl->ops->miss(pl->policy, 0, identity_hash(ids[i]), sectors_of_id(pl, ids[i]));
        make_room(pl, pl->capacity, sectors_of_id(pl, ids[i]), identity_hash(ids[i]));
        pl->used += sectors_of_id(pl, ids[i]);
        pl->residency[ids[i]] = IN_FLIGHT;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (pl->residency[ids[i]] != IN_FLIGHT)
            continue;
        pl->ops->insert(pl->policy, ids[i], identity_hash(ids[i]), sectors_of_id(pl, ids[i]));
        pl->residency[ids[i]] = RESIDENT;
    }
}

static void store_lists(struct player *pl, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += pl->how->store_max)
        store_list(pl, pl->missing + i, MIN(n - i, pl->how->store_max));
}

/* Hits; what was not there comes to pl->missing from *n_missing on. */
static uint32_t use_list(struct player *pl, const uint32_t *ids, uint32_t n, uint32_t *n_missing)
{
    uint32_t hits = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (pl->residency[ids[i]] == RESIDENT) {
            pl->ops->hit(pl->policy, ids[i]);
            hits++;
        } else {
            pl->missing[(*n_missing)++] = ids[i];
        }
    }
    return hits;
}

static uint32_t play_lists(struct player *pl, const uint32_t *ids, uint32_t n)
{
    uint32_t hits = 0, step = pl->how->list_max;

    if (!pl->how->unnamed)
        name(pl, ids, n, POLICY_NAMED);
    for (uint32_t i = 0; i < n; i += step) {
        uint32_t len = MIN(n - i, step), n_missing = 0;

        name(pl, ids + i, len, POLICY_USED);
        hits += use_list(pl, ids + i, len, &n_missing);
        store_lists(pl, n_missing);
    }
    return hits;
}

/* An engine that keeps books of its own: of what it has to store it knows nothing more than that. */
static uint32_t play_prefix(struct player *pl, const uint32_t *ids, uint32_t n)
{
    uint32_t m = 0, n_missing = 0, hits;

    while (m < n && pl->residency[ids[m]] == RESIDENT)
        m++;
    name(pl, ids, m, POLICY_USED);
    hits = use_list(pl, ids, m, &n_missing);
    name(pl, ids + m, n - m, POLICY_STORED);
    hits += use_list(pl, ids + m, n - m, &n_missing);
    store_lists(pl, n_missing);
    return hits;
}

static uint32_t play_request(struct player *pl, const uint32_t *ids, uint32_t n)
{
    uint32_t hits = 0;

    if (pl->how->prefix_only)
        return play_prefix(pl, ids, n);
    if (pl->how->list_max > 0)
        return play_lists(pl, ids, n);
    name(pl, ids, n, POLICY_NAMED);
    for (uint32_t i = 0; i < n; i++)
        hits += refer(pl, ids[i]);
    return hits;
}

static int player_init(struct player *pl, const struct trace *t)
{
    uint32_t longest = 0;

    for (uint32_t i = 0; i < t->n_requests; i++)
        longest = MAX(longest, (uint32_t)(t->ends[i] - (i ? t->ends[i - 1] : 0)));
    pl->nodes = calloc((size_t)t->n_ids + 1, sizeof(*pl->nodes));
    pl->residency = calloc((size_t)t->n_ids + 1, sizeof(*pl->residency));
    pl->in_flight = calloc((size_t)pl->how->n_in_flight + 1, sizeof(*pl->in_flight));
    pl->by_hash = calloc(1U << BY_HASH_BITS, sizeof(*pl->by_hash));
    pl->refs = calloc((size_t)longest + 1, sizeof(*pl->refs));
    pl->missing = calloc((size_t)longest + 1, sizeof(*pl->missing));
    if (!pl->nodes || !pl->residency || !pl->in_flight || !pl->by_hash || !pl->refs || !pl->missing ||
        t->n_ids > 1U << (BY_HASH_BITS - 1))
        return -ENOMEM;
    for (uint32_t id = 0; id < t->n_ids; id++) {
        uint32_t i = slot_of((uint32_t)identity_hash(id));

        while (pl->by_hash[i] != 0)
            i = (i + 1) % (1U << BY_HASH_BITS);
        pl->by_hash[i] = id + 1;
    }
    return 0;
}

int64_t trace_replay(const struct trace *t, const struct policy_ops *ops, const struct replay *how)
{
    uint64_t capacity = how->capacity * (how->sectors ? how->sectors : 8);
    cleanup_(player_deinit) struct player pl = {
        .ops = ops, .how = how, .capacity = capacity, .low = capacity * how->low_percent / 100};
    int64_t hits = 0;
    int r = player_init(&pl, t);

    if (r < 0)
        return r;
    struct policy_config config = {
        .nodes = POLICY_NODES(pl.nodes),
        .n_nodes = t->n_ids,
        .capacity_sectors = capacity,
        .max_ghosts = ops->ghosts_min ? MAX((uint32_t)how->capacity * 4, ops->ghosts_min) : (uint32_t)how->capacity,
        .find = find_resident,
        .ctx = &pl,
    };
    r = ops->new (&config, &pl.policy);
    if (r < 0)
        return r;
    for (size_t i = 0, first = 0, checked = 0; i < t->n_requests; first = t->ends[i++]) {
        uint32_t n = play_request(&pl, t->refs + first, (uint32_t)(t->ends[i] - first));

        hits += first >= how->count_from ? n : 0;
        if (how->check_every > 0 && t->ends[i] - checked >= how->check_every) {
            checked = t->ends[i];
            if (ops->check(pl.policy) < 0)
                return -EUCLEAN;
        }
    }
    r = ops->check(pl.policy);
    return r < 0 ? r : hits;
}
