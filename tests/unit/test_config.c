/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration: every mistake an admin can make, the example in docs/, defaults, diff, merge, printing, mutation. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/config.h"
#include "include/base/units.h"

#ifndef SPILLWAY_SOURCE_DIR
#define SPILLWAY_SOURCE_DIR "."
#endif

static const char *const policies[] = {"lru", "s3-fifo", "arc", "chain", "adaptive", "plan", NULL};

/* A machine of our own: three users, one group. */
static int fake_user_find(const char *name, uint32_t *ret_uid)
{
    static const char *const names[] = {"root", "alice", "bob", "nobody"};
    static const uint32_t ids[] = {0, 1001, 1002, 65534};

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(name, names[i]) == 0) {
            *ret_uid = ids[i];
            return 0;
        }
    return -ENOENT;
}

static int fake_group_find(const char *name, uint32_t *ret_gid)
{
    if (strcmp(name, "users") != 0)
        return -ENOENT;
    *ret_gid = 100;
    return 0;
}

static const struct config_env env = {
    .uid = 990,
    .memory_bytes = 64 * GIB,
    .nodes = 3,
    .policy_names = policies,
    .user_find = fake_user_find,
    .group_find = fake_group_find,
};

static struct config_errors errors;
static char conf_path[] = "/tmp/spillway-test-config-XXXXXX";

static void conf_write(const char *text, size_t bytes)
{
    cleanup_close int fd = open(conf_path, O_WRONLY | O_CLOEXEC); /* O_TRUNC would make ext4 write it out each time */

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, bytes), (ssize_t)bytes);
    ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
}

static int load_bytes(const char *text, size_t bytes, struct spillway_config **ret_config)
{
    conf_write(text, bytes);
    return config_load(conf_path, &env, ret_config, &errors);
}

static struct spillway_config *load_ok(const char *text)
{
    struct spillway_config *c = NULL;
    int r = load_bytes(text, strlen(text), &c);

    ck_assert_msg(r == 0, "%s", errors.n ? errors.at[0].text : "no error told");
    ck_assert_uint_eq(errors.n, 0);
    return c;
}

/* Exactly one mistake, on this line, with this text in its message; and no config. */
static void load_bad(const char *text, size_t bytes, uint32_t line, const char *part)
{
    struct spillway_config *c = NULL;
    char where[128];

    ck_assert_msg(load_bytes(text, bytes, &c) == -EINVAL, "taken: %s", text);
    ck_assert_ptr_null(c);
    for (uint32_t i = 1; i < errors.n; i++)
        fprintf(stderr, "more: %s\n", errors.at[i].text);
    ck_assert_msg(errors.n == 1, "%u mistakes in: %s", errors.n, text);
    if (line)
        snprintf(where, sizeof(where), "%s:%u: ", conf_path, line);
    else
        snprintf(where, sizeof(where), "%s: ", conf_path);
    ck_assert_msg(strncmp(errors.at[0].text, where, strlen(where)) == 0, "'%s' is not %s", errors.at[0].text, where);
    ck_assert_msg(strstr(errors.at[0].text, part) != NULL, "'%s' lacks '%s'", errors.at[0].text, part);
    ck_assert_uint_eq(errors.at[0].line, line);
}

#define POOL "[pool p]\nusers = alice\n"
#define UUID(n) "GPU-8932f937-d72c-4106-c12f-20bd9faed9" n

