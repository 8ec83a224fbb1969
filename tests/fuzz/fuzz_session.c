/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control messages of several clients, spillctl's requests among them: types, lengths, reserved fields, handles, descriptors
 * that nobody asked for, hang-ups while an engine has a call. The control thread's code with two engines that have no thread:
 * their calls are run when the input says so. So a session can end at each moment of a request. And restarts: sessions leave,
 * and the table that they are kept in is taken for what the last process has left.
 *
 * What must hold: a session that has gone leaves nothing: no count, no account, no scratch memory, no descriptor.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/control.h"
#include "daemon/gpu.h"
#include "daemon/log.h"
#include "daemon/session.h"
#include "daemon/session_kept.h"
#include "include/base/socket.h"
#include "io/device.h"
#include "io/grower.h"
#include "io/workers.h"
#include "tests/fuzz/fuzz.h"

#define CLIENTS 3
#define ENGINES 2
#define STEPS_MAX 100
#define TURNS_MAX 1000
#define RESTARTS_MAX 2 /* each looks through tables of 32768 rows */
#define FD_LAST 128
#define HANDLES 4

#define CONFIG                                                                                                         \
    "[daemon]\nuid_sessions = 2\nsession_rings = 3\ngpus = none\nlog_level = error\ninject = yes\n"                    \
    "[tier.dram]\nsize = 128 MiB\n[device d]\npath = /none\n"                                                          \
    "[pool own]\nusers = %u\nlinger = 0 s\n[pool all]\nusers = any\nlinger = 0 s\ngpu = 0\n"                           \
    "[pool foreign]\nusers = 4242\n"

struct client {
    int fd; /* -1: not there */
    uint32_t n_sent;
    uint32_t pools[HANDLES], spaces[HANDLES], rings[HANDLES];
    uint32_t n_pools, n_rings;
    uint8_t token[SPW_TOKEN_BYTES]; /* of its last session */
};

static struct control control;
static int surplus_fd; /* what clients send along */
static struct client clients[CLIENTS];
static uint32_t n_restarts;

/* --- The daemon ------------------------------------------------------------------------------------------------------ */

static void engine_make(uint32_t number)
{
    static struct tiering_pool_config pools[3];
    struct engine_config config = {.number = number,
                                   .spin_ns = 1000,
                                   .max_requests = 16,
                                   .max_waits = 16,
                                   .gpus = control.pool_gpus,
                                   .control = &control.mailbox,
                                   .inject = true,
                                   .tiering = {.pools = pools,
                                               .n_pools = ARRAY_LEN(pools),
                                               .node = MEMORY_NODE_ANY,
                                               .max_objects = 100,
                                               .max_leases = 100,
                                               .memory_on_demand = true,
                                               .parts_deadline_ns = UINT64_C(1000000000)}};
    const char *why = "";

    for (uint32_t i = 0; i < ARRAY_LEN(pools); i++) {
        pools[i] = (struct tiering_pool_config){
            .trusted = i == 0, .dram_bytes = 16 * MIB, .session_bytes = MIB, .weight = 1, .max_leases_percent = 80};
        snprintf(pools[i].name, sizeof(pools[i].name), "%s", control.config->pools[i].section.name);
    }
    for (int i = 0; i < TIERING_CLASSES; i++)
        config.tiering.classes[i] = (struct tiering_class_config){.policy = &policy_lru, .weight = 1};
    config.uring.chunk.node = MEMORY_NODE_ANY;
    config.uring.workers = control.workers;
    config.uring.grower = control.grower;
    fuzz_check(engine_new(&config, &control.engines[number], &why) == 0, "%s", why);
}

static struct spillway_config *config_make(void)
{
    static struct config_errors errors;
    struct spillway_config *config = NULL;
    struct config_env env;
    char text[1024], path[64];
    int fd = memfd_create("config", MFD_CLOEXEC), len = snprintf(text, sizeof(text), CONFIG, geteuid());

    fuzz_check(fd >= 0 && write(fd, text, (size_t)len) == len);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    config_env_init(&env, false);
    fuzz_check(config_load(path, &env, &config, &errors) == 0, "%s", errors.at[0].text);
    close(fd);
    return config;
}

