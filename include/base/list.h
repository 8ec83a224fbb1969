/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Intrusive doubly linked list with a head. An unlinked entry points to itself, so unlinking twice is harmless and
 * "is it linked?" can be asked.
 */
#pragma once

#include <stdbool.h>

#include "include/base/base.h"

struct list {
    struct list *prev, *next;
};

#define LIST_INIT(name)                                                                                                \
    {                                                                                                                  \
        &(name), &(name)                                                                                               \
    }

static inline void list_init(struct list *l)
{
    l->prev = l->next = l;
}

static inline bool list_is_empty(const struct list *l)
{
    return l->next == l;
}

static inline void list_link_between_(struct list *e, struct list *prev, struct list *next)
{
    e->prev = prev;
    e->next = next;
    prev->next = e;
    next->prev = e;
}

static inline void list_push_tail(struct list *head, struct list *e)
{
    list_link_between_(e, head->prev, head);
}

static inline void list_push_head(struct list *head, struct list *e)
{
    list_link_between_(e, head, head->next);
}

static inline void list_unlink(struct list *e)
{
    e->prev->next = e->next; /* NOLINT(clang-analyzer-core.NullDereference): a link is never NULL once initialised */
    e->next->prev = e->prev;
    list_init(e);
}

/* Moves all entries of src to the tail of dst. */
static inline void list_splice_tail(struct list *dst, struct list *src)
{
    if (list_is_empty(src))
        return;
    src->next->prev = dst->prev;
    dst->prev->next = src->next;
    src->prev->next = dst;
    dst->prev = src->prev;
    list_init(src);
}

#define list_entry(ptr, type, member) container_of(ptr, type, member)
#define list_first_entry(head, type, member) (list_is_empty(head) ? NULL : list_entry((head)->next, type, member))
#define list_for_each(pos, head) for (struct list *pos = (head)->next; pos != (head); pos = pos->next)
/* The current entry may be unlinked in the body, no other. */
#define list_for_each_safe(pos, head)                                                                                  \
    for (struct list *pos = (head)->next, *pos##_next_ = pos->next; pos != (head);                                     \
         pos = pos##_next_, pos##_next_ = pos->next)

/* Takes the first entry off the list; NULL if there is none. */
static inline struct list *list_pop(struct list *head)
{
    if (list_is_empty(head))
        return NULL;
    struct list *e = head->next;
    list_unlink(e);
    return e;
}
