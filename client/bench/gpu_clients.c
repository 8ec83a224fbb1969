/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Four clients at once, each a process with blocks of its own, all moving as fast as they can for a while: what they move
 * together, beside the link, and how equal their shares are. They are forked before anybody calls the driver, and take
 * orders from a socket; the first of them also measures the link, while the others wait. One thread each.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/bench/gpu.h"
#include "client/bench/process.h"

#define CLIENTS 4U
#define TOTAL_GOAL 0.97
#define FAIR_GOAL 0.9
#define START_NS 2000000 /* from an order until all begin */
#define SAMPLE_SECONDS 0.5
#define SAMPLE_SECONDS_QUICK 0.05

enum order_kind { ORDER_CHECK, ORDER_LINK, ORDER_PUMP, ORDER_END };

struct order {
    enum order_kind kind;
    bool is_fetch;
    uint64_t start_ns, until_ns;
};

struct answer {
    int result;
    double link_speed;
    struct gpu_pumped pumped;
};

struct clients {
    struct gpu_bench *bench;
    int fds[CLIENTS];
    pid_t pids[CLIENTS];
    bool is_fetch;
    uint32_t n; /* samples of shares */
    double shares[SAMPLES_MAX];
};

/* ── a client ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int obey(struct gpu_bench *b, const struct order *order, struct answer *answer)
{
    double values[METRICS_MAX];
    int r;

    switch (order->kind) {
    case ORDER_CHECK:
        return gpu_set_check(b);
    case ORDER_LINK:
        r = order->is_fetch ? gpu_dma_sample_in(b, values) : gpu_dma_sample_out(b, values);
        answer->link_speed = values[0];
        return r;
    case ORDER_PUMP:
        while (now_ns() < order->start_ns)
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        return gpu_set_pump(b, order->is_fetch, order->until_ns, NULL, &answer->pumped);
    case ORDER_END:
        return gpu_set_close(b);
    }
    return -EINVAL;
}

struct client {
    struct gpu_bench *bench;
    uint32_t number;
    int fd;
};

static int client_measure(struct micro *m)
{
    const struct client *client = m->ctx;
    struct gpu_bench *b = client->bench;
    struct order order = {.kind = ORDER_CHECK};

    b->micro = m;
    int r = gpu_driver_open(b, true);
    if (r == 0)
        r = gpu_set_open(b, &(struct gpu_shape){.piece_bytes = 16 * KIB,
                                                .item_bytes = 2 * MIB,
                                                .class_id = SPW_CLASS_KV,
                                                .durability = SPW_CACHE,
                                                .number = client->number});
    while (r == 0 && order.kind != ORDER_END && recv(client->fd, &order, sizeof(order), 0) == sizeof(order)) {
        struct answer answer = {.result = 0};

        r = answer.result = obey(b, &order, &answer);
        if (send(client->fd, &answer, sizeof(answer), MSG_NOSIGNAL) < 0)
            r = -errno;
    }
    return r;
}

static int client_start(struct clients *c, uint32_t number)
{
    const struct micro *m = c->bench->micro;
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return -errno;
    c->fds[number] = fds[0];
    pid_t pid = fork();
    if (pid == 0) {
        struct client client = {.bench = c->bench, .number = number, .fd = fds[1]};
        static struct figures none;

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint32_t i = 0; i <= number; i++)
            close(c->fds[i]);
        _exit(micro_session(m->options, m->socket_path, "bench", 0, client_measure, &client, &none) == 0 ? 0 : 1);
    }
    close(fds[1]);
    c->pids[number] = MAX(pid, 0);
    return pid < 0 ? -errno : 0;
}

/* ── all of them ────────────────────────────────────────────────────────────────────────────────────────────────── */

