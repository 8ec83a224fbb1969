/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client of the mixed load: a process with one thread, one session, four spaces. Owns the choice of operations and
 * the report; the operations are in mix_blocks.c and mix_tensor.c.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/mix.h"
#include "client/bench/process.h"
#include "include/base/cleanup.h"

#define PRINTED_MAX 10
#define FIXED_BYTES (64 * KIB)
#define DURABLE_BYTES (16 * KIB)

const char *const mix_op_names[MIX_OPS] = {
    [MIX_LOOKUP] = "lookup",
    [MIX_ACQUIRE] = "acquire",
    [MIX_STORE] = "reserve and commit",
    [MIX_ABORT] = "abort",
    [MIX_PUT] = "put",
    [MIX_GET] = "get",
    [MIX_DELETE] = "delete",
    [MIX_TOUCH] = "touch",
    [MIX_PREFETCH] = "prefetch",
    [MIX_ADVISE] = "advise",
    [MIX_PIN] = "pin",
    [MIX_SYNC] = "sync",
    [MIX_CANCEL] = "cancel",
    [MIX_TENSOR_PUT] = "put range",
    [MIX_TENSOR_GET] = "get range",
    [MIX_TENSOR_LEASE] = "tensor lease",
    [MIX_STAT] = "stat",
};

/* How often, against the others. */
static const uint8_t weights[MIX_OPS] = {
    [MIX_LOOKUP] = 20,      [MIX_ACQUIRE] = 30, [MIX_STORE] = 25, [MIX_ABORT] = 4,      [MIX_PUT] = 8,
    [MIX_GET] = 8,          [MIX_DELETE] = 2,   [MIX_TOUCH] = 4,  [MIX_PREFETCH] = 4,   [MIX_ADVISE] = 2,
    [MIX_PIN] = 1,          [MIX_SYNC] = 1,     [MIX_CANCEL] = 5, [MIX_TENSOR_PUT] = 5, [MIX_TENSOR_GET] = 5,
    [MIX_TENSOR_LEASE] = 3, [MIX_STAT] = 1,
};

uint64_t mix_random(struct mix_client *c, uint64_t below)
{
    return payload_mix(c->random++, c->plan->seed) % below;
}

void mix_expect(struct mix_client *c, enum mix_op op, int status, const int *expected)
{
    if (status >= 0) {
        c->report.hits++;
        return;
    }
    for (; *expected; expected++) {
        if (status == *expected) {
            *(status == -ENOENT ? &c->report.misses : &c->report.refused) += 1;
            return;
        }
    }
    if (c->report.errors++ < PRINTED_MAX)
        fprintf(stderr, "spillbench mix: client %u: %s: unexpected %s (%s)\n", c->plan->client, mix_op_names[op],
                strerrorname_np(-status), spw_error_text());
}

void mix_verify(struct mix_client *c, const struct spw_key *key, const void *bytes, uint64_t size_bytes,
                uint64_t stream, uint64_t offset_bytes)
{
    uint64_t wrong = payload_check(bytes, size_bytes, stream, offset_bytes);

    c->report.bytes_verified += size_bytes;
    if (likely(wrong == PAYLOAD_OK))
        return;
    if (c->report.wrong++ < PRINTED_MAX)
        payload_report(key, bytes, size_bytes, stream, offset_bytes, wrong);
}

static enum mix_op choose(struct mix_client *c)
{
    unsigned total = 0;

    for (unsigned i = 0; i < MIX_OPS; i++)
        total += weights[i];
    unsigned x = (unsigned)mix_random(c, total);
    for (unsigned i = 0; i < MIX_OPS; i++) {
        if (x < weights[i])
            return (enum mix_op)i;
        x -= weights[i];
    }
    return MIX_LOOKUP;
}

static int open_spaces(struct mix_client *c)
{
    static const struct spw_space_options options[MIX_SPACES] = {
        [MIX_VARIABLE] = {.digest = "mix variable", .class_id = SPW_CLASS_KV},
        [MIX_FIXED] = {.digest = "mix fixed", .class_id = SPW_CLASS_KV, .item_bytes = FIXED_BYTES},
        [MIX_DURABLE] = {.digest = "mix durable",
                         .class_id = SPW_CLASS_WEIGHTS,
                         .durability = SPW_DURABLE,
                         .item_bytes = DURABLE_BYTES},
        [MIX_TENSORS] = {.digest = "mix tensors", .class_id = SPW_CLASS_OPTIMIZER, .durability = SPW_SCRATCH},
    };
    struct spw_pool_info info;
    struct spw_connect_options connect = {.socket_path = c->plan->socket_path, .name = "spillbench mix"};

    int r = spw_connect(&connect, &c->session);
    if (r == 0)
        r = spw_pool_open(c->session, c->plan->pool, &c->pool);
    if (r == 0) {
        spw_pool_info(c->pool, &info);
        c->trusted = info.flags & SPW_POOL_TRUSTED;
    }
    for (unsigned i = 0; r == 0 && i < MIX_SPACES; i++)
        r = spw_space_open(c->pool, &options[i], &c->spaces[i]);
    if (r == 0)
        r = spw_queue_new(c->session, c->spaces[MIX_FIXED], 0, &c->queue);
    if (r < 0)
        fprintf(stderr, "spillbench mix: client %u: %s\n", c->plan->client, spw_error_text());
    return r == 0 ? mix_tensor_init(c) : r;
}

static void client_deinit(struct mix_client *c)
{
    mix_release_all(c);
    spw_queue_free(c->queue);
    spw_close(c->session);
    free(c->tensor.versions);
    free(c->buffer);
}

static void report_send(const struct mix_client *c, int fd)
{
    /* A pipe takes a write of this size whole, or the parent has gone. */
    static_assert(sizeof(c->report) < 4096, "atomic");
    ssize_t n = write(fd, &c->report, sizeof(c->report));
    (void)n;
}

static int client_loop(struct mix_client *c, int fd)
{
    uint64_t start_ns = now_ns(), sent_ns = start_ns;
    int r = 0;

    while (r == 0 && seconds_since(start_ns) < c->plan->seconds && !live_interrupted()) {
        enum mix_op op = choose(c);

        c->report.calls[op]++;
        r = op == MIX_TENSOR_PUT || op == MIX_TENSOR_GET || op == MIX_TENSOR_LEASE ? mix_tensor_op(c, op)
                                                                                   : mix_block_op(c, op);
        if (r < 0)
            fprintf(stderr, "spillbench mix: client %u: %s: %s (%s)\n", c->plan->client, mix_op_names[op],
                    spw_error_text(), strerrorname_np(-r));
        if (seconds_since(sent_ns) > 1) {
            report_send(c, fd);
            sent_ns = now_ns();
        }
    }
    return r;
}

int mix_client_run(const struct mix_plan *plan, int fd)
{
    cleanup_free struct mix_client *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    c->plan = plan;
    c->random = payload_mix(plan->seed, plan->client) >> 1;
    c->buffer = malloc(MIX_BUFFER_BYTES);
    int r = c->buffer ? micro_become(plan->uid) : -ENOMEM;
    if (r == 0)
        r = open_spaces(c);
    if (r == 0)
        r = client_loop(c, fd);
    client_deinit(c);
    c->report.ended = r == 0;
    report_send(c, fd);
    return r;
}
