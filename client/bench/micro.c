/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frame around a small benchmark. Without --socket it starts a daemon of its own, with memory and no device. One
 * thread.
 */
#include "client/bench/micro.h"

#include <stdio.h>

#include "client/bench/bench.h"
#include "client/bench/harness.h"
#include "include/base/cleanup.h"

#define DRAM_DEFAULT (256 * MIB)

static const struct argp_option rows[] = {ROW_BLOCK, ROW_DRAM, ROW_SOCKET, ROW_POOL,   ROW_SECONDS,
                                          ROW_KEEP,  ROW_SEED, ROW_QUIET,  ROW_OUTPUT, {0}};

static inline void spw_close_p(spw_session **session)
{
    spw_close(*session);
}

static int micro_session(const struct options *o, const char *socket_path, const char *pool_name, micro_fn measure)
{
    cleanup_(spw_close_p) spw_session *session = NULL;
    struct figures figures = {0};
    spw_pool *pool = NULL;

    int r = spw_connect(&(struct spw_connect_options){.socket_path = socket_path, .name = "spillbench"}, &session);
    if (r == 0)
        r = spw_pool_open(session, pool_name, &pool);
    if (r < 0) {
        fprintf(stderr, "spillbench: %s\n", spw_error_text());
        return BENCH_BROKEN;
    }
    r = measure(o, session, pool, &figures);
    if (r < 0)
        return r == -EBADMSG ? BENCH_WRONG : BENCH_BROKEN;
    if (o->json && figures_print_json(&figures, stdout) < 0)
        return BENCH_BROKEN;
    if (!o->json)
        figures_print_table(&figures, false, stdout);
    return figures_hold(&figures) ? BENCH_OK : BENCH_WRONG;
}

int micro_run(int argc, char **argv, const char *doc, micro_fn measure)
{
    struct options o = {
        .block_bytes = 64 * KIB, .dram_bytes = DRAM_DEFAULT, .seed = 1, .seconds = 2, .pool = "default"};
    cleanup_(harness_deinit) struct harness h = HARNESS_NONE;

    options_parse(argc, argv, rows, doc, &o);
    if (o.socket_path)
        return micro_session(&o, o.socket_path, o.pool, measure);
    struct harness_options ho = {.dram_bytes = o.dram_bytes, .keep = o.keep, .quiet = o.quiet};
    if (harness_start(&ho, &h) < 0)
        return BENCH_BROKEN;
    return harness_finish(&h, micro_session(&o, h.socket_path, "bench", measure));
}
