/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads all that there may be, after a start, and asks the oracle whether it may be so. Nobody else is there meanwhile.
 * What was found is what is known from then on. In a process of its own, so that its session ends with it, whatever
 * happens. Where memory has survived, so does the check's session when the daemon dies; and a piece that a client was writing
 * when it was killed may be torn: then it is written anew.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/torture/torture.h"

#define WAIT_MS 60000
#define AGAIN_PERCENT 30

struct check {
    struct t_place *place;
    struct t_spaces spaces;
    struct t_counts counts;
    uint32_t seen[T_CLIENTS][T_KINDS][T_KEYS];
    uint32_t sets[T_CLIENTS][T_GROUPS][T_STRIPES];
    bool after_death;
    bool all_blocks, all; /* that were acknowledged must be there; or everything that was, memory has survived */
    char *bytes;
};

static void check_gone(const struct check *c, int status)
{
    if (c->all)
        torture_fail("check: does not outlive the daemon: %s (%s)", strerror(-status), spw_error_text());
    _exit(CLIENT_GONE);
}

static const char *const kind_names[T_KINDS] = {"durable", "cache", "shared"};

/* The version that is there; 0: none. */
static uint32_t check_read(struct check *c, uint32_t client, enum t_kind kind, uint32_t key)
{
    struct spw_key name = key_of(client, key);
    struct spw_iovec to;
    int64_t end = now_ms() + WAIT_MS;
    int32_t status;
    int r;

    do { /* what a client was putting when it was killed goes with its session */
        to = (struct spw_iovec){c->bytes, T_PAYLOAD_MAX};
        status = 0;
        r = spw_get(c->spaces.blocks[kind], &name, &to, 1, 0, WAIT_MS, &status);
    } while (c->all && r == 0 && status == -EINPROGRESS && now_ms() < end);
    if (is_gone(r) || (is_gone(status) && status != -ENOENT))
        check_gone(c, r < 0 ? r : status);
    status = r < 0 ? r : status;
    if (status == -ENOENT)
        return 0;
    if (status == -EBADMSG && kind == T_CACHE && c->after_death && !c->all) {
        c->counts.bad_messages++;
        return 0;
    }
    if (status < 0)
        torture_fail("%s key %u of client %u: %s (%s); there may be %s", kind_names[kind], key, client,
                     strerror(-status), spw_error_text(),
                     oracle_key_tells(&c->place->oracle->clients[client], kind, key, T_NOW));
    uint32_t version = payload_version(c->bytes, (uint32_t)to.size_bytes, payload_of_key(client, kind, key));

    if (version == 0 || version == UINT32_MAX || to.size_bytes != payload_bytes(client, kind, key, version))
        torture_fail("%s key %u of client %u: %llu wrong bytes", kind_names[kind], key, client,
                     (unsigned long long)to.size_bytes);
    return version;
}

static void check_key(struct check *c, uint32_t client, enum t_kind kind, uint32_t key)
{
    const struct t_client *of = &c->place->oracle->clients[client];
    uint32_t version = check_read(c, client, kind, key);

    if (!oracle_key_may_be(of, kind, key, T_NOW, c->all_blocks || c->all, version))
        torture_fail("%s key %u of client %u is version %u; there may be %s", kind_names[kind], key, client, version,
                     oracle_key_tells(of, kind, key, T_NOW));
    if (kind == T_CACHE && oracle_key_last(of, kind, key) != 0) {
        c->counts.cache_known++;
        c->counts.cache_served += version != 0;
        c->counts.hot_known += c->all;
        c->counts.hot_served += c->all && version != 0;
    }
    c->counts.objects_checked++;
    c->seen[client][kind][key] = version;
}