static const struct {
    uint32_t line;
    const char *text, *part;
} mistakes[] = {
    /* keys and sections */
    {2, "[tier.dram]\nsise = 1 GiB\n", "unknown key 'sise' in [tier.dram]; did you mean 'size'?"},
    {2, "[tier.dram]\nlinger = 1 s\n", "it belongs in [pool NAME]"},
    {3, "[tier.dram]\nsize = 1 GiB\nsize = 2 GiB\n", "'size' was already set on line 2"},
    {3, "[tier.dram]\nsize = 1 GiB\n  size = 2 GiB\n", "indented"},
    {3, "[daemon]\nsocket = /run/a\n\t/b\n", "indented"},
    {1, "[tier.dam]\nsize = x\nfoo = bar\n", "unknown section [tier.dam]; did you mean 'tier.dram'?"},
    {2, "[daemon]\n[daemon]\n", "already given on line 1"},
    {3, POOL "[pool p]\nfoo = 1\n", "[pool p] was already given on line 1"},
    {1, "[pool]\nfoo = 1\n", "needs a name"},
    {1, "[daemon x]\n", "takes no name"},
    {1, "[pool a/b]\n", "is not a name"},
    {1, "[pool two words]\n", "is not a name"},
    {1, "[pool ../x]\n", "is not a name"},
    {1, "[class kw]\n", "did you mean 'kv'?"},
    {1, "[daemon\n", "ends in ']'"},
    {1, "[daemon] x\n", "after a section's heading"},
    {1, "size = 1\n", "before the first [section]"},
    {2, "[daemon]\nspin_us\n", "neither [section] nor key = value"},
    {2, "[daemon]\nspin_us ; = 3\n", "neither [section] nor key = value"},
    {2, "[daemon]\n= 3\n", "neither [section] nor key = value"},
    {2, "[daemon]\nspin_us =\n", "has no value"},
    {2, "[daemon]\nspin_us = ; 20\n", "has no value"},
    {2, "[daemon]\nsocket = \"/run/x\"\n", "in quotes"},
    {2, "[daemon]\nsocket = /run/x # mine\n", "starts with ';'"},
    /* values */
    {2, "[tier.dram]\nsize = 12 GiBB\n",
     "'GiBB' is not a unit of size (those are B, KiB, MiB, GiB, TiB); did you mean 'GiB'?"},
    {2, "[tier.dram]\nsize = 12 GB\n", "did you mean 'GiB'?"},
    {2, "[tier.dram]\nsize = lots\n", "is not a size"},
    {2, "[tier.dram]\nsize = -1\n", "is not a size"},
    {2, "[tier.dram]\nsize = 99999999 TiB\n", "too large"},
    {2, "[tier.dram]\nsize = 120 %\n", "more than 100 %"},
    {2, "[tier.dram]\nsize = auto\n", "not 'auto'"},
    {2, "[tier.dram]\nsize = 32 MiB\n", "the least that works is 64 MiB"},
    {2, "[tier.dram]\nsize = 65 GiB\n", "this machine has only 64 GiB"},
    {2, "[tier.cxl]\nsize = 1 MiB\n", "the least that works"},
    {2, "[tier.dram]\nnodes = 0,x\n", "list of nodes"},
    {2, "[tier.dram]\nnodes = 3-1\n", "list of nodes"},
    {2, "[tier.dram]\nnodes = 64\n", "list of nodes"},
    {2, "[tier.dram]\nnodes = ,\n", "names no node"},
    {2, "[tier.dram]\nnodes = 0,2\n", "no memory node 2"},
    {4, "[tier.dram]\nnodes = 0\n[tier.cxl]\nnodes = 0-1\n", "node 0 is also in [tier.dram]"},
    {2, "[tier.dram]\nhugepages = requires\n", "not one of try, require, never; did you mean 'require'?"},
    {2, "[tier.dram]\npretouch = true\n", "not one of no, yes"},
    {2, "[tier.dram]\nclean_percent = 51\n", "not within 0 and 50"},
    {2, "[daemon]\nengines = many\n", "is not a number or 'auto'"},
    {2, "[daemon]\nengines = 65\n", "not within 0 and 64"},
    {2, "[daemon]\nspin_us = 1.5\n", "not a whole number"},
    {2, "[daemon]\nspin_us = 99999999999999999999\n", "not within 0 and 1000000"},
    {2, "[daemon]\nspin_us = 20us\n", "not a number"},
    {2, "[daemon]\nlog_level = inof\n", "did you mean 'info'?"},
    {2, "[daemon]\nsocket = run/x\n", "not an absolute path"},
    {3, "[daemon]\nmax_sessions = 10\nuid_sessions = 20\n", "max_sessions is 10"},
    {2, "[daemon]\nuid_requests_percent = 49\n", "uid_requests_percent: '49' is not within 50 and 100"},
    {2, "[daemon]\nuid_descriptors = 15\n", "not within 16 and 1048576"},
    {3, "[pool p]\nusers = root\nuid_leases_percent = 0\n", "not within 1 and 100"},
    {3, "[pool p]\nusers = root\nuid_lease_percent = 20\n", "did you mean 'uid_leases_percent'?"},
    {2, "[class kv]\npolicy = s3fifo\n",
     "not one of lru, s3-fifo, arc, chain, adaptive, plan; did you mean 's3-fifo'?"},
    {2, "[class kv]\ndurability = cached\n", "did you mean 'cache'?"},
    {2, "[class kv]\nweight = 0\n", "not within 1 and 1000"},
    /* pools */
    {1, "[pool p]\ndram = 50 %\n", "lets nobody in"},
    {1, "[pool p]\nusers = none\n", "lets nobody in"},
    {2, "[pool p]\nusers = carol\n", "there is no user 'carol'"},
    {2, "[pool p]\ngroups = wheel\n", "there is no group 'wheel'"},
    {2, "[pool p]\nusers = nobody\n", "may not open a pool"},
    {2, "[pool p]\nusers = 4294967295\n", "may not open a pool"},
    {2, "[pool p]\nusers = 4294967296\n", "not a user's name or number"},
    {2, "[pool p]\nusers = alice, any\n", "stands alone"},
    {2, "[pool p]\ngroups = any\n", "only in 'users'"},
    {3, "[pool p]\nusers = alice, bob\ntrusted = yes\n", "more than one user"},
    {3, "[pool p]\nusers = any\ntrusted = yes\n", "everybody"},
    {4, "[pool p]\nusers = alice\ngroups = users\ntrusted = yes\n", "a group"},
    {3, POOL "linger = 5m\n", "is not a unit of time"},
    {3, POOL "linger = 30\n", "needs a unit"},
    {3, POOL "gpu = 10 %\n", "a number of bytes"},
    {3, POOL "gpus = 0\n", "'0' is not a GPU as nvidia-smi -L prints it (GPU-..., MIG-...), and not 'all' or 'none'"},
    {3, POOL "gpus = all, none\n", "'all' is not a GPU"},
    {3, POOL "gpus = ,\n", "names no GPU"},
    {2, "[daemon]\ngpus = all\n", "and not 'any' or 'none'"},
    {2, "[daemon]\ngpus = " UUID("0") "\n", "is not a GPU"},
    {2, "[daemon]\ngpus = " UUID("012") "\n", "is not a GPU"},
    {2, "[daemon]\ngpus = 8932f937-d72c-4106-c12f-20bd9faed9f6\n", "is not a GPU"},
    {5, "[daemon]\ngpus = " UUID("01") "\n" POOL "gpus = " UUID("01") " " UUID("02") "\n",
     UUID("02") " is not in gpus of [daemon]"},
    {5, "[daemon]\ngpus = none\n" POOL "gpus = " UUID("01") "\n", "is not in gpus of [daemon]"},
    {3, POOL "cxl = 10 %\n", "there is no cxl tier"},
    {3, POOL "nvme = 10 %\n", "there is no device"},
    {3, POOL "weight = 0\n", "not within 1 and 1000"},
    {3, POOL "write_budget = 1 GiB\n", "not a rate such as '50 MiB/s' or '4 TiB/day'"},
    {3, POOL "write_budget = 1 GB/s\n", "did you mean 'GiB'?"},
    {3, POOL "write_budget = GiB/s\n", "is not a size"},
    {3, POOL "write_budget = 1 GiB/dya\n",
     "'dya' is not a time that a rate has (those are s, min, h, day); did you mean 'day'?"},
    {3, POOL "write_budget = 1 GiB/\n", "is not a time that a rate has"},
    {3, POOL "write_budget = 1 GiB/s/s\n", "is not a time that a rate has"},
    {3, POOL "write_budget = 0/s\n", "'none' is without a limit"},
    {3, POOL "write_budget = 1 GiB/s\n", "there is no device"},
    {3, POOL "session_bytes = 17 GiB\n", "17 GiB for one connection, but [pool p] has only 16 GiB of memory"},
    {4, POOL "dram = 1 GiB\nsession_bytes = 2 GiB\n", "[pool p] has only 1 GiB"},
    {4, "[tier.dram]\nsize = 40 GiB\n[tier.cxl]\nsize = 30 GiB\n", "together have more than this machine's 64 GiB"},
    {2, "[daemon]\nstate_dir = /var/lib/spillway\n", "unknown key 'state_dir'"},
    {3, POOL "dram = 0\n", "less than 16 MiB"},
    {3, POOL "dram = 17 GiB\n", "the tier has 16 GiB"},
    {6, POOL "dram = 60 %\n[pool q]\nusers = bob\ndram = 50 %\n", "have 110 % of the tier"},
    {6, POOL "dram = 60 %\n[pool q]\nusers = bob\ndram = 8 GiB\n", "have 17.59 GiB, but the tier has 16 GiB"},
    {4, POOL "dram = 100 %\n[pool q]\nusers = bob\n", "[pool q] gets less than"},
    {3, POOL "dram = 16777215 TiB\n[pool q]\nusers = bob\ndram = 16777215 TiB\n", "the tier has"},
    /* devices */
    {1, "[device a]\nweight = 10\n", "[device a] has no path"},
    {2, "[device a]\npath = dev/null\n", "not an absolute path"},
    {4, "[device a]\npath = /no/x\n[device b]\npath = /no/x\n", "already used by [device a] on line 1"},
    {4, "[device a]\npath = /dev/null\n[device b]\npath = /dev/../dev/null\n", "already used by [device a]"},
    {3, "[device a]\npath = /no/x\ncapacity = 1 MiB\n", "smaller than 64 MiB"},
    {3, "[device a]\npath = /no/x\nwrite_budget = 1001\n", "not within 0.001 and 1000"},
    {3, "[device a]\npath = /no/x\nwrite_budget = 0\n", "not within 0.001 and 1000"}, /* none: no limit */
    {3, "[device a]\npath = /no/x\nwrite_budget = lots\n", "not a number or 'none'"},
    {3, "[device a]\npath = /no/x\nwrite_bugdet = 1\n", "did you mean 'write_budget'?"},
    {3, "[device a]\npath = /no/x\nweight = 1001\n", "not within 1 and 1000"},
    {6, "[device a]\npath = /no/x\ncapacity = 1 GiB\n" POOL "nvme = 2 GiB\n", "the tier has 1 GiB"},
};

