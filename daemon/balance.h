/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How one pool's budget of one tier is spread over the engines. Pure: no calls, no clock; the control thread brings what
 * engines report, and tells them what comes out.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/limits.h"

/* What one engine says of one pool and tier. */
struct balance_view {
    uint64_t held;     /* bytes that it has, or has asked for */
    uint64_t used;     /* of these, in use */
    uint64_t pressure; /* a count that grows when room was wanted and there was none */
    uint64_t uses;     /* a count that grows with every use */
    bool is_waiting;   /* somebody waits for room right now */
};

struct balance_engine {
    uint64_t share;   /* what it has by right */
    uint64_t most;    /* what it could use: on devices its partitions */
    uint64_t target;  /* what it is to have; the sum over all engines never exceeds that of the shares */
    uint64_t granted; /* what it may have now */
    uint64_t pressure, uses, used_ns; /* as seen last; when `uses` last grew */
    bool is_pressed, is_idle;
};

struct balance_trade {
    bool is_on;
    uint32_t from, to;
    uint64_t bytes, since_ns;
};

struct balance {
    struct balance_engine *engines; /* borrowed: n_engines */
    uint32_t n_engines;
    bool is_device;
    uint64_t total; /* of the shares */
    struct balance_trade trade;
    uint64_t trade_ns; /* no trade before */
};

/* What one of so many engines can come to have of the total in memory, where the others use nothing. */
uint64_t balance_most_bytes(uint64_t total_bytes, uint32_t n_engines);
/* Begins anew: everybody is to have its share. What was granted stays until a look moves it there. */
void balance_set(struct balance *b, const uint64_t *shares, const uint64_t *most);
/* After balance_set(), before anybody was granted anything: everybody is granted its share, but none less than it holds already,
 * as long as all of them hold no more than the total. */
void balance_begin(struct balance *b, const uint64_t *held);
/*
 * One look at all engines. True if what is granted has changed: each engine is to be told. Less is granted at once, more
 * only as far as nobody else holds it: so what the engines hold never sums up to more than the total, once it does not.
 */
bool balance_look(struct balance *b, const struct balance_view *views, uint64_t now_ns);
/* All have what they are to have, and hold no more. */
bool balance_is_settled(const struct balance *b, const struct balance_view *views);