/* In the client's name, which is dead. */
static int check_mend(struct check *c, uint32_t client, enum t_group g, uint32_t tensor, uint32_t first, uint32_t n)
{
    struct t_client *of = &c->place->oracle->clients[client];
    uint32_t stripe = tensor_first_stripe(tensor) + first, version = ++of->sets[g].next;
    struct spw_key name = tensor_of(tensor);

    for (uint32_t i = 0; i < n; i++)
        payload_fill(c->bytes + (size_t)i * T_STRIPE_BYTES, T_STRIPE_BYTES, payload_of_stripe(client, g, stripe + i),
                     version);
    struct t_event *e = oracle_begin(
        c->place->oracle, of,
        &(struct t_event){
            .op = T_WRITE, .kind = (uint8_t)g, .stripe = stripe, .n_stripes = (uint16_t)n, .version = version});
    int r = spw_put_range(c->spaces.tensors[client][g], &name, (uint64_t)first * T_STRIPE_BYTES, c->bytes,
                          (uint64_t)n * T_STRIPE_BYTES, WAIT_MS);

    if (r == 0)
        oracle_end(c->place->oracle, e, T_DONE);
    c->counts.torn++;
    return r;
}

static void check_piece(struct check *c, uint32_t client, enum t_group g, uint32_t tensor, uint32_t first, uint32_t n)
{
    uint64_t bytes = (uint64_t)n * T_STRIPE_BYTES;
    struct spw_key name = tensor_of(tensor);
    int r =
        spw_get_range(c->spaces.tensors[client][g], &name, (uint64_t)first * T_STRIPE_BYTES, c->bytes, bytes, WAIT_MS);

    if (r == -EBADMSG && c->all && c->place->oracle->clients[client].was_killed)
        r = check_mend(c, client, g, tensor, first, n);
    if (r == -ENOENT)
        memset(c->bytes, 0, bytes); /* it was made, and that was not durable */
    else if (is_gone(r))
        check_gone(c, r);
    else if (r < 0)
        torture_fail("tensor %u of set %u of client %u: %s (%s)", tensor, g, client, strerror(-r), spw_error_text());
    for (uint32_t i = 0; i < n; i++) {
        uint32_t stripe = tensor_first_stripe(tensor) + first + i;
        uint32_t version = payload_version(c->bytes + (size_t)i * T_STRIPE_BYTES, T_STRIPE_BYTES,
                                           payload_of_stripe(client, g, stripe));

        if (version == UINT32_MAX)
            torture_fail("stripe %u of set %u of client %u: wrong bytes", stripe, g, client);
        c->sets[client][g][stripe] = version;
    }
}

const char *stripes_text(const uint32_t stripes[static T_STRIPES])
{
    static char text[T_STRIPES * 16];
    size_t at = 0;

    for (uint32_t i = 0; i < T_STRIPES; i++)
        at += (size_t)snprintf(text + at, sizeof(text) - at, " %u", stripes[i]);
    return text;
}

static void check_set(struct check *c, uint32_t client, enum t_group g)
{
    const struct t_client *of = &c->place->oracle->clients[client];

    for (uint32_t i = 0; i < T_TENSORS; i++)
        for (uint32_t first = 0, n; first < tensor_stripes(i); first += n) {
            n = MIN(tensor_stripes(i) - first, (uint32_t)T_PIECE_STRIPES);
            check_piece(c, client, g, i, first, n);
        }
    if (!oracle_set_may_be(of, g, T_NOW, c->all, c->sets[client][g]))
        torture_fail("set %u of client %u is as it was at no SYNC that counts:%s", g, client,
                     stripes_text(c->sets[client][g]));
    c->counts.sets_checked++;
}

static void check_count(const struct check *c, struct t_counts *counts)
{
    counts->objects_checked += c->counts.objects_checked;
    counts->sets_checked += c->counts.sets_checked;
    counts->cache_known += c->counts.cache_known;
    counts->cache_served += c->counts.cache_served;
    counts->bad_messages += c->counts.bad_messages;
    counts->hot_known += c->counts.hot_known;
    counts->hot_served += c->counts.hot_served;
    counts->torn += c->counts.torn;
}

/* One call for a space; in the name of each client that uses it. */
static void check_sync_one(struct check *c, spw_space *space, const struct t_event *what, uint32_t first, uint32_t n)
{
    struct t_event *events[T_CLIENTS];
    struct t_oracle *o = c->place->oracle;

    for (uint32_t i = 0; i < n; i++)
        events[i] = oracle_begin(o, &o->clients[first + i], what);
    int r = spw_sync(space, NULL, 0, WAIT_MS);

    if (is_gone(r))
        check_gone(c, r);
    if (r < 0 && r != -ENOSPC && r != -ETIMEDOUT)
        torture_fail("check: sync: %s (%s)", strerror(-r), spw_error_text());
    for (uint32_t i = 0; i < n && r == 0; i++)
        oracle_end(o, events[i], T_DONE);
}

