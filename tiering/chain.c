/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a session's request names, told to the policy of its space. Owns the list between begin and end, which lie within
 * one call of the request path: so there is one list, and it is nobody's state. Engine thread only.
 *
 * A block of several pieces is that many blocks to the policy, one behind the other; what does not fit the list is left
 * out, and stands alone when it is asked for.
 */
#include "tiering/core.h"

/* DRAM's policy knows it: what lies in CXL memory is no more than a memory to it. */
static bool chain_orders(const struct tiering *t, uint32_t object)
{
    return (t->records.objects[object].hot.flags & HOT_IN_POLICY) &&
           tier_of_mem(t, record_at(&t->records, object)) == MEM_DRAM;
}

bool tiering_chain_begin(struct tiering *t, struct tiering_session *s, uint32_t space, enum policy_use use)
{
    const struct tiering_space_info *info = &t->spaces[space].info;
    struct policy *p = t->pools[info->pool].policies[info->class_id];

    if (!p->ops->chain)
        return false;
    if (s->chain_policy != p) {
        s->chain_policy = p;
        s->chain = (struct policy_chain){0};
    }
    t->chain = (struct chain_naming){.refs = t->chain.refs, .session = s, .policy = p, .use = use};
    return true;
}

void tiering_chain_add(struct tiering *t, const struct tiering_id *id, uint32_t n_pieces)
{
    struct chain_naming *naming = &t->chain;
    struct tiering_id piece = *id;

    for (uint32_t i = 0; i < n_pieces && naming->n < LIST_ITEMS_MAX; i++, piece.piece++, piece.hash = 0) {
        uint64_t hash = record_hash_id(&t->records, &piece);
        uint32_t object = record_find(&t->records, &piece, hash);
        bool in_policy = object != RECORD_NONE && chain_orders(t, object);

        naming->refs[naming->n++] = (struct policy_ref){.hash = hash, .obj = in_policy ? object : POLICY_NONE};
        if (i == 0 && piece.piece == 0 && object != RECORD_NONE)
            n_pieces = MAX(n_pieces, object_pieces(t, record_at(&t->records, object)->object_bytes));
    }
}

void tiering_chain_end(struct tiering *t)
{
    const struct chain_naming *naming = &t->chain;

    naming->policy->ops->chain(naming->policy, &naming->session->chain, naming->refs, naming->n, naming->use);
}

uint32_t chain_find(void *ctx, uint32_t hash_low)
{
    const struct policy_seat *seat = ctx;
    const struct tiering *t = seat->tiering;
    uint32_t at = hash_low, object;

    while ((object = record_find_low(&t->records, hash_low, &at)) != RECORD_NONE) {
        const struct tiering_space_info *info = &t->spaces[record_at(&t->records, object)->space].info;

        if (chain_orders(t, object) && info->pool == seat->pool && info->class_id == seat->class_id)
            return object;
    }
    return POLICY_NONE;
}