START_TEST(one_mistake)
{
    load_bad(mistakes[_i].text, strlen(mistakes[_i].text), mistakes[_i].line, mistakes[_i].part);
}
END_TEST

/* What Debian's inih would cut, at its limits and ours. */
START_TEST(long_lines)
{
    static char text[16384];
    struct spillway_config *c;
    size_t n;

    /* a value of 255 characters is kept whole; 256 and 300 are refused, not cut */
    for (int len = 254; len <= 300; len += len < 256 ? 1 : 44) {
        n = (size_t)snprintf(text, sizeof(text), "[device d]\npath = /%0*d\n[daemon]\nspin_us = 7\n", len - 1, 0);
        if (len <= 255) {
            c = load_ok(text);
            ck_assert_uint_eq(strlen(c->devices[0].path), len);
            ck_assert_uint_eq(c->daemon.spin_us, 7);
            config_free(c);
        } else {
            load_bad(text, n, 2, "more than 255 characters");
        }
    }
    /* a line of 4096 reaches us whole; one of 4097 is refused */
    n = (size_t)snprintf(text, sizeof(text), "[daemon]\nspin_us = 7 ;%*s\nworkers = 3\n", 4096 - 13, "x");
    c = load_ok(text);
    ck_assert_uint_eq(c->daemon.spin_us, 7);
    ck_assert_uint_eq(c->daemon.workers, 3);
    config_free(c);
    n = (size_t)snprintf(text, sizeof(text), "[daemon]\nspin_us = 7 ;%*s\nworkers = 3\n", 4097 - 13, "x");
    load_bad(text, n, 2, "a line of 4097 characters; at most 4096");
    /* names of 63 characters, which inih would cut at 49 */
    snprintf(text, sizeof(text), "[pool a%062d]\nusers = alice\n[pool a%061d1]\nusers = bob\n", 0, 0);
    c = load_ok(text);
    ck_assert_uint_eq(c->n_pools, 2);
    ck_assert_uint_eq(strlen(c->pools[0].section.name), 63);
    config_free(c);
    n = (size_t)snprintf(text, sizeof(text), "[pool a%063d]\nusers = alice\n", 0);
    load_bad(text, n, 1, "has 64 characters; at most 63");
}
END_TEST