/* What the device says of all this is then what memory says, and the next cold start shows it. */
static void check_sync(struct check *c)
{
    static const uint8_t kinds[] = {T_DURABLE, T_SHARED};

    for (uint32_t i = 0; i < ARRAY_LEN(kinds); i++)
        check_sync_one(c, c->spaces.blocks[kinds[i]],
                       &(struct t_event){.op = T_SYNC_KEYS, .kind = kinds[i], .key = T_KEYS}, 0, T_CLIENTS);
    for (uint32_t i = 0; i < T_CLIENTS * T_GROUPS; i++)
        check_sync_one(c, c->spaces.tensors[i / T_GROUPS][i % T_GROUPS],
                       &(struct t_event){.op = T_SYNC_SET, .kind = (uint8_t)(i % T_GROUPS)}, i / T_GROUPS, 1);
}

static void check_run(struct check *c)
{
    struct t_oracle *o = c->place->oracle;
    int r = spaces_open(c->place, "check", &c->spaces);

    if (is_gone(r))
        check_gone(c, r);
    if (r < 0)
        torture_fail("check: connect: %s (%s)", strerror(-r), spw_error_text());
    for (uint32_t client = 0; client < T_CLIENTS; client++) {
        for (uint32_t kind = 0; kind < T_KINDS; kind++)
            for (uint32_t key = 0; key < T_KEYS; key++)
                check_key(c, client, (enum t_kind)kind, key);
        for (uint32_t g = 0; g < T_GROUPS; g++)
            check_set(c, client, (enum t_group)g);
    }
    for (uint32_t client = 0; client < T_CLIENTS; client++) {
        if (c->all)
            oracle_found(o, &o->clients[client], c->seen[client], c->sets[client]);
        else
            oracle_rebase(&o->clients[client], c->seen[client], c->sets[client]);
    }
    check_count(c, &o->counts);
    if (c->all && c->place->check_syncs)
        check_sync(c);
}

/* The next one, which may be told to die, too; or nobody is to wait for it. */
static void check_lost(struct t_place *p, pid_t pid, bool all)
{
    struct t_random random = random_for(p->oracle->seed, p->oracle->life, p->oracle->counts.starts);
    struct t_point point = {0};

    if (!all) {
        if (p->hot)
            (void)kill(pid, SIGKILL);
        return;
    }
    if (random_percent(&random, AGAIN_PERCENT))
        (void)points_choose(p, &random, false, &point);
    p->oracle->counts.deaths_in_recovery++;
    place_start_daemon(p, point.at[0] ? point.at : NULL);
}

/* The check's status. */
static int check_wait(struct t_place *p, pid_t pid, bool all)
{
    int status, daemon_status;

    for (pid_t found; (found = waitpid(pid, &status, WNOHANG)) != pid; pause_ms(1)) {
        if (found < 0)
            torture_fail("wait: %s", strerror(errno));
        if (p->daemon == 0 || place_daemon_lives(p, &daemon_status))
            continue;
        place_was_killed(p, daemon_status);
        check_lost(p, pid, all);
    }
    return status;
}

/* A stop in good order writes blocks back, but only a SYNC makes a tensor durable. */
bool check_all(struct t_place *p, bool after_death, bool all)
{
    fflush(NULL);
    pid_t pid = fork();

    if (pid == 0) {
        place_leave(p);
        struct check *c = calloc(1, sizeof(*c));

        if (!c || !(c->bytes = malloc(T_PAYLOAD_MAX)))
            torture_fail("no memory");
        c->place = p;
        c->after_death = after_death;
        c->all_blocks = !after_death;
        c->all = all;
        check_run(c);
        _exit(0);
    }
    if (pid < 0)
        torture_fail("fork: %s", strerror(errno));
    int status = check_wait(p, pid, all);

    if ((WIFEXITED(status) && WEXITSTATUS(status) == CLIENT_GONE) ||
        (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
        return false;
    if (status != 0)
        exit(EXIT_FAILURE); /* it has said why */
    return true;
}
