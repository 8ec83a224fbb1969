/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mixed load: four clients on a trusted pool and two on one that is not, everything at once. First a short round to
 * warm the daemon up, then the real one with new processes; in between and afterwards nobody is connected, and the
 * daemon's books are read: nothing leased, reserved or waiting, as many descriptors as before, no more memory.
 *
 * The clients are forked before this process has a session of its own, and report through pipes. One thread each.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "client/bench/admin.h"
#include "client/bench/bench.h"
#include "client/bench/figure.h"
#include "client/bench/harness.h"
#include "client/bench/live.h"
#include "client/bench/micro.h"
#include "client/bench/mix.h"
#include "client/bench/options.h"
#include "client/bench/process.h"
#include "include/base/atomic.h"
#include "include/base/cleanup.h"

#define CLIENTS 6
#define CLIENTS_TRUSTED 4
#define WARM_UP_SECONDS 5.0
#define SETTLE_SECONDS 10
#define SETTLED_POLLS 10 /* the same so often: settled */
#define SETTLE_POLL_NS 200000000L
#ifdef __SANITIZE_ADDRESS__
#define MEMORY_SLACK_BYTES (512 * MIB) /* it keeps what was freed, for a while */
#else
#define MEMORY_SLACK_BYTES (4 * MIB)
#endif

static const struct argp_option rows[] = {ROW_SECONDS,
                                          ROW_SEED,
                                          ROW_SIZES,
                                          ROW_DRAM,
                                          ROW_DEVICE,
                                          ROW_POLICY,
                                          ROW_KEEP,
                                          ROW_QUIET,
                                          ROW_QUICK,
                                          ROW_FIGURES,
                                          ROW_ONLY("fetch, shares, budget (with --figures)"),
                                          ROW_OUTPUT,
                                          {0}};
static const char doc[] =
    "Six clients on two pools of a daemon of its own, mixed operations; then the books must balance.";

/* Root may not enter a pool that others share: its clients on the second pool become somebody. */
static const char pools_of_user[] = "[pool left]\ndram = 50 %\n\n[pool right]\ntrusted = no\n";
static const char pools_of_root[] = "[pool left]\ndram = 50 %\n\n[pool right]\ntrusted = no\nusers = 64123\n";

struct mix {
    const struct options *options;
    struct harness *harness;
    pid_t pids[CLIENTS];
    int pipes[CLIENTS];
    struct mix_report reports[CLIENTS];
};

/* What must be the same before and after. */
struct books {
    struct process_usage usage;
    double leased, admitted, waiting, sessions;
};

/* ── the clients ────────────────────────────────────────────────────────────────────────────────────────────────── */

static int client_start(struct mix *m, uint32_t i, uint64_t seed, double seconds)
{
    struct mix_plan plan = {.socket_path = m->harness->socket_path,
                            .pool = i < CLIENTS_TRUSTED ? "left" : "right",
                            .client = i,
                            .uid = i >= CLIENTS_TRUSTED && geteuid() == 0 ? MICRO_SOMEBODY : 0,
                            .seed = seed,
                            .n_sizes = m->options->n_sizes,
                            .seconds = seconds};
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) < 0)
        return -errno;
    pid_t pid = fork();
    if (pid < 0) {
        int r = -errno;
        close(fds[0]);
        close(fds[1]);
        return r;
    }
    if (pid == 0) {
        close(fds[0]);
        _exit(mix_client_run(&plan, fds[1]) == 0 ? 0 : 1);
    }
    close(fds[1]);
    m->pids[i] = pid;
    m->pipes[i] = fds[0];
    return 0;
}

static uint64_t sum_calls(const struct mix_report *r)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < MIX_OPS; i++)
        n += r->calls[i];
    return n;
}

static struct mix_report total(const struct mix *m)
{
    struct mix_report t = {.ended = true};

    for (unsigned i = 0; i < CLIENTS; i++) {
        const struct mix_report *r = &m->reports[i];

        for (unsigned op = 0; op < MIX_OPS; op++)
            t.calls[op] += r->calls[op];
        t.hits += r->hits;
        t.misses += r->misses;
        t.refused += r->refused;
        t.bytes_verified += r->bytes_verified;
        t.bytes_written += r->bytes_written;
        t.wrong += r->wrong;
        t.errors += r->errors;
        t.ended &= r->ended;
    }
    return t;
}