START_TEST(odd_bytes)
{
    static const char nul[] = "[daemon]\nspin_us = 2\0000\n";
    static const char control[] = "[daemon]\nspin\x1b[31m_us = 2\n";
    struct spillway_config *c;

    load_bad(nul, sizeof(nul) - 1, 2, "NUL");
    load_bad(control, sizeof(control) - 1, 2, "spin?[31m_us"); /* nothing that a terminal would obey */
    c = load_ok("\xEF\xBB\xBF[daemon]\r\nspin_us = 7\r\n\r\n   \r\n  ; indented comment\r\nworkers: 2 ; why\r\n# end");
    ck_assert_uint_eq(c->daemon.spin_us, 7);
    ck_assert_uint_eq(c->daemon.workers, 2);
    config_free(c);
    config_free(load_ok(""));
}
END_TEST

START_TEST(files)
{
    static char large[CONFIG_FILE_BYTES_MAX + 2];
    struct spillway_config *c = NULL;

    ck_assert_int_eq(config_load("/no/such/file", &env, &c, &errors), -ENOENT);
    ck_assert_str_eq(errors.at[0].text, "/no/such/file: cannot read: No such file or directory");
    ck_assert_int_eq(config_load("/", &env, &c, &errors), -EISDIR);
    memset(large, '\n', sizeof(large));
    load_bad(large, sizeof(large) - 1, 0, "larger than 1 MiB");
    ck_assert_ptr_null(c);
}
END_TEST

START_TEST(all_mistakes_are_told)
{
    char text[4096] = "[daemon]\n";
    struct spillway_config *c = NULL;
    static const char three[] =
        "[daemon]\nspinn_us = 1\n[tier.dram]\nsize = 12 GiBB\n[pool p]\nusers = any\ntrusted = yes\n";

    ck_assert_int_eq(load_bytes(three, strlen(three), &c), -EINVAL);
    ck_assert_uint_eq(errors.n, 3);
    ck_assert_uint_eq(errors.at[0].line, 2);
    ck_assert_uint_eq(errors.at[1].line, 4);
    ck_assert_uint_eq(errors.at[2].line, 7);
    for (int i = 0; i < 25; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "wrong%d = 1\n", i);
    ck_assert_int_eq(load_bytes(text, strlen(text), &c), -EINVAL);
    ck_assert_uint_eq(errors.n, CONFIG_ERRORS_MAX);
    ck_assert_uint_eq(errors.n_left_out, 5);
    ck_assert_ptr_null(c);
}
END_TEST

START_TEST(defaults)
{
    struct config_env user = env;
    struct spillway_config *c = NULL;

    ck_assert_int_eq(config_load(NULL, &env, &c, &errors), 0);
    ck_assert_str_eq(c->daemon.socket, "/run/spillway/spillwayd.sock");
    ck_assert_uint_eq(c->dram.size_bytes, 16 * GIB);
    ck_assert_uint_eq(c->cxl.size_bytes, 0);
    ck_assert_uint_eq(c->n_pools, 1);
    ck_assert_str_eq(c->pools[0].section.name, "default");
    ck_assert(c->pools[0].is_trusted);
    ck_assert_uint_eq(c->pools[0].users.ids[0], 990);
    ck_assert_uint_eq(config_pool_budget_bytes(c, 0, CONFIG_TIER_DRAM, c->dram.size_bytes), 16 * GIB);
    ck_assert_uint_eq(config_pool_budget_bytes(c, 0, CONFIG_TIER_NVME, TIB), TIB);
    ck_assert_str_eq(c->classes[CONFIG_CLASS_KV].policy, "chain");
    ck_assert_str_eq(c->classes[CONFIG_CLASS_GENERIC].policy, "adaptive");
    ck_assert_uint_eq(c->classes[CONFIG_CLASS_OPTIMIZER].durability, CONFIG_DURABILITY_SCRATCH);
    config_free(c);

    user.user_mode = true;
    user.uid = 1001;
    user.runtime_dir = "/run/user/1001";
    ck_assert_int_eq(config_load(NULL, &user, &c, &errors), 0);
    ck_assert_str_eq(c->daemon.socket, "/run/user/1001/spillway/spillwayd.sock");
    ck_assert_uint_eq(c->dram.size_bytes, 256 * MIB);
    config_free(c);

    conf_write("[pool mine]\n", 12); /* with --user, a pool is the user's own */
    ck_assert_int_eq(config_load(conf_path, &user, &c, &errors), 0);
    ck_assert(c->pools[0].is_trusted);
    ck_assert_uint_eq(c->pools[0].users.ids[0], 1001);
    config_free(c);

    config_env_init(&user, false); /* this machine, whatever it is */
    ck_assert_uint_gt(user.memory_bytes, 0);
    ck_assert_uint_eq(user.uid, geteuid());

    user.user_mode = true;
    user.uid = 4000000001; /* who has no folder in /run/user */
    user.runtime_dir = NULL;
    ck_assert_int_eq(config_load(NULL, &user, &c, &errors), 0);
    ck_assert_str_eq(c->daemon.socket, "/tmp/spillway-4000000001/spillwayd.sock");
    config_free(c);
}
END_TEST

