/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A backend in front of another one, in which device requests fail, take long, or bring wrong bytes, by rules that an
 * administrator has given: for drills. Everything else goes through as it is. Where it is not wanted it is not there: nobody
 * pays for it. One engine's, on its thread.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"
#include "io/backend.h"

struct inject;

enum inject_what {
    INJECT_EIO,        /* reads and writes end with -EIO */
    INJECT_LATENCY,    /* all requests end later */
    INJECT_CORRUPT,    /* a bit of what a read brings is another one */
    INJECT_FLUSH_FAIL, /* flushes end with -EIO */
    INJECT_WHATS,
};
extern const char *const inject_names[INJECT_WHATS];

#define INJECT_MILLION 1000000

struct inject_rule {
    uint8_t what; /* enum inject_what */
    uint16_t dev;
    uint32_t device;     /* the same, as whoever gave it names it */
    uint32_t millionths; /* of the requests that it is about; INJECT_MILLION: all */
    uint64_t count;      /* so many more of them, and the rule is gone; 0: without end */
    uint64_t latency_ns; /* of INJECT_LATENCY */
    uint64_t number;     /* the rule's own, as whoever gave it counts */
    uint64_t n_done;     /* requests that it has hit */
};

/* address: where the bytes of a region are; NULL if there are none. -ENOMEM. */
must_check int inject_new(struct io_backend *behind, void *(*address)(void *ctx, struct io_buf buf, uint64_t len_bytes),
                          void *ctx, uint64_t seed, struct inject **ret_inject);
/* Nothing is in flight. Takes NULL. */
struct inject *inject_free(struct inject *inject);
struct io_backend *inject_backend(struct inject *inject);

/* -ENOSPC: INJECT_RULES_MAX. */
must_check int inject_add(struct inject *inject, const struct inject_rule *rule);
/* What is held back for their sake ends with the next inject_tick(). */
void inject_clear(struct inject *inject);
/* Up to INJECT_RULES_MAX of them; returns how many. */
uint32_t inject_list(const struct inject *inject, struct inject_rule *ret_rules);

/* Ends what has been held back long enough; when it wants to be called again, UINT64_MAX: need not. */
uint64_t inject_tick(struct inject *inject, uint64_t now_ns);