static void progress(struct live *live, const struct mix *m, double seconds)
{
    struct mix_report t = total(m);

    live_print(live,
               "%4.0f s  %llu calls  %llu hits  %llu misses  %llu refused  %.2f GB/s verified  %llu wrong  %llu errors",
               seconds, (unsigned long long)sum_calls(&t), (unsigned long long)t.hits, (unsigned long long)t.misses,
               (unsigned long long)t.refused, (double)t.bytes_verified * 1e-9 / seconds, (unsigned long long)t.wrong,
               (unsigned long long)t.errors);
}

/* Reads reports until every client has closed its end. */
static void clients_watch(struct mix *m)
{
    uint64_t start_ns = now_ns();
    unsigned n_open = CLIENTS;
    struct live live;

    live_init(&live, m->options->quiet);
    while (n_open > 0) {
        struct pollfd pfds[CLIENTS];

        for (unsigned i = 0; i < CLIENTS; i++)
            pfds[i] = (struct pollfd){.fd = m->pipes[i], .events = POLLIN};
        (void)poll(pfds, CLIENTS, 1000);
        for (unsigned i = 0; i < CLIENTS; i++) {
            if (m->pipes[i] < 0 || pfds[i].revents == 0)
                continue;
            if (read(m->pipes[i], &m->reports[i], sizeof(m->reports[i])) > 0)
                continue;
            close(steal_fd(&m->pipes[i]));
            n_open--;
        }
        if (live_due(&live))
            progress(&live, m, seconds_since(start_ns));
    }
    live_end(&live);
}

/* One round of all clients. -ECHILD if one of them did not end well. */
static int round_run(struct mix *m, uint64_t seed, double seconds)
{
    int r = 0, status;

    memset(m->reports, 0, sizeof(m->reports));
    for (unsigned i = 0; i < CLIENTS; i++) {
        m->pipes[i] = -1;
        m->pids[i] = 0;
    }
    for (uint32_t i = 0; r == 0 && i < CLIENTS; i++)
        r = client_start(m, i, seed, seconds);
    if (r < 0)
        fprintf(stderr, "spillbench: cannot start a client: %s\n", strerror(-r));
    else
        clients_watch(m);
    for (unsigned i = 0; i < CLIENTS; i++) {
        if (m->pids[i] == 0 || waitpid(m->pids[i], &status, 0) != m->pids[i])
            continue;
        if (WIFSIGNALED(status))
            fprintf(stderr, "spillbench: client %u was killed by signal %d\n", i, WTERMSIG(status));
        if (status != 0)
            r = -ECHILD;
    }
    return r;
}

/* ── the books ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static int books_read(const struct mix *m, struct books *ret)
{
    cleanup_json struct json_object *of_pools = NULL, *of_sessions = NULL;
    struct books b = {0};
    struct json_object *list;
    spw_session *session;

    int r = harness_connect(m->harness, "spillbench", &session);
    if (r < 0)
        return r;
    r = admin_get(session, "pools", &of_pools);
    if (r == 0)
        r = admin_get(session, "sessions", &of_sessions);
    /* While our own session is open: the daemon frees what belongs to it some time after it ends. */
    if (r == 0)
        r = process_usage(m->harness->pid, &b.usage);
    spw_close(session);
    if (r < 0)
        return r;
    b.leased = admin_number(of_pools, "pools.dram.leased_bytes");
    b.admitted = admin_number(of_pools, "pools.dram.admitted_bytes");
    b.waiting = admin_number(of_pools, "pools.waiting");
    b.sessions =
        json_object_object_get_ex(of_sessions, "sessions", &list) ? (double)json_object_array_length(list) : NAN;
    *ret = b;
    return 0;
}

static bool books_are_clear(const struct books *b)
{
    return !(b->leased > 0) && !(b->admitted > 0) && !(b->waiting > 0) && !(b->sessions > 1);
}

/*
 * The end of a session returns what it held within a second; memory that it alone could write is closed on another
 * thread. Waits until nothing changes any more, and at least so long.
 */
static int books_settle(const struct mix *m, struct books *ret)
{
    uint64_t start_ns = now_ns();
    struct books last, now;
    unsigned n_equal = 0;

    int r = books_read(m, &last);
    while (r == 0 && seconds_since(start_ns) < SETTLE_SECONDS) {
        nanosleep(&(struct timespec){.tv_nsec = SETTLE_POLL_NS}, NULL);
        r = books_read(m, &now);
        if (r < 0)
            return r;
        n_equal = now.usage.n_fds == last.usage.n_fds && books_are_clear(&now) ? n_equal + 1 : 0;
        last = now;
        if (n_equal == SETTLED_POLLS)
            break;
    }
    if (r == 0)
        *ret = last;
    return r;
}