static void daemon_make(void)
{
    const struct workers_config workers = {.threads = 1};

    log_set_level(LOG_LEVEL_ERROR);
    surplus_fd = memfd_create("surplus", MFD_CLOEXEC);
    fuzz_check(control_init(&control) == 0);
    control.config = config_make();
    control.state = CONTROL_READY;
    control.devices[0].device = DEVICE_NONE;
    control.n_engines = ENGINES;
    const char *why = NULL;
    fuzz_check(kept_new(NULL, ENGINES, &control.kept, &why) == 0);
    fuzz_check(gpus_new(&control, &control.gpus) == 0);
    fuzz_check(workers_new(&workers, &control.workers) == 0 && grower_new(&control.grower) == 0);
    for (uint32_t i = 0; i < ENGINES; i++)
        engine_make(i);
}

static void engines_run(void)
{
    for (uint32_t i = 0; i < ENGINES; i++)
        (void)engine_queue_run(uring_queue(control.engines[i]->uring));
}

static void control_turn(void)
{
    fuzz_check(loop_turn(&control.loop, 0) == 0);
    (void)engine_queue_run(&control.mailbox);
}

/* In order, and the next process, with the same engines: to them the sessions that are back are new ones. */
static void daemon_restart(void)
{
    if (n_restarts == RESTARTS_MAX)
        return;
    n_restarts++;
    sessions_leave(&control);
    for (int i = 0; !list_is_empty(&control.sessions); i++) {
        fuzz_check(i < TURNS_MAX, "%u sessions never leave", control.n_sessions);
        control_turn();
        engines_run();
    }
    engines_run(); /* of owners that end */
    (void)engine_queue_run(&control.mailbox);
    owners_free(&control);
    fuzz_check(list_is_empty(&control.accounts), "an account is left");
    fuzz_check(sessions_restore(&control) == 0);
    sessions_wait(&control);
}

