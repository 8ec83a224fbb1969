/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns traces in memory. A trace read half would give figures that look right, so one bad line fails the whole file.
 * Loading is for one thread; afterwards a trace never changes.
 */
#include "client/bench/trace.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "include/base/cleanup.h"

#define TRACE_IDS_MAX (UINT64_C(1) << 28)
#define TRACE_REQUESTS_MAX (UINT64_C(1) << 26)
#define TRACE_CHAIN_MAX (UINT32_C(1) << 20)

static inline void json_p(struct json_object **o)
{
    json_object_put(*o);
}

void trace_deinit(struct trace *t)
{
    free(t->ids);
    free(t->requests);
    *t = (struct trace){0};
}

/* Makes room for `more` elements, doubling. */
static int grow(void *array, uint64_t element_bytes, uint64_t n, uint64_t more, uint64_t *room)
{
    void **mem = array;

    if (n + more <= *room)
        return 0;
    uint64_t wanted = MAX(*room * 2, UINT64_C(1024));
    wanted = MAX(wanted, n + more);
    void *grown = realloc(*mem, wanted * element_bytes);
    if (!grown)
        return -ENOMEM;
    *mem = grown;
    *room = wanted;
    return 0;
}

int trace_add(struct trace *t, uint32_t time_ms, const uint64_t *ids, uint32_t n)
{
    if (n == 0)
        return 0;
    if (n > TRACE_CHAIN_MAX || t->n_ids + n > TRACE_IDS_MAX || t->n_requests == TRACE_REQUESTS_MAX)
        return -E2BIG;
    int r = grow(&t->ids, sizeof(*t->ids), t->n_ids, n, &t->ids_room);
    if (r == 0)
        r = grow(&t->requests, sizeof(*t->requests), t->n_requests, 1, &t->requests_room);
    if (r < 0)
        return r;
    memcpy(t->ids + t->n_ids, ids, n * sizeof(*ids));
    t->requests[t->n_requests++] = (struct trace_request){.first = t->n_ids, .n = n, .time_ms = time_ms};
    t->n_ids += n;
    t->longest = MAX(t->longest, n);
    return 0;
}

static int compare_ids(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

int trace_count(struct trace *t)
{
    cleanup_free uint64_t *sorted = malloc((t->n_ids + 1) * sizeof(*sorted));

    if (!sorted)
        return -ENOMEM;
    if (t->n_ids > 0)
        memcpy(sorted, t->ids, t->n_ids * sizeof(*sorted));
    qsort(sorted, t->n_ids, sizeof(*sorted), compare_ids);
    t->n_distinct = 0;
    for (uint64_t i = 0; i < t->n_ids; i++)
        t->n_distinct += i == 0 || sorted[i] != sorted[i - 1];
    return 0;
}

static int parse_line(struct trace *t, const char *line, uint64_t **chain, uint64_t *chain_room)
{
    cleanup_(json_p) struct json_object *request = json_tokener_parse(line);
    struct json_object *ids, *time;

    if (!json_object_is_type(request, json_type_object) || !json_object_object_get_ex(request, "hash_ids", &ids) ||
        !json_object_is_type(ids, json_type_array) || json_object_array_length(ids) > TRACE_CHAIN_MAX)
        return -EBADMSG;
    uint32_t n = (uint32_t)json_object_array_length(ids);
    int r = grow(chain, sizeof(**chain), 0, n, chain_room);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < n; i++) {
        struct json_object *id = json_object_array_get_idx(ids, i);

        if (!json_object_is_type(id, json_type_int) || json_object_get_int64(id) < 0)
            return -EBADMSG;
        (*chain)[i] = (uint64_t)json_object_get_int64(id);
    }
    bool timed = json_object_object_get_ex(request, "timestamp", &time);
    return trace_add(t, timed ? (uint32_t)json_object_get_int64(time) : 0, *chain, n);
}

int trace_load(const char *path, struct trace *ret_trace, uint64_t *ret_bad_line)
{
    cleanup_fclose FILE *file = fopen(path, "re");
    cleanup_free char *line = NULL;
    cleanup_free uint64_t *chain = NULL;
    cleanup_(trace_deinit) struct trace t = {0};
    uint64_t n_lines = 0, chain_room = 0;
    size_t line_bytes = 0;
    int r;

    if (!file)
        return -errno;
    while (getline(&line, &line_bytes, file) >= 0) {
        n_lines++;
        if (line[strspn(line, " \t\r\n")] == '\0')
            continue;
        r = parse_line(&t, line, &chain, &chain_room);
        if (r == -EBADMSG)
            *ret_bad_line = n_lines;
        if (r < 0)
            return r;
    }
    if (ferror(file))
        return -EIO;
    if (t.n_requests == 0)
        return -ENODATA;
    r = trace_count(&t);
    if (r < 0)
        return r;
    *ret_trace = t;
    t = (struct trace){0};
    return 0;
}
