/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of accesses to a space that a session declares, told to the policy of the space's class in its pool. Owns the order
 * while it is being told: it comes in lists, so somebody else's may come between two of them. There is one, for whoever began
 * last; who was before is told to begin anew. Engine thread only.
 *
 * A space is never gone, but what is in it: with the last piece its order goes. One whose pieces never came goes when others
 * need its place, so that whoever declares much and uses nothing is in nobody's way.
 *
 * A piece need not be there to be named. Nothing here is derived from memory that outlives the process: a plan does not.
 */
#include <errno.h>

#include "tiering/core.h"

int tiering_plan_begin(struct tiering *t, const struct tiering_session *s, uint32_t space, uint64_t items_before)
{
    struct plan_telling *telling = &t->plan;
    bool goes_on = telling->session == s && telling->space == space && telling->n_items == items_before;

    telling->session = NULL; /* until end(): a list that fails ends it */
    if (items_before > 0 && !goes_on)
        return -ESTALE;
    if (items_before == 0)
        telling->n_accesses = 0;
    telling->space = space;
    return 0;
}

int tiering_plan_add(struct tiering *t, const struct tiering_id *id)
{
    struct plan_telling *telling = &t->plan;

    if (telling->n_accesses == PLAN_ACCESSES_MAX)
        return -E2BIG;
    telling->hashes[telling->n_accesses++] = (uint32_t)record_hash_id(&t->records, id);
    return 0;
}

void tiering_plan_pause(struct tiering *t, const struct tiering_session *s, uint64_t items)
{
    t->plan.session = s;
    t->plan.n_items = items;
}

/* For policy->forget(). */
static bool is_empty(const void *ctx, uint32_t space)
{
    const struct tiering *t = ctx;

    return space != t->plan.space && t->spaces[space].n_objects == 0;
}

static bool is_that(const void *ctx, uint32_t space)
{
    return *(const uint32_t *)ctx == space;
}

int tiering_plan_end(struct tiering *t)
{
    const struct plan_telling *telling = &t->plan;
    const struct tiering_space_info *info = &t->spaces[telling->space].info;
    struct policy *p = t->pools[info->pool].policies[info->class_id];

    if (!p->ops->tell)
        return 0;
    int r = p->ops->tell(p, telling->space, telling->hashes, telling->n_accesses);

    if (r != -ENOSPC && r != -E2BIG)
        return r;
    p->ops->forget(p, is_empty, t);
    return p->ops->tell(p, telling->space, telling->hashes, telling->n_accesses);
}

void plan_space_empty(struct tiering *t, uint32_t space)
{
    const struct tiering_space_info *info = &t->spaces[space].info;
    struct policy *p = t->pools[info->pool].policies[info->class_id];

    if (p->ops->forget)
        p->ops->forget(p, is_that, &space);
}

uint32_t plan_owner(void *ctx, uint32_t object)
{
    const struct policy_seat *seat = ctx;

    return record_at(&seat->tiering->records, object)->space;
}

void plan_session_end(struct tiering *t, const struct tiering_session *s)
{
    if (t->plan.session == s)
        t->plan.session = NULL;
}