START_TEST(values)
{
    struct spillway_config *c = load_ok("[tier.dram]\nsize = 8G\nnodes = 0-1\nhugepages = require\npretouch = no\n"
                                        "[device d]\npath = /no/d\ncapacity = 1.5 TiB\nwrite_budget = 0.8\nweight = 7\n"
                                        "sparse = yes\n"
                                        "[pool a]\nusers = alice, 1001 alice\ndram = 12.5 %\nlinger = 250ms\n"
                                        "[pool b]\nusers = alice, bob\ngroups = users\ndram = 1 GiB\n"
                                        "[pool c]\nusers = any\nlinger = 0\nwrite_budget = 1.5 TiB/d\n"
                                        "[pool d]\nusers = bob\ntrusted = no\nwrite_budget = 50 MiB / s\n"
                                        "[pool e]\nusers = bob\ntrusted = yes\nwrite_budget = none\n");

    ck_assert_uint_eq(c->dram.nodes, 3);
    ck_assert_uint_eq(c->dram.hugepages, CONFIG_HUGEPAGES_REQUIRE);
    ck_assert(!c->dram.pretouch);
    ck_assert_uint_eq(c->devices[0].capacity_bytes, 1536 * GIB);
    ck_assert_uint_eq(c->devices[0].write_budget_milli, 800);
    ck_assert_uint_eq(c->devices[0].weight, 7);
    ck_assert(c->devices[0].sparse);
    ck_assert_uint_eq(c->pools[0].write_budget.bytes, 0);
    ck_assert_uint_eq(c->pools[2].write_budget.bytes, 1536 * GIB);
    ck_assert_uint_eq(c->pools[2].write_budget.period_ns, UINT64_C(86400000000000));
    ck_assert_uint_eq(c->pools[3].write_budget.bytes, 50 * MIB);
    ck_assert_uint_eq(c->pools[3].write_budget.period_ns, 1000000000);
    ck_assert_uint_eq(c->pools[4].write_budget.bytes, 0);
    ck_assert_uint_eq(c->pools[0].users.n, 1); /* one person, named three times */
    ck_assert(c->pools[0].is_trusted);
    ck_assert_uint_eq(c->pools[0].linger_ns, 250000000);
    ck_assert(!c->pools[1].is_trusted);
    ck_assert_uint_eq(c->pools[1].users.n, 2);
    ck_assert_uint_eq(c->pools[1].groups.ids[0], 100);
    ck_assert(c->pools[2].users.any && !c->pools[2].is_trusted);
    ck_assert(!c->pools[3].is_trusted);
    ck_assert(c->pools[4].is_trusted);
    ck_assert_uint_eq(config_pool_budget_bytes(c, 0, CONFIG_TIER_DRAM, 8 * GIB), GIB);
    ck_assert_uint_eq(config_pool_budget_bytes(c, 1, CONFIG_TIER_DRAM, 8 * GIB), GIB);
    for (uint32_t i = 2; i < 5; i++) /* 6 GiB are left for three */
        ck_assert_uint_eq(config_pool_budget_bytes(c, i, CONFIG_TIER_DRAM, 8 * GIB), 2 * GIB);
    ck_assert_uint_eq(config_pool_budget_bytes(c, 1, CONFIG_TIER_DRAM, 512 * MIB),
                      512 * MIB); /* a smaller tier came up */
    config_free(c);
}
END_TEST

static const uint8_t *uuid(uint8_t last)
{
    static uint8_t bytes[16] = {0x89, 0x32, 0xf9, 0x37, 0xd7, 0x2c, 0x41, 0x06,
                                0xc1, 0x2f, 0x20, 0xbd, 0x9f, 0xae, 0xd9};

    bytes[15] = last;
    return bytes;
}

START_TEST(gpus)
{
    cleanup_config struct spillway_config *c = load_ok(POOL "[pool q]\nusers = bob\ngpus = none\n");
    cleanup_config struct spillway_config *list =
        load_ok("[daemon]\ngpus = " UUID("01") ",\tMIG-8932F937-d72c-4106-c12f-20bd9faed902 " UUID(
            "01") "\n" POOL "gpus = " UUID("02") "\n[pool q]\nusers = bob\n");
    static struct config_changes changes;

    ck_assert(config_gpus_have(&c->daemon.gpus, uuid(1)) && config_gpus_have(&c->pools[0].gpus, uuid(1)));
    ck_assert(!config_gpus_have(&c->pools[1].gpus, uuid(1)));
    ck_assert_uint_eq(list->daemon.gpus.n, 2);
    ck_assert(config_gpus_have(&list->daemon.gpus, uuid(1)) && config_gpus_have(&list->daemon.gpus, uuid(2)));
    ck_assert(!list->daemon.gpus.at[0].is_mig && list->daemon.gpus.at[1].is_mig);
    ck_assert(!config_gpus_have(&list->daemon.gpus, uuid(3)));
    ck_assert(!config_gpus_have(&list->pools[0].gpus, uuid(1)) && config_gpus_have(&list->pools[0].gpus, uuid(2)));
    ck_assert(config_gpus_have(&list->pools[1].gpus, uuid(3))); /* all that are served */
    config_diff(c, list, &changes);
    ck_assert_uint_eq(changes.n, 3);
    ck_assert_uint_eq(changes.n_restart, 0);
    ck_assert_str_eq(changes.at[0].old_value, "any");
    ck_assert_str_eq(changes.at[0].new_value, UUID("01") ", MIG-8932f937-d72c-4106-c12f-20bd9faed902");
    ck_assert_str_eq(changes.at[1].old_value, "all");
    ck_assert_str_eq(changes.at[2].old_value, "none");
}
END_TEST

/* As many as there are places for: more than another value may have. */
START_TEST(many_gpus)
{
    char text[GPUS_MAX * 48] = "[daemon]\ngpus = ", printed_text[sizeof(text)];
    static struct config_changes changes;

    for (int i = 0; i < GPUS_MAX; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%sGPU-8932f937-d72c-4106-c12f-20bd9faed9%02x",
                 i ? ", " : "", i);
    snprintf(printed_text, sizeof(printed_text), "%s", text + strlen("[daemon]\ngpus = "));
    snprintf(text + strlen(text), sizeof(text) - strlen(text), "\n");
    cleanup_config struct spillway_config *c = load_ok(text), *none = load_ok("");
    ck_assert_uint_eq(c->daemon.gpus.n, GPUS_MAX);
    config_diff(none, c, &changes);
    ck_assert_str_eq(changes.at[0].new_value, printed_text);
    snprintf(text + strlen(text) - 1, sizeof(text) - strlen(text), " GPU-8932f937-d72c-4106-c12f-20bd9faed9ff\n");
    load_bad(text, strlen(text), 2, "more than 2687 characters");
    char *comma; /* shorter, but as many */
    while ((comma = strstr(text, ", ")) != NULL)
        memmove(comma, comma + 1, strlen(comma));
    load_bad(text, strlen(text), 2, "more than 64 GPUs");
}
END_TEST

