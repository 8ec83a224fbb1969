/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks what leases of these sizes take of a pool. One message, one answer; any thread.
 */
#include <string.h>

#include "client/lib/client.h"

/* The pool's handle is that of the process that is asked: after a restart of the daemon once more. */
static int manifest_ask(struct spw_pool *pool, struct spw_msg_manifest *told, size_t told_bytes,
                        struct spw_msg_sizing *ret_reply)
{
    spw_session *session = pool->session;
    uint32_t era;
    int r;

    do {
        era = 0;
        told->pool = load_relaxed(&pool->handle);
        r = client_control_request_on(session, &era, SPW_MSG_MANIFEST, &told->msg, told_bytes, &ret_reply->msg,
                                      sizeof(*ret_reply), NULL, 0);
    } while (r == -EBADF && era != load_acquire(&session->era) && client_link_wait(session) == 0);
    return r;
}

int spw_manifest(spw_pool *pool, const struct spw_manifest_entry *entries, size_t n, struct spw_sizing *ret_sizing)
{
    struct spw_msg_sizing reply = {0};

    if (!pool || !ret_sizing || (n > 0 && !entries))
        return client_error(-EINVAL, 0, "spw_manifest: an argument is NULL");
    if (n > SPW_MANIFEST_MAX)
        return client_error(-E2BIG, 0, "spw_manifest: a manifest has at most %d entries", SPW_MANIFEST_MAX);
    size_t told_bytes = sizeof(struct spw_msg_manifest) + n * sizeof(*entries);
    cleanup_free struct spw_msg_manifest *told = calloc(1, told_bytes);
    if (!told)
        return client_error(-ENOMEM, 0, "spw_manifest: out of memory");
    told->n = (uint32_t)n;
    if (n > 0)
        memcpy(told + 1, entries, n * sizeof(*entries));
    int r = manifest_ask(pool, told, told_bytes, &reply);
    if (r == 0)
        *ret_sizing = reply.sizing;
    return r;
}
