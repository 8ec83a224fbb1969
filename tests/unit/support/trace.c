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
    *t = (struct trace){0};
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
    t->n_requests++;
    return 0;
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
    uint32_t *in_flight; /* a ring of n_in_flight ids */
    uint64_t n_started;
    uint64_t used, capacity, low; /* sectors */
};

static void player_deinit(struct player *pl)
{
    if (pl->policy)
        pl->ops->free(pl->policy);
    free(pl->nodes);
    free(pl->residency);
    free(pl->in_flight);
}

static uint64_t identity_hash(uint32_t id)
{
    uint64_t x = (id + UINT64_C(1)) * UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
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

    pl->ops->miss(pl->policy, identity_hash(id), sectors_of_id(pl, id));
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

int64_t trace_replay(const struct trace *t, const struct policy_ops *ops, const struct replay *how)
{
    uint64_t capacity = how->capacity * (how->sectors ? how->sectors : 8);
    cleanup_(player_deinit) struct player pl = {
        .ops = ops,
        .how = how,
        .capacity = capacity,
        .low = capacity * how->low_percent / 100,
        .nodes = calloc((size_t)t->n_ids + 1, sizeof(*pl.nodes)),
        .residency = calloc((size_t)t->n_ids + 1, sizeof(*pl.residency)),
        .in_flight = calloc((size_t)how->n_in_flight + 1, sizeof(*pl.in_flight)),
    };
    struct policy_config config = {
        .nodes = pl.nodes,
        .n_nodes = t->n_ids,
        .capacity_sectors = capacity,
        .max_ghosts = (uint32_t)how->capacity,
    };
    int64_t hits = 0;
    int r;

    if (!pl.nodes || !pl.residency || !pl.in_flight)
        return -ENOMEM;
    r = ops->new (&config, &pl.policy);
    if (r < 0)
        return r;
    for (size_t i = 0; i < t->n_refs; i++) {
        hits += refer(&pl, t->refs[i]);
        if (how->check_every > 0 && i % how->check_every == 0 && ops->check(pl.policy) < 0)
            return -EUCLEAN;
    }
    r = ops->check(pl.policy);
    return r < 0 ? r : hits;
}