static uint32_t fds_open(void)
{
    uint32_t n = 0;

    for (int fd = 3; fd < FD_LAST; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* --- Clients --------------------------------------------------------------------------------------------------------- */

static void client_begin(struct client *c)
{
    int pair[2];

    fuzz_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
    c->fd = pair[1];
    c->n_pools = c->n_rings = 0;
    if (session_accept(&control, pair[0]) < 0) {
        close(pair[0]);
        close(c->fd);
        c->fd = -1;
    }
}

static void client_end(struct client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

/* The answer is in itself right, whatever was asked. */
static void sizing_check(const struct spw_sizing *s)
{
    fuzz_check(s->leasable_bytes <= s->memory_max_bytes && s->memory_max_bytes <= s->stored_max_bytes);
    fuzz_check(s->leased_bytes <= s->memory_bytes || s->leased_bytes == 0);
    fuzz_check(s->limit != SPW_LIMIT_NONE || (s->leased_bytes <= s->leasable_bytes && s->leases <= s->leases_max &&
                                              s->stored_bytes <= s->stored_max_bytes));
}

/* A reply, with its descriptors. */
static void client_receive(struct client *c)
{
    static _Alignas(8) uint8_t bytes[CONTROL_MESSAGE_BYTES_MAX];
    union {
        char bytes[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } ancillary;
    struct iovec iov = {bytes, sizeof(bytes)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ancillary, .msg_controllen = sizeof(ancillary)};
    ssize_t n = recvmsg(c->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    struct cmsghdr *cmsg = n > 0 ? CMSG_FIRSTHDR(&header) : NULL;
    const struct spw_msg *msg = (const void *)bytes;

    for (size_t i = 0; cmsg && i < (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
        int fd;

        memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(fd), sizeof(fd));
        close(fd);
    }
    if (n == 0)
        client_end(c);
    if (n <= 0)
        return;
    fuzz_check(n >= (ssize_t)sizeof(*msg) && msg->magic == SPW_ABI_MAGIC && msg->size_bytes == (size_t)n &&
               (msg->type & SPW_MSG_REPLY) && msg->status <= 0);
    if (msg->status < 0) {
        fuzz_check(n == sizeof(struct spw_msg_error) &&
                   memchr(((const struct spw_msg_error *)(const void *)bytes)->text, 0, SPW_TEXT_BYTES));
        return;
    }
    switch (msg->type & ~SPW_MSG_REPLY) {
    case SPW_MSG_HELLO:
        memcpy(c->token, ((const struct spw_msg_welcome *)(const void *)bytes)->session_token, sizeof(c->token));
        break;
    case SPW_MSG_POOL_OPEN:
        c->pools[c->n_pools++ % HANDLES] = ((const struct spw_msg_pool *)(const void *)bytes)->pool;
        break;
    case SPW_MSG_RING_NEW:
        fuzz_check(cmsg && cmsg->cmsg_len == CMSG_LEN(3 * sizeof(int)));
        c->rings[c->n_rings++ % HANDLES] = ((const struct spw_msg_ring *)(const void *)bytes)->ring;
        break;
    case SPW_MSG_MANIFEST:
        sizing_check(&((const struct spw_msg_sizing *)(const void *)bytes)->sizing);
        break;
    default:
        break;
    }
}

union message {
    struct spw_msg msg;
    struct spw_msg_hello hello;
    struct spw_msg_pool_open pool;
    struct spw_msg_space_open space;
    struct spw_msg_ring_new ring;
    struct spw_msg_ring_free ring_free;
    struct spw_msg_chunk_get chunk;
    struct spw_msg_gpu_attach attach;
    struct spw_msg_gpu_detach detach;
    struct {
        struct spw_msg_manifest head;
        struct spw_manifest_entry entries[8];
    } manifest;
    struct {
        struct spw_msg_unanswered head;
        uint64_t requests[8];
    } unanswered;
    uint8_t bytes[512];
};

/* JSON, and what is almost JSON: a byte a word, from the beginning or within the first string. */
static size_t words_make(struct fuzz *f, char *text, size_t size, bool is_begun)
{
    static const char *const words[] = {
        "{",          "}",       ":",          ",",     " ",        "\"get\"", "\"config\"",     "\"doctor\"",
        "\"inject\"", "\"add\"", "\"",         "\\n",   "\\\"",     "\\u0041", "\\ud83d\\ude00", "\\ud83d",
        "\\u00zz",    "\\u0800", "\\q",        "null",  "true",     "1",       "-0.5e+3",        "1e999",
        "01",         "[",       "\"device\"", "\"d\"", "\"what\"", "\"eio\"", "\"count\"",      "\t",
        "\xff",       "name"};
    size_t len = is_begun ? (size_t)snprintf(text, size, "{\"get\":\"") : 0;
    uint8_t what;

    while (len + 16 < size && (what = fuzz_u8(f)) != 0)
        len += (size_t)snprintf(text + len, 16, "%s", words[(what - 1U) % ARRAY_LEN(words)]);
    return len;
}

static size_t inject_make(struct fuzz *f, char *text, size_t size)
{
    static const char *const orders[] = {"list", "clear", "add", "add", "add", "what"};
    static const char *const faults[] = {"eio", "latency", "corrupt", "flush-fail", "none"};
    static const char *const numbers[] = {"1", "0.5", "0", "100", "1e15", "1e16", "-1", "\"1\""};
    const char *order = orders[fuzz_below(f, ARRAY_LEN(orders))], *fault = faults[fuzz_below(f, ARRAY_LEN(faults))];
    uint8_t what = fuzz_u8(f);

    return (size_t)snprintf(text, size,
                            "{\"inject\":\"%s\",\"device\":\"%s\",\"what\":\"%s\",\"count\":%s,"
                            "\"probability\":%s,\"latency_ms\":%s}",
                            order, what & 64 ? "e" : "d", fault, numbers[what & 7], numbers[what >> 3 & 7 ? 1 : 3],
                            numbers[what >> 3 & 7]);
}

static size_t admin_make(struct fuzz *f, union message *ret)
{
    static const char *const names[] = {"status", "pools",  "tiers",  "sessions", "devices",
                                        "gpus",   "iostat", "doctor", "config",   "nothing"};
    char *text = (char *)ret->bytes + sizeof(ret->msg);
    size_t room = sizeof(ret->bytes) - sizeof(ret->msg);
    uint8_t what = fuzz_u8(f);

    if (what < 96)
        return sizeof(ret->msg) + (size_t)snprintf(text, room, "{\"get\":\"%s\"}", names[what % ARRAY_LEN(names)]);
    if (what < 128)
        return sizeof(ret->msg) + inject_make(f, text, room);
    if (what < 224)
        return sizeof(ret->msg) + words_make(f, text, room, what & 1);
    fuzz_bytes(f, text, what);
    return sizeof(ret->msg) + what;
}

static size_t unanswered_make(struct fuzz *f, union message *ret, uint8_t what)
{
    uint32_t n = what % (ARRAY_LEN(ret->unanswered.requests) + 1);

    ret->unanswered.head.engine = what / 16 % ENGINES;
    ret->unanswered.head.n = n;
    for (uint32_t i = 0; i < n; i++)
        ret->unanswered.requests[i] = fuzz_u8(f);
    return sizeof(ret->unanswered.head) + n * sizeof(ret->unanswered.requests[0]);
}

/* Sizes of few bits, anywhere in a word: so sums overflow, too. */
static size_t manifest_make(struct fuzz *f, union message *ret, uint32_t pool)
{
    uint32_t n = fuzz_u8(f) % (ARRAY_LEN(ret->manifest.entries) + 1);

    ret->manifest.head.pool = pool;
    ret->manifest.head.n = n;
    for (uint32_t i = 0; i < n; i++) {
        struct spw_manifest_entry *e = &ret->manifest.entries[i];

        e->size_bytes = (uint64_t)(fuzz_u8(f) + 1) << fuzz_u8(f) % 40;
        e->count = (uint64_t)fuzz_u8(f) << fuzz_u8(f) % 56;
        e->slots = (uint32_t)fuzz_u8(f) << fuzz_u8(f) % 24;
        e->flags = e->slots & SPW_MANIFEST_WRITE;
    }
    return sizeof(ret->manifest.head) + n * sizeof(ret->manifest.entries[0]);
}

/* A message that is all right, as far as this client's handles go. */
static size_t message_make(struct fuzz *f, const struct client *c, union message *ret)
{
    uint8_t what = fuzz_u8(f);
    uint32_t pool = c->pools[what / 64 % HANDLES];

    switch (ret->msg.type) {
    case SPW_MSG_HELLO:
        ret->hello.version_min = ret->hello.version_max = SPW_ABI_VERSION;
        memcpy(ret->hello.name, "fuzz", 4);
        if (what & 3)
            memcpy(ret->hello.session_token, clients[what % CLIENTS].token, sizeof(ret->hello.session_token));
        return sizeof(ret->hello);
    case SPW_MSG_POOL_OPEN:
        snprintf(ret->pool.name, sizeof(ret->pool.name), "%s", what & 1 ? "own" : what & 2 ? "all" : "foreign");
        return sizeof(ret->pool);
    case SPW_MSG_SPACE_OPEN:
        ret->space.pool = pool;
        ret->space.digest[0] = what & 15;
        ret->space.class_id = what % SPW_CLASSES;
        ret->space.node = UINT32_MAX;
        return sizeof(ret->space);
    case SPW_MSG_RING_NEW:
        ret->ring.engine = what % ENGINES;
        ret->ring.sq_entries = ret->ring.cq_entries = 8U << what % 4;
        ret->ring.scratch_bytes = (1 + what) * UINT64_C(1000);
        return sizeof(ret->ring);
    case SPW_MSG_RING_FREE:
        ret->ring_free.ring = c->rings[what % HANDLES];
        return sizeof(ret->ring_free);
    case SPW_MSG_CHUNK_GET:
        ret->chunk.engine = what % ENGINES;
        return sizeof(ret->chunk);
    case SPW_MSG_GPU_ATTACH:
        ret->attach.pool = pool;
        ret->attach.uuid[0] = what;
        return sizeof(ret->attach);
    case SPW_MSG_GPU_DETACH:
        ret->detach.lane = what;
        return sizeof(ret->detach);
    case SPW_MSG_MANIFEST:
        return manifest_make(f, ret, pool);
    case SPW_MSG_UNANSWERED:
        return unanswered_make(f, ret, what);
    default:
        return admin_make(f, ret);
    }
}

static void client_send(struct fuzz *f, struct client *c, uint8_t type)
{
    union message m = {.msg = {.type = type}};
    /* Not its own end: one that is on its way to us hides the hang-up until it is read, or the reply's time is over. */
    const int fds[SOCKET_FDS_MAX] = {surplus_fd, surplus_fd, surplus_fd};
    size_t size = message_make(f, c, &m);
    uint8_t wrong = fuzz_wrong(f);
    uint32_t n_fds = wrong & 8 ? 1 + (wrong >> 6) % SOCKET_FDS_MAX : 0;

    m.msg.magic = SPW_ABI_MAGIC;
    m.msg.version = SPW_ABI_VERSION;
    m.msg.size_bytes = (uint32_t)size;
    m.msg.request = ++c->n_sent;
    if (wrong & 1)
        fuzz_patch(f, (char *)&m + sizeof(m.msg), MAX(size, sizeof(m.msg) + 1) - sizeof(m.msg));
    if (wrong & 2)
        fuzz_patch(f, &m.msg, sizeof(m.msg));
    if (wrong & 4) {
        size = fuzz_u8(f) * 2;
        m.msg.size_bytes = wrong & 16 ? (uint32_t)size : m.msg.size_bytes;
    }
    if (m.msg.type == SPW_MSG_SPACE_OPEN) /* or the tables of spaces would fill for good */
        memset(m.space.digest + 1, 0, sizeof(m.space.digest) - 1);
    (void)socket_send(c->fd, &m, size, fds, n_fds, MSG_DONTWAIT);
}

static void step(struct fuzz *f)
{
    static const uint8_t types[11] = {SPW_MSG_MANIFEST,   SPW_MSG_HELLO,      SPW_MSG_POOL_OPEN, SPW_MSG_SPACE_OPEN,
                                      SPW_MSG_RING_NEW,   SPW_MSG_RING_FREE,  SPW_MSG_CHUNK_GET, SPW_MSG_ADMIN,
                                      SPW_MSG_GPU_ATTACH, SPW_MSG_GPU_DETACH, SPW_MSG_UNANSWERED};
    uint8_t what = fuzz_u8(f);
    struct client *c = &clients[what % CLIENTS];

    what /= CLIENTS;
    if (what >= 84) {
        daemon_restart();
    } else if (what >= 80) {
        control_turn();
    } else if (what >= 76) {
        engines_run();
    } else if (c->fd < 0) {
        client_begin(c);
    } else if (what == 0) {
        client_end(c);
    } else if (what < 64) {
        client_send(f, c, types[what % ARRAY_LEN(types)]);
        if (what >= 16) { /* and wait for the answer */
            control_turn();
            engines_run();
            control_turn();
            client_receive(c);
        }
    } else {
        client_receive(c);
    }
}

static void end_check(uint32_t fds_before)
{
    for (uint32_t i = 0; i < CLIENTS; i++)
        client_end(&clients[i]);
    for (int i = 0; !list_is_empty(&control.sessions) || !list_is_empty(&control.owners); i++) {
        fuzz_check(i < TURNS_MAX, "%u sessions, %u owners never end", control.n_sessions, control.n_owners);
        list_for_each_safe (l, &control.sessions) { /* these end in real time */
            struct session *session = list_entry(l, struct session, link);

            if (session->state == SESSION_AWAY)
                session_end(session, "its client does not come", false);
        }
        control_turn();
        engines_run();
    }
    control_turn();
    fuzz_check(control.n_sessions == 0 && control.n_refused == 0 && control.n_owners == 0);
    fuzz_check(list_is_empty(&control.accounts), "an account is left");
    for (uint32_t i = 0; i < ENGINES; i++) {
        struct requests_stat stat;

        requests_stat(control.engines[i]->requests, &stat);
        fuzz_check(stat.peers == 0 && stat.rings == 0 && stat.requests == 0);
    }
    fuzz_check(fds_open() == fds_before, "%u descriptors, before: %u", fds_open(), fds_before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz f = fuzz_of(data, size);

    if (!control.config)
        daemon_make();
    for (uint32_t i = 0; i < CLIENTS; i++)
        clients[i] = (struct client){.fd = -1};
    uint32_t before = fds_open();

    n_restarts = 0;
    client_begin(&clients[0]);
    for (int i = 0; i < STEPS_MAX && fuzz_more(&f); i++)
        step(&f);
    end_check(before);
    return 0;
}
