/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads all that there may be, after a start, and asks the oracle whether it may be so. Nobody else is there meanwhile.
 * What was found is what is known from then on. In a process of its own, so that its session ends with it, whatever
 * happens.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/torture/torture.h"

#define WAIT_MS 60000

struct check {
    struct t_place *place;
    struct t_spaces spaces;
    struct t_counts counts;
    uint32_t seen[T_CLIENTS][T_KINDS][T_KEYS];
    uint32_t sets[T_CLIENTS][T_GROUPS][T_STRIPES];
    bool after_death;
    bool all_blocks, all; /* that were acknowledged must be there; or everything that was */
    char *bytes;
};

static const char *const kind_names[T_KINDS] = {"durable", "cache", "shared"};

/* The version that is there; 0: none. */
static uint32_t check_read(struct check *c, uint32_t client, enum t_kind kind, uint32_t key)
{
    struct spw_key name = key_of(client, key);
    struct spw_iovec to = {c->bytes, T_PAYLOAD_MAX};
    int32_t status = 0;
    int r = spw_get(c->spaces.blocks[kind], &name, &to, 1, 0, WAIT_MS, &status);

    if (is_gone(r) || (is_gone(status) && status != -ENOENT))
        _exit(CLIENT_GONE);
    status = r < 0 ? r : status;
    if (status == -ENOENT)
        return 0;
    if (status == -EBADMSG && kind == T_CACHE && c->after_death) {
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
    }
    c->counts.objects_checked++;
    c->seen[client][kind][key] = version;
}

static void check_tensor(struct check *c, uint32_t client, enum t_group g, uint32_t tensor)
{
    uint64_t bytes = (uint64_t)tensor_stripes(tensor) * T_STRIPE_BYTES;
    struct spw_key name = tensor_of(tensor);
    int r = spw_get_range(c->spaces.tensors[client][g], &name, 0, c->bytes, bytes, WAIT_MS);

    if (r == -ENOENT)
        memset(c->bytes, 0, bytes); /* it was made, and that was not durable */
    else if (is_gone(r))
        _exit(CLIENT_GONE);
    else if (r < 0)
        torture_fail("tensor %u of set %u of client %u: %s (%s)", tensor, g, client, strerror(-r), spw_error_text());
    for (uint32_t i = 0; i < tensor_stripes(tensor); i++) {
        uint32_t stripe = tensor_first_stripe(tensor) + i;
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
        check_tensor(c, client, g, i);
    if (!oracle_set_may_be(of, g, T_NOW, c->all, c->sets[client][g]))
        torture_fail("set %u of client %u is as it was at no SYNC that counts:%s", g, client,
                     stripes_text(c->sets[client][g]));
    c->counts.sets_checked++;
}

static void check_run(struct check *c)
{
    struct t_oracle *o = c->place->oracle;
    int r = spaces_open(c->place, "check", &c->spaces);

    if (is_gone(r))
        _exit(CLIENT_GONE);
    if (r < 0)
        torture_fail("check: connect: %s (%s)", strerror(-r), spw_error_text());
    for (uint32_t client = 0; client < T_CLIENTS; client++) {
        for (uint32_t kind = 0; kind < T_KINDS; kind++)
            for (uint32_t key = 0; key < T_KEYS; key++)
                check_key(c, client, (enum t_kind)kind, key);
        for (uint32_t g = 0; g < T_GROUPS; g++)
            check_set(c, client, (enum t_group)g);
    }
    for (uint32_t client = 0; client < T_CLIENTS; client++)
        oracle_rebase(&o->clients[client], c->seen[client], c->sets[client]);
    o->counts = c->counts;
}

/* A stop in good order writes blocks back, but only a SYNC makes a tensor durable. */
bool check_all(struct t_place *p, bool after_death, bool all)
{
    int status;

    fflush(NULL);
    pid_t pid = fork();

    if (pid == 0) {
        struct check *c = calloc(1, sizeof(*c));

        if (!c || !(c->bytes = malloc(T_PAYLOAD_MAX)))
            torture_fail("no memory");
        c->place = p;
        c->counts = p->oracle->counts;
        c->after_death = after_death;
        c->all_blocks = !after_death;
        c->all = all;
        check_run(c);
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        torture_fail("fork: %s", strerror(errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == CLIENT_GONE)
        return false;
    if (status != 0)
        exit(EXIT_FAILURE); /* it has said why */
    return true;
}
