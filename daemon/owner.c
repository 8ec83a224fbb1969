/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns accounts and owners: two short lists that are walked. Tokens are compared in constant time, all of them, so the
 * time that a guess takes tells nothing.
 */
#include "daemon/owner.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "daemon/control.h"
#include "daemon/session_kept.h"

/* --- Accounts ---------------------------------------------------------------------------------------------------- */

struct account *account_get(struct control *control, uid_t uid)
{
    list_for_each (l, &control->accounts) {
        struct account *account = list_entry(l, struct account, link);

        if (account->uid == uid)
            return account;
    }
    struct account *account = calloc(1, sizeof(*account));

    if (!account)
        return NULL;
    account->uid = uid;
    list_push_tail(&control->accounts, &account->link);
    return account;
}

void account_put(struct control *control, struct account *account)
{
    (void)control;
    if (!account || account->n_sessions > 0 || account->n_refused > 0 || account->n_owners > 0)
        return;
    list_unlink(&account->link);
    free(account);
}

bool account_may_open(const struct control *control, const struct account *account, uint32_t n)
{
    return account->n_descriptors + n <= control->config->daemon.uid_descriptors;
}

/* --- Tokens ------------------------------------------------------------------------------------------------------ */

bool token_equal(const uint8_t *a, const uint8_t *b)
{
    volatile uint8_t differ = 0;

    for (size_t i = 0; i < SPW_TOKEN_BYTES; i++)
        differ = (uint8_t)(differ | (a[i] ^ b[i]));
    return differ == 0;
}

int token_new(uint8_t *ret_token)
{
    return getrandom(ret_token, SPW_TOKEN_BYTES, 0) == SPW_TOKEN_BYTES ? 0 : -EIO;
}

/* --- Owners ------------------------------------------------------------------------------------------------------ */

static void owner_free(struct owner *owner)
{
    owner->account->n_owners--;
    account_put(owner->control, owner->account);
    loop_timer_cancel(&owner->linger);
    list_unlink(&owner->link);
    owner->control->n_owners--;
    free(owner);
}

static void owner_ended(struct call *base)
{
    struct owner *owner = base->at_control_ctx;

    if (--owner->n_calls == 0)
        owner_free(owner);
}

static void owner_linger_over(struct loop_timer *timer)
{
    struct owner *owner = container_of(timer, struct owner, linger);
    struct control *control = owner->control;

    owner->ending = true;
    owner->kept = kept_owner_free(control->kept, owner->kept);
    owner->n_calls = control->n_engines;
    for (uint32_t i = 0; i < control->n_engines; i++) {
        owner->calls[i] = (struct owner_call){.owner = owner->number};
        owner->calls[i].call.at_control = owner_ended;
        owner->calls[i].call.at_control_ctx = owner;
        engine_owner_end(control->engines[i], &owner->calls[i]);
    }
}

static struct owner *owner_alloc(struct control *control, struct account *account, uint64_t number)
{
    struct owner *owner = calloc(1, sizeof(*owner) + control->n_engines * sizeof(owner->calls[0]));

    if (!owner)
        return NULL;
    owner->control = control;
    owner->account = account;
    owner->number = number;
    loop_timer_init(&owner->linger, owner_linger_over);
    list_push_tail(&control->owners, &owner->link);
    control->n_owners++;
    account->n_owners++;
    return owner;
}

static int owner_new(struct control *control, struct account *account, struct owner **ret_owner)
{
    uint8_t token[SPW_TOKEN_BYTES];

    if (control->n_owners >= OWNERS_MAX || account->n_owners >= UID_OWNERS_MAX)
        return -ENOSPC;
    int r = token_new(token);

    if (r < 0)
        return r;
    uint64_t number = kept_next_owner(control->kept);
    struct owner *owner = number < UINT32_MAX ? owner_alloc(control, account, number) : NULL;

    if (!owner)
        return number < UINT32_MAX ? -ENOMEM : -ENOSPC;
    memcpy(owner->token, token, sizeof(token));
    owner->kept = kept_owner_new(control->kept); /* there are as many rows as owners */
    if (owner->kept) {
        owner->kept->uid = account->uid;
        memcpy(owner->kept->token, token, sizeof(token));
        kept_owner_use(owner->kept, number);
    }
    *ret_owner = owner;
    return 0;
}

static struct owner *owner_find(struct control *control, const struct account *account, const uint8_t *token)
{
    struct owner *found = NULL;

    list_for_each (l, &control->owners) {
        struct owner *owner = list_entry(l, struct owner, link);
        bool same = token_equal(owner->token, token);

        if (same && owner->account == account && !owner->ending)
            found = owner;
    }
    return found;
}

int owner_join(struct control *control, struct account *account, const uint8_t *token, struct owner **ret_owner)
{
    static const uint8_t none[SPW_TOKEN_BYTES];
    struct owner *owner = NULL;

    if (token_equal(token, none)) {
        int r = owner_new(control, account, &owner);

        if (r < 0)
            return r;
    } else {
        owner = owner_find(control, account, token);
        if (!owner)
            return -ENOENT;
    }
    loop_timer_cancel(&owner->linger);
    owner->n_sessions++;
    *ret_owner = owner;
    return 0;
}

void owner_leave(struct owner *owner, bool is_kept)
{
    owner->is_kept |= is_kept;
    if (--owner->n_sessions == 0 && !owner->is_kept)
        loop_timer_set(&owner->control->loop, &owner->linger, loop_now_ns() + owner->linger_ns);
}

void owner_linger(struct owner *owner, uint64_t linger_ns)
{
    owner->linger_ns = MAX(owner->linger_ns, linger_ns);
    if (owner->kept)
        owner->kept->linger_ns = owner->linger_ns;
}

int owner_restore(struct control *control, struct kept_owner *kept)
{
    struct account *account = account_get(control, kept->uid);
    struct owner *owner = account ? owner_alloc(control, account, kept->number) : NULL;

    if (!owner) {
        account_put(control, account);
        return -ENOMEM;
    }
    memcpy(owner->token, kept->token, sizeof(owner->token));
    owner->kept = kept;
    owner->linger_ns = kept->linger_ns;
    loop_timer_set(&control->loop, &owner->linger, loop_now_ns() + owner->linger_ns);
    return 0;
}

struct owner *owner_rejoin(struct control *control, const struct account *account, uint64_t number)
{
    list_for_each (l, &control->owners) {
        struct owner *owner = list_entry(l, struct owner, link);

        if (owner->number != number || owner->account != account)
            continue;
        loop_timer_cancel(&owner->linger);
        owner->n_sessions++;
        return owner;
    }
    return NULL;
}

void owners_free(struct control *control)
{
    list_for_each_safe (l, &control->owners)
        owner_free(list_entry(l, struct owner, link));
}
