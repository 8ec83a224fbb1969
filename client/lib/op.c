/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The blocking calls on lists. Each fills in a struct client_call, runs it on the calling thread's ring, and turns its
 * end into a return value with words. No state of its own; any thread.
 */
#include <string.h>

#include "client/lib/client.h"

#include "include/base/checked.h"

int client_op_finish(const char *name, const struct client_call *call)
{
    int r = client_call_status(call);

    if (r == 0)
        return 0;
    int over = call->space ? client_session_check(call->space->session) : 0;
    return over < 0 ? over : client_error(r, call->detail, "%s: %s", name, strerrordesc_np(-r));
}

int client_op_run(const char *name, struct client_call *call)
{
    spw_session *session = call->space->session;
    struct client_ring *ring = NULL;
    int r = client_session_check(session);

    if (r == 0)
        r = client_call_check(name, call);
    if (r == 0)
        r = client_thread_ring(session, call->space->engine, &ring);
    if (r == 0)
        r = client_ring_start(ring, call);
    if (r < 0)
        return r;
    client_ring_wait(ring, call);
    return client_op_finish(name, call);
}

/* The last step of every function here: `r` is what building the call gave. */
static int run_built(const char *name, int r, struct client_call *call)
{
    return r < 0 ? r : client_op_run(name, call);
}

long spw_lookup(spw_space *space, const struct spw_key *keys, size_t n, unsigned flags, struct spw_hit *ret_hits)
{
    struct client_call call;
    int r = client_build_lookup("spw_lookup", &call, space, keys, n, flags, ret_hits);

    r = run_built("spw_lookup", r, &call);
    return r < 0 ? r : (long)call.prefix;
}

size_t spw_window_length(const struct spw_hit *hits, size_t n, size_t window)
{
    size_t best = 0, run = 0;

    for (size_t i = 0; i < n; i++) {
        run = hits[i].status == 0 ? run + 1 : 0;
        if (run > 0 && (run >= window || run == i + 1))
            best = i + 1;
    }
    return best;
}

int spw_reserve(spw_space *space, const struct spw_key *keys, const uint64_t *sizes, size_t n, unsigned flags,
                uint32_t timeout_ms, struct spw_view *ret_views)
{
    struct client_call call;
    int r = client_build_reserve("spw_reserve", &call, space, keys, sizes, n, flags, timeout_ms, ret_views);

    return run_built("spw_reserve", r, &call);
}

int spw_commit(spw_space *space, struct spw_view *views, size_t n, unsigned flags)
{
    struct client_call call;
    int r = client_build_handles("spw_commit", &call, SPW_OP_COMMIT, space, views, n, flags, SPW_CHAIN);

    return run_built("spw_commit", r, &call);
}

int spw_abort(spw_space *space, struct spw_view *views, size_t n)
{
    struct client_call call;
    int r = client_build_handles("spw_abort", &call, SPW_OP_ABORT, space, views, n, 0, 0);

    return run_built("spw_abort", r, &call);
}

int spw_acquire(spw_space *space, const struct spw_key *keys, size_t n, unsigned flags, uint32_t timeout_ms,
                struct spw_view *ret_views)
{
    struct client_call call;
    int r = client_build_acquire("spw_acquire", &call, space, keys, n, flags, timeout_ms, ret_views);

    return run_built("spw_acquire", r, &call);
}

long spw_acquire_range(spw_space *space, const struct spw_key *key, uint64_t offset_bytes, uint64_t length_bytes,
                       unsigned flags, uint32_t timeout_ms, struct spw_view *ret_views, size_t max_views)
{
    struct client_call call;
    int r = client_build_acquire("spw_acquire_range", &call, space, key, 1, flags, timeout_ms, ret_views);

    if (r < 0)
        return r;
    if (!range_ok(offset_bytes, length_bytes, OBJECT_BYTES_MAX))
        return client_error(-EINVAL, 0, "spw_acquire_range: the range is empty, or ends past the largest object");
    uint64_t n_views = (offset_bytes + length_bytes - 1) / space->piece_bytes - offset_bytes / space->piece_bytes + 1;
    if (n_views > max_views)
        return client_error(-E2BIG, 0, "spw_acquire_range: the range has %llu pieces, there is room for %zu views",
                            (unsigned long long)n_views, max_views);
    call.offset_bytes = offset_bytes;
    call.length_bytes = length_bytes;
    r = client_op_run("spw_acquire_range", &call);
    return r < 0 ? r : (long)n_views;
}

