/* SPDX-License-Identifier: Apache-2.0 */
#include <spillway/spillway.h>
#include <stdio.h>
#include <string.h>

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, spw_error_text());
    return 1;
}

int main(void)
{
    struct spw_space_options layout = {.digest = "example", .item_bytes = 4096, .class_id = SPW_CLASS_KV};
    struct spw_view view;
    struct spw_key key;
    spw_session *session;
    spw_space *space;
    spw_pool *pool;

    if (spw_connect(NULL, &session) < 0)
        return fail("connect");
    if (spw_pool_open(session, "default", &pool) < 0 || spw_space_open(pool, &layout, &space) < 0)
        return fail("open");
    spw_key_init(&key, "greeting", 8, 0);
    if (spw_reserve(space, &key, NULL, 1, 0, 1000, &view) < 0)
        return fail("reserve");
    if (view.status == 0) { /* room for it: write in place, then publish; -EEXIST: it is there already */
        memset(view.data, 0, view.size_bytes);
        strcpy(view.data, "hello from the slow memory");
        if (spw_commit(space, &view, 1, 0) < 0)
            return fail("commit");
    }
    if (spw_acquire(space, &key, 1, 0, 1000, &view) < 0 || view.status != 0)
        return fail("acquire");
    puts(view.data); /* the bytes themselves, not a copy */
    spw_release(space, &view, 1, 0);
    spw_close(session);
    return 0;
}
