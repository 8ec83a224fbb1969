/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the chain policy: its state, and what is known of a block. The latter is three words, the same for a resident
 * block (policy_node.state) and for a ghost.
 *
 *   policy_chain.c          residents: lists, victims, admission
 *   policy_chain_request.c  requests: what naming a chain says about its blocks
 *   hazard.c                what a block's class is worth at its age
 *   chain_ghost.c           blocks that are remembered though they are not resident
 */
#pragma once

#include "tiering/chain_ghost.h"
#include "tiering/hazard.h"
#include "tiering/policy.h"

enum {
    STATE_CLOCK = 0, /* when it was last named */
    STATE_PACKED = 1,
    STATE_CHILD = 2, /* lower half of the hash of what followed it then; 0: nothing */
    STATE_WORDS = CHAIN_GHOST_WORDS,
};

/* Fields of the packed word: where, and how wide. */
#define STATE_FIELD(shift, bits) ((shift) << 8 | (bits))
enum state_field {
    FIELD_CLASS = STATE_FIELD(0, 6),     /* + 1, so that the word of a block is never 0 */
    FIELD_TURN = STATE_FIELD(6, 4),      /* of its conversation, when it was last named */
    FIELD_USES = STATE_FIELD(10, 4),     /* requests that named it */
    FIELD_END = STATE_FIELD(14, 1),      /* it was at the end of its request */
    FIELD_FORKS = STATE_FIELD(15, 3),    /* how often another block followed it than before */
    FIELD_GAP = STATE_FIELD(18, 6),      /* between uses: logarithm, smoothed, in quarters of an octave */
    FIELD_WEIGHT = STATE_FIELD(24, 4),   /* in the tables: 2 to the power of minus this */
    FIELD_NAMED = STATE_FIELD(28, 1),    /* and not used since */
    FIELD_BYPASSED = STATE_FIELD(29, 1), /* worth less than what it would displace */
    FIELD_ADMITTED = STATE_FIELD(30, 1), /* a ghost on its way in: worth more */
    FIELD_CHAINED = STATE_FIELD(31, 1),  /* a request named it, with others */
};

static inline uint32_t state_get(const uint32_t *s, enum state_field field)
{
    return s[STATE_PACKED] >> (field >> 8) & ((UINT32_C(1) << (field & 0xff)) - 1);
}

/* What does not fit becomes the largest that does. */
static inline void state_set(uint32_t *s, enum state_field field, uint32_t value)
{
    uint32_t max = (UINT32_C(1) << (field & 0xff)) - 1;

    s[STATE_PACKED] &= ~(max << (field >> 8));
    s[STATE_PACKED] |= MIN(value, max) << (field >> 8);
}

static inline bool state_is_known(const uint32_t *s)
{
    return s[STATE_PACKED] != 0;
}

static inline uint32_t state_class(const uint32_t *s)
{
    return state_get(s, FIELD_CLASS) - 1;
}

static inline float state_weight(const uint32_t *s)
{
    return 1.0F / (float)(UINT32_C(1) << state_get(s, FIELD_WEIGHT));
}

/* One list for each class, and one for those that are there although they were not admitted: they go first. */
#define CHAIN_LISTS (HAZARD_CLASSES + 1)
#define CHAIN_LIST_BYPASSED HAZARD_CLASSES
static_assert(CHAIN_LISTS <= 64, "lists_used has a bit for each");

struct chain_list {
    uint32_t cold, warm; /* ends; `next` of a node is towards the warm one */
    uint32_t len;
    uint32_t index_clock; /* when `index` was found; 0: the cold end is another one since */
    float index;          /* of the cold end */
};

#define CHAIN_STOPS 256
/*
 * Ghosts: so many for each resident, and no less than that. More would do harm: a conversation of long ago says little, and
 * is better taken for a new one.
 */
#define CHAIN_GHOSTS_PER_RESIDENT 4
#define CHAIN_GHOSTS_MIN 32768

struct chain {
    struct policy policy;
    struct policy_nodes nodes;                      /* borrowed */
    uint32_t (*find)(void *ctx, uint32_t hash_low); /* or NULL */
    void *ctx;
    uint32_t clock;              /* requests; never 0 */
    uint32_t n_alone;            /* uses that no request named */
    uint32_t placed;             /* the last one inserted */
    uint32_t stops[CHAIN_STOPS]; /* by clock: of this request no more is admitted */
    uint32_t n_resident;
    uint64_t resident_sectors;
    struct chain_list lists[CHAIN_LISTS];
    uint64_t lists_used; /* bit set: the list is not empty */
    struct chain_ghosts ghosts;
    struct hazard hazard;
};

/* --- policy_chain.c --- */
/* Out of its list, and into that of its class (or of the bypassed) at the warm end. */
void chain_unlink(struct chain *c, uint32_t obj);
void chain_link(struct chain *c, uint32_t obj);
/* The same, but just colder than another (if that is in the same list). */
void chain_link_below(struct chain *c, uint32_t obj, uint32_t above);
/* What is known of a block, resident or ghost; NULL: nothing. */
uint32_t *chain_state(struct chain *c, uint64_t hash, uint32_t obj);
/* Is a block that has just been named worth more than the least of the residents? */
bool chain_is_worth_more(struct chain *c, const uint32_t *state);
/* A block that nothing is known of becomes a ghost. NULL: there are none. */
uint32_t *chain_remember(struct chain *c, uint64_t hash);

/* --- policy_chain_request.c --- */
void chain_request(struct policy *p, struct policy_chain *open, const struct policy_ref *refs, uint32_t n,
                   enum policy_use use);
/* It was asked for. obj: POLICY_NONE for a ghost. */
void chain_used(struct chain *c, uint32_t *state, uint32_t obj);
/* The first use of a block that no request named. */
void chain_begin_alone(struct chain *c, uint32_t *state);