static int order_send(struct clients *c, uint32_t number, const struct order *order)
{
    return send(c->fds[number], order, sizeof(*order), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int answer_take(struct clients *c, uint32_t number, struct answer *ret_answer)
{
    if (recv(c->fds[number], ret_answer, sizeof(*ret_answer), 0) == sizeof(*ret_answer))
        return ret_answer->result;
    fprintf(stderr, "spillbench: client %u ended without a word\n", number);
    return -ECHILD;
}

static int order_all(struct clients *c, const struct order *order, struct answer ret_answers[static CLIENTS])
{
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < CLIENTS; i++)
        r = order_send(c, i, order);
    for (uint32_t i = 0; r == 0 && i < CLIENTS; i++)
        r = answer_take(c, i, &ret_answers[i]);
    return r;
}

static int sample_all(void *ctx, double ret_values[static METRICS_MAX])
{
    struct clients *c = ctx;
    double seconds = c->bench->options->quick ? SAMPLE_SECONDS_QUICK : SAMPLE_SECONDS;
    struct order order = {.kind = ORDER_PUMP, .is_fetch = c->is_fetch, .start_ns = now_ns() + START_NS};
    struct answer answers[CLIENTS] = {{.result = 0}};
    uint64_t bytes = 0, start_ns = UINT64_MAX, end_ns = 0;
    double least = 0, most = 0;

    order.until_ns = order.start_ns + (uint64_t)(seconds * 1e9);
    int r = order_all(c, &order, answers);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < CLIENTS; i++) {
        const struct gpu_pumped *p = &answers[i].pumped;
        double speed = (double)p->bytes / (double)(p->end_ns - p->start_ns);

        bytes += p->bytes;
        start_ns = MIN(start_ns, p->start_ns);
        end_ns = MAX(end_ns, p->end_ns);
        least = i == 0 || speed < least ? speed : least;
        most = speed > most ? speed : most;
    }
    ret_values[0] = (double)bytes / (double)(end_ns - start_ns);
    if (c->n < SAMPLES_MAX)
        c->shares[c->n++] = least / most;
    return 0;
}

static int sample_link(void *ctx, double ret_values[static METRICS_MAX])
{
    struct clients *c = ctx;
    struct order order = {.kind = ORDER_LINK, .is_fetch = c->is_fetch};
    struct answer answer = {.result = 0};
    int r = order_send(c, 0, &order);

    if (r == 0)
        r = answer_take(c, 0, &answer);
    ret_values[0] = answer.link_speed;
    return r;
}

static int contest(struct clients *c, struct figures *figures)
{
    const struct options *o = c->bench->options;
    const char *way = c->is_fetch ? "fetch" : "spill";
    struct contest contest = {.metrics = {{"", "GB/s", GOAL_AT_LEAST, false, TOTAL_GOAL}},
                              .n_metrics = 1,
                              .neighbour = GPU_LINK,
                              .ours = sample_all,
                              .theirs = sample_link,
                              .ctx = c,
                              .seconds = o->seconds,
                              .quiet = o->quiet};

    c->n = 0;
    snprintf(contest.metrics[0].name, FIGURE_NAME_BYTES, "%s of %u clients at once, all together", way, CLIENTS);
    int r = contest_run(&contest, figures);
    if (r < 0)
        return r;
    struct estimate e = pairs_estimate(c->shares, c->n);
    struct figure *f = figure_add(figures, "", e.median,
                                  "%s of %u clients at once, the slowest's share of the fastest's", way, CLIENTS);
    figure_goal(f, GOAL_AT_LEAST, FAIR_GOAL);
    figure_measured(f, &e);
    return 0;
}

int gpu_clients_measure(struct micro *m)
{
    struct clients c = {.bench = m->ctx};
    struct answer answers[CLIENTS];
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < CLIENTS; i++)
        r = client_start(&c, i);
    if (r == 0)
        r = order_all(&c, &(struct order){.kind = ORDER_CHECK}, answers);
    for (unsigned way = 0; r == 0 && way < 2; way++) {
        c.is_fetch = way == 1;
        r = contest(&c, m->figures);
    }
    if (r == 0)
        r = order_all(&c, &(struct order){.kind = ORDER_END}, answers);
    for (uint32_t i = 0; i < CLIENTS && c.pids[i] > 0; i++) {
        int status = 0;

        close(c.fds[i]);
        if (r < 0)
            kill(c.pids[i], SIGKILL);
        if (waitpid(c.pids[i], &status, 0) == c.pids[i] && r == 0 && status != 0)
            r = -ECHILD;
    }
    return r;
}