static char *example_read(size_t *ret_bytes)
{
    cleanup_fclose FILE *f = fopen(SPILLWAY_SOURCE_DIR "/docs/spillwayd.conf", "re");
    char *text = calloc(1, 65536);

    ck_assert_msg(f != NULL, "run in the source folder, or define SPILLWAY_SOURCE_DIR");
    ck_assert_ptr_nonnull(text);
    *ret_bytes = fread(text, 1, 65535, f);
    ck_assert_uint_gt(*ret_bytes, 1000);
    return text;
}

START_TEST(example)
{
    size_t bytes;
    cleanup_free char *text = example_read(&bytes);
    cleanup_config struct spillway_config *c = load_ok(text), *none = NULL;
    static struct config_changes changes;

    ck_assert_uint_eq(c->n_pools, 2);
    ck_assert_uint_eq(c->n_devices, 0);
    ck_assert_str_eq(c->pools[0].section.name, "chat");
    ck_assert(c->pools[0].is_trusted && !c->pools[1].is_trusted);
    ck_assert_uint_eq(c->pools[0].linger_ns, 600000000000);
    ck_assert_uint_eq(config_pool_budget_bytes(c, 0, CONFIG_TIER_DRAM, 100 * GIB), 70 * GIB);
    ck_assert_uint_eq(config_pool_budget_bytes(c, 1, CONFIG_TIER_DRAM, 100 * GIB), 30 * GIB);
    ck_assert_uint_eq(c->pools[1].session_bytes, 64 * MIB);
    ck_assert_uint_eq(c->pools[1].weight, 50);

    /* every key that is commented out shows its default: with all of them set, nothing changes */
    unsigned n_shown = 0;
    for (char *p = text; p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
        if (*p == ';' && p[1] >= 'a' && p[1] <= 'z') {
            memmove(p, p + 1, strlen(p));
            n_shown++;
        }
    ck_assert_uint_ge(n_shown, 40);
    cleanup_config struct spillway_config *shown = load_ok(text);
    config_diff(c, shown, &changes);
    ck_assert_msg(changes.n == 0, "[%s] %s: %s is not %s", changes.at[0].section, changes.at[0].key,
                  changes.at[0].new_value, changes.at[0].old_value);
    ck_assert_int_eq(config_load(NULL, &env, &none, &errors), 0);
    for (unsigned i = 0; i < CONFIG_CLASSES; i++)
        ck_assert_str_eq(shown->classes[i].policy, none->classes[i].policy);

    /* the device that it shows as an example, too */
    for (char *p = strstr(text, "; [device fast0]"); p && *p == ';'; p = strchr(p, '\n') + 1)
        memmove(p, p + 2, strlen(p + 1));
    cleanup_config struct spillway_config *device = load_ok(text);
    ck_assert_uint_eq(device->n_devices, 1);
    ck_assert_uint_eq(device->devices[0].write_budget_milli, 800);
}
END_TEST

static bool changed(const struct config_changes *changes, const char *section, const char *key, bool needs_restart)
{
    for (uint32_t i = 0; i < changes->n; i++)
        if (strcmp(changes->at[i].section, section) == 0 && strcmp(changes->at[i].key, key) == 0)
            return changes->at[i].needs_restart == needs_restart;
    return false;
}

START_TEST(diff_and_merge)
{
    static struct config_changes changes;
    cleanup_config struct spillway_config *old =
        load_ok("[tier.dram]\nsize = 1 GiB\n[pool a]\nusers = alice\ndram = 512 MiB\n[pool b]\nusers = alice, bob\n");
    cleanup_config struct spillway_config *wanted = load_ok(
        "[daemon]\nlog_level = debug\nengines = 2\n[tier.dram]\nsize = 1024 MiB\n[pool a]\nusers = bob\ndram = 25 %\n"
        "[pool b]\nusers = bob, 7\nlinger = 1 min\n[pool new]\nusers = bob\n[class kv]\npolicy = arc\nweight = 3\n");
    cleanup_config struct spillway_config *run = NULL, *more = NULL;

    config_diff(old, wanted, &changes);
    ck_assert_uint_eq(changes.n, 9);
    ck_assert(changed(&changes, "daemon", "log_level", false));
    ck_assert(changed(&changes, "daemon", "engines", true));
    ck_assert(changed(&changes, "pool a", "users", true)); /* trusted: its memory is mapped by the old user */
    ck_assert(changed(&changes, "pool a", "dram", false));
    ck_assert(changed(&changes, "pool b", "users", false));
    ck_assert(changed(&changes, "pool b", "linger", false));
    ck_assert(changed(&changes, "pool new", "", true));
    ck_assert(changed(&changes, "class kv", "policy", true));
    ck_assert(changed(&changes, "class kv", "weight", false));
    ck_assert_uint_eq(changes.n_restart, 4);

    ck_assert_int_eq(config_merge(old, wanted, &env, &run, &errors), 0);
    ck_assert_uint_eq(run->daemon.log_level, CONFIG_LOG_DEBUG);
    ck_assert_uint_eq(run->daemon.engines, 0);
    ck_assert_uint_eq(run->pools[0].users.ids[0], 1001);
    ck_assert_uint_eq(run->pools[1].users.ids[1], 7);
    ck_assert_uint_eq(config_pool_budget_bytes(run, 0, CONFIG_TIER_DRAM, GIB), 256 * MIB);
    ck_assert_uint_eq(run->n_pools, 2);
    ck_assert_str_eq(run->classes[CONFIG_CLASS_KV].policy, "chain");
    ck_assert_uint_eq(run->classes[CONFIG_CLASS_KV].weight, 3);
    config_diff(run, wanted, &changes); /* what is left is what needs a restart */
    ck_assert_uint_eq(changes.n, 4);
    ck_assert_uint_eq(changes.n_restart, 4);

    /* a budget that fits only the size after a restart */
    more = load_ok("[tier.dram]\nsize = 4 GiB\n[pool a]\nusers = alice\ndram = 3 GiB\n[pool b]\nusers = alice, bob\n");
    struct spillway_config *mixed = NULL;
    ck_assert_int_eq(config_merge(old, more, &env, &mixed, &errors), -EINVAL);
    ck_assert_ptr_null(mixed);
    ck_assert_ptr_nonnull(strstr(errors.at[0].text, ":5: dram:"));
}
END_TEST

/* What the engines are told on a reload, and what waits for a restart. */
START_TEST(live_numbers)
{
    static struct config_changes changes;
    cleanup_config struct spillway_config *old = load_ok("[device d]\npath = /no/d\n[pool a]\nusers = alice\n");
    cleanup_config struct spillway_config *wanted =
        load_ok("[tier.dram]\nhugepages = require\npretouch = no\nclean_percent = 5\n"
                "[device d]\npath = /no/d\nweight = 7\nwrite_budget = 0.5\n"
                "[pool a]\nusers = alice\nweight = 300\nwrite_budget = 4 TiB/day\nsession_bytes = 1 GiB\n"
                "[class kv]\nweight = 3\n[class weights]\ndurability = scratch\n");
    cleanup_config struct spillway_config *run = NULL;

    config_diff(old, wanted, &changes);
    ck_assert_uint_eq(changes.n, 10);
    ck_assert(changed(&changes, "tier.dram", "hugepages", true));
    ck_assert(changed(&changes, "tier.dram", "pretouch", true));
    ck_assert(changed(&changes, "tier.dram", "clean_percent", false));
    ck_assert(changed(&changes, "device d", "weight", false));
    ck_assert(changed(&changes, "device d", "write_budget", false));
    ck_assert(changed(&changes, "pool a", "weight", false));
    ck_assert(changed(&changes, "pool a", "write_budget", false));
    ck_assert(changed(&changes, "pool a", "session_bytes", false));
    ck_assert(changed(&changes, "class weights", "durability", true));
    for (uint32_t i = 0; i < changes.n; i++)
        if (strcmp(changes.at[i].section, "pool a") == 0 && strcmp(changes.at[i].key, "write_budget") == 0)
            ck_assert_str_eq(changes.at[i].new_value, "4 TiB/day");

    ck_assert_int_eq(config_merge(old, wanted, &env, &run, &errors), 0);
    ck_assert_uint_eq(run->dram.hugepages, CONFIG_HUGEPAGES_TRY);
    ck_assert(run->dram.pretouch);
    ck_assert_uint_eq(run->dram.clean_percent, 5);
    ck_assert_uint_eq(run->devices[0].weight, 7);
    ck_assert_uint_eq(run->devices[0].write_budget_milli, 500);
    ck_assert_uint_eq(run->pools[0].weight, 300);
    ck_assert_uint_eq(run->pools[0].write_budget.bytes, 4 * TIB);
    ck_assert_uint_eq(run->pools[0].session_bytes, GIB);
    ck_assert_uint_eq(run->classes[CONFIG_CLASS_KV].weight, 3);
    ck_assert_uint_eq(run->classes[CONFIG_CLASS_WEIGHTS].durability, CONFIG_DURABILITY_CACHE);
}
END_TEST

/* The config file that says what a printed config shows. */
static char *text_of_json(struct json_object *root)
{
    struct json_object *sections = NULL;
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);

    ck_assert(json_object_object_get_ex(root, "sections", &sections));
    json_object_object_foreach(sections, title, keys)
    {
        fprintf(out, "[%s]\n", title);
        json_object_object_foreach(keys, key, entry)
        {
            const char *value = json_object_get_string(json_object_object_get(entry, "value"));

            if (*value)
                fprintf(out, "%s = %s\n", key, value);
        }
    }
    fclose(out);
    return text;
}