static double growth_mib(uint64_t before, uint64_t after)
{
    return ((double)after - (double)before) / (double)MIB;
}

static void figures_make(const struct mix *m, const struct books *before, const struct books *after, double seconds,
                         struct figures *f)
{
    struct mix_report t = total(m);
    double slack = (double)MEMORY_SLACK_BYTES / (double)MIB;

    for (unsigned op = 0; op < MIX_OPS; op++)
        (void)figure_add(f, "calls", (double)t.calls[op], "%s", mix_op_names[op]);
    (void)figure_add(f, "", (double)t.hits, "keys served");
    (void)figure_add(f, "", (double)t.misses, "keys not there");
    (void)figure_add(f, "", (double)t.refused, "keys refused, or cancelled");
    (void)figure_add(f, "GB/s", (double)t.bytes_verified * 1e-9 / seconds, "verified");
    (void)figure_add(f, "GB/s", (double)t.bytes_written * 1e-9 / seconds, "written");
    figure_goal(figure_add(f, "", (double)t.wrong, "pieces with wrong bytes"), GOAL_AT_MOST, 0);
    figure_goal(figure_add(f, "", (double)t.errors, "unexpected errors"), GOAL_AT_MOST, 0);
    figure_goal(figure_add(f, "B", after->leased, "leased afterwards"), GOAL_AT_MOST, 0);
    figure_goal(figure_add(f, "B", after->admitted, "reserved afterwards"), GOAL_AT_MOST, 0);
    figure_goal(figure_add(f, "", after->waiting, "waiting afterwards"), GOAL_AT_MOST, 0);
    figure_goal(figure_add(f, "", after->sessions, "sessions afterwards"), GOAL_AT_MOST, 1);
    figure_goal(figure_add(f, "", (double)after->usage.n_fds - before->usage.n_fds, "descriptors more than before"),
                GOAL_AT_MOST, 0);
    struct figure *growth =
        figure_add(f, "MiB", growth_mib(before->usage.rss_bytes, after->usage.rss_bytes), "memory, growth");
#ifdef BASE_TSAN /* its shadow grows with every page that is touched */
    (void)growth;
    (void)slack;
#else
    figure_goal(growth, GOAL_AT_MOST, slack);
#endif
    figure_goal(figure_add(f, "MiB",
                           growth_mib(before->usage.locked_bytes + before->usage.pinned_bytes,
                                      after->usage.locked_bytes + after->usage.pinned_bytes),
                           "locked and pinned memory, growth"),
                GOAL_AT_MOST, 0);
}

static int mix_run(struct mix *m)
{
    const struct options *o = m->options;
    struct books before, after;
    struct figures figures = {0};

    int r = round_run(m, o->seed + 1000, MIN(WARM_UP_SECONDS, o->seconds));
    if (r == 0)
        r = books_settle(m, &before);
    if (r < 0 || live_interrupted())
        return BENCH_BROKEN;
    uint64_t start_ns = now_ns();
    r = round_run(m, o->seed, o->seconds);
    double seconds = seconds_since(start_ns);
    if (r == 0)
        r = books_settle(m, &after);
    if (r < 0)
        return BENCH_BROKEN;
    figures_make(m, &before, &after, seconds, &figures);
    if (o->json && figures_print_json(&figures, stdout) < 0)
        return BENCH_BROKEN;
    if (!o->json)
        figures_print_table(&figures, false, stdout);
    return figures_hold(&figures) ? BENCH_OK : BENCH_WRONG;
}

int bench_mix(int argc, char **argv)
{
    struct options o = {.dram_bytes = 256 * MIB, .device_bytes = 2 * GIB, .seed = 1, .n_sizes = 8};
    cleanup_(harness_deinit) struct harness h = HARNESS_NONE;
    struct mix m = {.options = &o, .harness = &h};

    options_parse(argc, argv, rows, doc, &o);
    if (o.seconds == 0)
        o.seconds = o.figures ? (o.quick ? 0.2 : 20) : 60;
    if (o.figures)
        return mix_speed(&o);
    struct harness_options ho = {.pools = geteuid() == 0 ? pools_of_root : pools_of_user,
                                 .any_user = geteuid() == 0,
                                 .policy = o.policy,
                                 .dram_bytes = o.dram_bytes,
                                 .device_bytes = o.device_bytes,
                                 .keep = o.keep,
                                 .quiet = o.quiet};
    if (harness_start(&ho, &h) < 0)
        return BENCH_BROKEN;
    return harness_finish(&h, mix_run(&m));
}
