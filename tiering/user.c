/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the accounts of users: what the sessions of one of them have together, pool by pool. Engine thread only.
 *
 * What is admitted counts here as it does in the pool, from tiering_admit() to the lease's end, so a lease that outlives
 * its session (a copy or a transfer still has it) still counts. Private memory counts while its session, or what is left
 * of it, has it. A row is free when nobody has a session and nothing is counted. All of this is derived: a process that
 * finds leases counts them when their session comes back, which names its user again.
 *
 * Row 0 is nobody in particular: nothing is counted there, and nothing is refused.
 */
#include <errno.h>
#include <stdlib.h>

#include "tiering/core.h"

struct user {
    uint64_t name;
    uint32_t n_sessions;
};

int users_new(struct tiering *t)
{
    t->users = calloc(USERS_MAX, sizeof(*t->users));
    t->user_bytes = calloc((uint64_t)USERS_MAX * (t->n_pools + 1), sizeof(*t->user_bytes));
    t->n_users = 1;
    return t->users && t->user_bytes ? 0 : -ENOMEM;
}

void users_free(struct tiering *t)
{
    free(t->users);
    free(t->user_bytes);
}

static bool user_is_free(const struct tiering *t, uint32_t user)
{
    bool is_free = t->users[user].n_sessions == 0;

    for (uint32_t pool = 0; pool <= t->n_pools && is_free; pool++) {
        const struct user_bytes *b = user_bytes(t, user, pool);

        is_free = b->admitted == 0 && b->private == 0;
    }
    return is_free;
}

/* There are more rows than sessions; only what dead sessions left can use them up, and then the last one is shared. */
static uint32_t user_find(struct tiering *t, uint64_t name)
{
    uint32_t free_row = 0;

    for (uint32_t i = 1; i < t->n_users; i++) {
        bool is_free = user_is_free(t, i);

        if (!is_free && t->users[i].name == name)
            return i;
        if (is_free && free_row == 0)
            free_row = i;
    }
    if (free_row == 0)
        free_row = t->n_users < USERS_MAX ? t->n_users++ : USERS_MAX - 1;
    t->users[free_row].name = name;
    return free_row;
}

bool user_may_have_private(const struct tiering *t, const struct session_arena *sa, uint64_t bytes)
{
    const struct tpool *p = &t->pools[sa->pool];

    return sa->user == 0 || user_bytes(t, sa->user, sa->pool)->private + bytes <= user_limit(p, pool_lease_limit(p));
}

void user_count_private(struct tiering *t, struct session_arena *sa, uint64_t bytes)
{
    if (sa->user != 0)
        user_bytes(t, sa->user, sa->pool)->private += bytes - sa->counted_bytes;
    sa->counted_bytes = bytes;
}

void tiering_session_user(struct tiering *t, struct tiering_session *s, uint64_t name)
{
    uint32_t user = user_find(t, name);

    assert(s->user == 0);
    s->user = user;
    t->users[user].n_sessions++;
    for (uint32_t i = s->first_lease; i != RECORD_NONE; i = t->leases[i].next) { /* that it had in the last process */
        const struct record *r = record_at(&t->records, t->leases[i].object);

        t->leases[i].user = (uint16_t)user;
        user_bytes(t, user, t->spaces[r->space].info.pool)->admitted += r->size_bytes;
    }
    list_for_each (l, &s->arenas) {
        struct session_arena *sa = list_entry(l, struct session_arena, link);
        uint64_t bytes = sa->counted_bytes;

        sa->user = user;
        sa->counted_bytes = 0;
        user_count_private(t, sa, bytes);
    }
}

void user_session_end(struct tiering *t, struct tiering_session *s)
{
    if (s->user == 0)
        return;
    assert(t->users[s->user].n_sessions > 0);
    t->users[s->user].n_sessions--;
}

void tiering_user_stat(const struct tiering *t, const struct tiering_session *s, struct tiering_user_stat *ret_stat)
{
    *ret_stat = (struct tiering_user_stat){0};
    for (uint32_t pool = 0; s->user != 0 && pool < t->n_pools; pool++) {
        const struct user_bytes *b = user_bytes(t, s->user, pool);
        uint64_t limit = user_limit(&t->pools[pool], pool_lease_limit(&t->pools[pool]));

        ret_stat->leased += b->admitted;
        ret_stat->private += b->private;
        if (limit != UINT64_MAX && limit >= 100)
            ret_stat->percent = MAX(ret_stat->percent, (uint32_t)(b->admitted / (limit / 100)));
    }
}

const char *users_check(const struct tiering *t)
{
    for (uint32_t pool = 0; pool <= t->n_pools; pool++) {
        uint64_t sum = 0;

        for (uint32_t i = 1; i < t->n_users; i++)
            sum += user_bytes(t, i, pool)->admitted;
        if (sum > t->pools[pool].admitted_bytes)
            return "users have more admitted than their pool";
    }
    return NULL;
}