static struct json_object *print(const struct spillway_config *c, const struct config_changes *pending)
{
    size_t bytes = 0;
    char *text = config_print_json(c, pending, &bytes);

    ck_assert_ptr_nonnull(text);
    ck_assert_uint_eq(strlen(text), bytes);
    struct json_object *root = json_tokener_parse(text);
    ck_assert_ptr_nonnull(root);
    free(text);
    return root;
}

static const char *shown(struct json_object *root, const char *section, const char *key, const char *member)
{
    const char *const road[] = {"sections", section, key, member};
    struct json_object *o = root;

    for (size_t i = 0; i < ARRAY_LEN(road); i++)
        if (!json_object_object_get_ex(o, road[i], &o))
            return NULL;
    return json_object_get_string(o);
}

START_TEST(printed)
{
    cleanup_config struct spillway_config *c = load_ok("[tier.dram]\nsize = 1.5 GiB\n[device d]\npath = /no/d\n"
                                                       "[pool a]\nusers = alice\nwrite_budget = 10 GiB/h\n");
    cleanup_config struct spillway_config *again = NULL;
    struct json_object *root = print(c, NULL);
    static struct config_changes changes;

    ck_assert_str_eq(shown(root, "tier.dram", "size", "value"), "1536 MiB");
    ck_assert_ptr_nonnull(strstr(shown(root, "tier.dram", "size", "from"), ":2"));
    ck_assert_str_eq(shown(root, "tier.dram", "size", "reloads"), "false");
    ck_assert_str_eq(shown(root, "tier.dram", "nodes", "from"), "default");
    ck_assert_str_eq(shown(root, "pool a", "write_budget", "value"), "10 GiB/h");
    ck_assert_str_eq(shown(root, "pool a", "write_budget", "reloads"), "true");
    ck_assert_ptr_null(shown(root, "tier.dram", "size", "after_restart"));
    /* what it shows is a config that means the same */
    cleanup_free char *text = text_of_json(root);
    again = load_ok(text);
    config_diff(c, again, &changes);
    ck_assert_msg(changes.n == 0, "[%s] %s", changes.at[0].section, changes.at[0].key);
    json_object_put(root);
}
END_TEST