int spw_release(spw_space *space, struct spw_view *views, size_t n, unsigned flags)
{
    struct client_call call;
    int r = client_build_handles("spw_release", &call, SPW_OP_RELEASE, space, views, n, flags, SPW_DIRTY | SPW_DISCARD);

    return run_built("spw_release", r, &call);
}

int spw_touch(spw_space *space, const struct spw_key *keys, size_t n, unsigned flags)
{
    struct client_call call;
    int r = client_build_keys("spw_touch", &call, SPW_OP_TOUCH, space, keys, n, flags, SPW_CHAIN, NULL);

    return run_built("spw_touch", r, &call);
}

int spw_prefetch(spw_space *space, const struct spw_key *keys, size_t n, unsigned flags, uint32_t deadline_ms,
                 int32_t *ret_status)
{
    struct client_call call;
    int r = client_build_keys("spw_prefetch", &call, SPW_OP_PREFETCH, space, keys, n, flags, SPW_CHAIN, ret_status);

    call.arg[0] = deadline_ms;
    return run_built("spw_prefetch", r, &call);
}

int spw_advise(spw_space *space, const struct spw_key *keys, size_t n, enum spw_advice advice, uint64_t value)
{
    struct client_call call;
    int r = client_build_keys("spw_advise", &call, SPW_OP_ADVISE, space, keys, n, 0, 0, NULL);

    if (r == 0 && (advice < SPW_ADVICE_NOT_AGAIN || advice > SPW_ADVICE_SCORE))
        return client_error(-EINVAL, 0, "spw_advise: there is no advice %d", (int)advice);
    call.arg[0] = advice;
    call.arg[1] = value;
    return run_built("spw_advise", r, &call);
}

int spw_pin(spw_space *space, const struct spw_key *keys, size_t n, uint32_t duration_ms, int32_t *ret_status)
{
    struct client_call call;
    int r = client_build_keys("spw_pin", &call, SPW_OP_PIN, space, keys, n, 0, 0, ret_status);

    call.arg[0] = duration_ms;
    return run_built("spw_pin", r, &call);
}

long spw_plan(spw_space *space, const struct spw_key *keys, size_t n)
{
    struct client_call call;
    int r = client_build_keys("spw_plan", &call, SPW_OP_PLAN, space, keys, n, 0, 0, NULL);

    call.no_results = true;
    call.arg[1] = n;
    r = run_built("spw_plan", r, &call);
    return r < 0 ? r : (long)call.value;
}

int spw_delete(spw_space *space, const struct spw_key *keys, size_t n, int32_t *ret_status)
{
    struct client_call call;
    int r = client_build_keys("spw_delete", &call, SPW_OP_DELETE, space, keys, n, 0, 0, ret_status);

    return run_built("spw_delete", r, &call);
}

int spw_sync(spw_space *space, const struct spw_key *keys, size_t n, uint32_t timeout_ms)
{
    struct client_call call;
    int r = client_build_keys("spw_sync", &call, SPW_OP_SYNC, space, keys, n, 0, 0, NULL);

    call.timeout_ms = timeout_ms;
    return run_built("spw_sync", r, &call);
}

int spw_stat(spw_space *space, struct spw_stat *ret_stat)
{
    if (!space || !ret_stat)
        return client_error(-EINVAL, 0, "spw_stat: an argument is NULL");
    struct spw_stat stat = {0};
    struct client_call call = {.space = space, .opcode = SPW_OP_STAT, .stat = &stat};
    int r = client_op_run("spw_stat", &call);
    if (r == 0)
        *ret_stat = stat;
    return r;
}

int spw_nop(spw_space *space)
{
    if (!space)
        return client_error(-EINVAL, 0, "spw_nop: the space is NULL");
    struct client_call call = {.space = space, .opcode = SPW_OP_NOP};
    return client_op_run("spw_nop", &call);
}