START_TEST(what_waits_for_a_restart_is_shown)
{
    cleanup_config struct spillway_config *old = load_ok("[pool a]\nusers = alice\n[pool b]\nusers = bob\n");
    cleanup_config struct spillway_config *wanted =
        load_ok("[daemon]\nworkers = 3\nspin_us = 5\n[pool a]\nusers = alice\n[pool new]\nusers = bob\n");
    static struct config_changes changes;

    config_diff(old, wanted, &changes);
    struct json_object *root = print(old, &changes), *added = NULL, *gone = NULL;
    ck_assert_str_eq(shown(root, "daemon", "workers", "value"), "auto");
    ck_assert_str_eq(shown(root, "daemon", "workers", "after_restart"), "3");
    ck_assert_ptr_null(shown(root, "daemon", "spin_us", "after_restart")); /* it came with the reload */
    ck_assert(json_object_object_get_ex(root, "added_after_restart", &added));
    ck_assert(json_object_object_get_ex(root, "gone_after_restart", &gone));
    ck_assert_str_eq(json_object_to_json_string_ext(added, JSON_C_TO_STRING_PLAIN), "[\"pool new\"]");
    ck_assert_str_eq(json_object_to_json_string_ext(gone, JSON_C_TO_STRING_PLAIN), "[\"pool b\"]");
    json_object_put(root);
}
END_TEST

/* 10,000 damaged copies of the example: no crash, and a failure always says why. */
START_TEST(mutations)
{
    static const char *const pieces[] = {"[",
                                         "]",
                                         "=",
                                         "\n",
                                         " ",
                                         ";",
                                         "%",
                                         "99999999999999999999",
                                         "any",
                                         ",",
                                         "-",
                                         "\t",
                                         "[pool x]\n",
                                         "users = alice, bob\n",
                                         "trusted = yes\n",
                                         "dram = 1e9\n",
                                         "\r",
                                         "."};
    size_t bytes;
    cleanup_free char *example_text = example_read(&bytes);
    cleanup_free char *text = malloc(bytes + 4096);
    uint64_t x = 0x9e3779b97f4a7c15;
    unsigned n_taken = 0;

    for (int round = 0; round < 10000; round++) {
        struct spillway_config *c = NULL;
        size_t n = bytes;

        memcpy(text, example_text, n);
        for (int edits = 1 + round % 6; edits > 0; edits--) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            size_t at = (x >> 16) % n;
            const char *piece = pieces[(x >> 40) % ARRAY_LEN(pieces)];

            if (x % 4 == 0) {
                text[at] = (char)(x >> 8);
            } else if (x % 4 == 1) {
                size_t gone = MIN((size_t)(x >> 8 & 63), n - at - 1);
                memmove(text + at, text + at + gone, n - at - gone);
                n -= gone;
            } else if (n + strlen(piece) < bytes + 4096) {
                if (x % 4 == 3 && text[at] == ';') /* uncover a key */
                    text[at] = '\n';
                memmove(text + at + strlen(piece), text + at, n - at);
                memcpy(text + at, piece, strlen(piece)); /* NOLINT: in the middle of a text */
                n += strlen(piece);
            }
        }
        int r = load_bytes(text, n, &c);
        if (r == 0) {
            ck_assert_uint_eq(errors.n, 0);
            n_taken++;
        } else {
            ck_assert_int_eq(r, -EINVAL);
            ck_assert_uint_gt(errors.n, 0);
            ck_assert_ptr_null(c);
        }
        config_free(c);
    }
    ck_assert_uint_gt(n_taken, 100); /* else it mutates too much to reach anything */
    ck_assert_uint_lt(n_taken, 9900);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("config");
    TCase *tc = tcase_create("config");
    int fd = mkstemp(conf_path);

    if (fd < 0)
        return EXIT_FAILURE;
    close(fd);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, one_mistake, 0, (int)ARRAY_LEN(mistakes));
    tcase_add_test(tc, long_lines);
    tcase_add_test(tc, odd_bytes);
    tcase_add_test(tc, files);
    tcase_add_test(tc, all_mistakes_are_told);
    tcase_add_test(tc, defaults);
    tcase_add_test(tc, values);
    tcase_add_test(tc, gpus);
    tcase_add_test(tc, many_gpus);
    tcase_add_test(tc, example);
    tcase_add_test(tc, diff_and_merge);
    tcase_add_test(tc, live_numbers);
    tcase_add_test(tc, printed);
    tcase_add_test(tc, what_waits_for_a_restart_is_shown);
    tcase_add_test(tc, mutations);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int n_failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    unlink(conf_path);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
