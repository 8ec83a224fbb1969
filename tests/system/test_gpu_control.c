/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an admin sees of GPUs, and decides about them: spillctl gpus, a helper that is started again, what a helper may do, and
 * a pool's budget. On the fake driver, or on a real GPU with SPILLWAY_TEST_GPU=1.
 */
#include <check.h>
#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "include/base/limits.h"
#include "tests/system/support/gpu.h"

#define LANE_BYTES (UINT64_C(2) * DEFAULT_GPU_SLOTS * DEFAULT_GPU_SLOT_BYTES)
#define WAIT_MS 20000
#define ITEM_BYTES (64 * KIB)

static struct gpu_rig rig;

/* What `spillctl gpus -o json` says of the first of n. */
static struct json_object *gpu_shown(size_t n)
{
    const char *const args[] = {"--socket", rig.daemon.socket, "gpus", "-o", "json", NULL};
    char text[16384];
    struct json_object *gpus;

    ck_assert_int_eq(daemon_run_program("spillctl", args, text, sizeof(text)), 0);
    struct json_object *root = json_tokener_parse(text);
    ck_assert_msg(json_object_object_get_ex(root, "gpus", &gpus), "%s", text);
    ck_assert_uint_eq(json_object_array_length(gpus), n);
    struct json_object *gpu = n ? json_object_get(json_object_array_get_idx(gpus, 0)) : NULL;
    json_object_put(root);
    return gpu;
}

static struct json_object *member(struct json_object *gpu, const char *name)
{
    struct json_object *o = NULL;

    ck_assert_msg(json_object_object_get_ex(gpu, name, &o), "%s is missing", name);
    return o;
}

static int64_t number(const char *name)
{
    struct json_object *gpu = gpu_shown(1);
    int64_t value = json_object_get_int64(member(gpu, name));

    json_object_put(gpu);
    return value;
}

static void wait_number(const char *name, int64_t want)
{
    int64_t have = number(name);

    for (int64_t end = clock_ms() + WAIT_MS; have != want && clock_ms() < end; have = number(name))
        sleep_ms(20);
    ck_assert_msg(have == want, "%s: %lld, not %lld", name, (long long)have, (long long)want);
}

static void check_text(const char *name, const char *want)
{
    struct json_object *gpu = gpu_shown(1), *o = member(gpu, name);

    ck_assert_msg(o && strstr(json_object_get_string(o), want), "%s: %s", name, json_object_get_string(o));
    json_object_put(gpu);
}

static void wait_text(const char *name, const char *want)
{
    for (int64_t end = clock_ms() + WAIT_MS;; sleep_ms(20)) {
        struct json_object *gpu = gpu_shown(1), *o = member(gpu, name);
        bool is_there = o && strstr(json_object_get_string(o), want);

        ck_assert_msg(is_there || clock_ms() < end, "%s: %s", name, json_object_get_string(o));
        json_object_put(gpu);
        if (is_there)
            return;
    }
}

static void uuid_print(char ret_text[static 64])
{
    const uint8_t *u = rig.uuid;

    snprintf(ret_text, 64, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2],
             u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

START_TEST(what_is_shown)
{
    const char *const args[] = {"--socket", rig.daemon.socket, "gpus", NULL};
    char text[8192], uuid[64];

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 128 * MIB, 0, ITEM_BYTES);
    uuid_print(uuid);
    check_text("uuid", uuid);
    check_text("state", "serving");
    ck_assert_int_eq(number("pid"), gpu_rig_helper(&rig, 0));
    ck_assert_int_eq(number("lanes"), 1);
    ck_assert_int_eq(number("restarts"), 0);
    wait_number("staging_bytes", LANE_BYTES);
    ck_assert_int_ge(number("memory_bytes"), GIB);
    ck_assert_int_eq(daemon_admin_number(rig.session, "pools", "pools/0/gpu/budget_bytes"), 512 * MIB);
    ck_assert_int_eq(daemon_admin_number(rig.session, "pools", "pools/0/gpu/used_bytes"), LANE_BYTES);
    ck_assert_int_eq(daemon_run_program("spillctl", args, text, sizeof(text)), 0);
    ck_assert_msg(strstr(text, uuid) && strstr(text, "serving"), "%s", text);
    spw_gpu_detach(rig.gpu);
    rig.gpu = NULL;
    ck_assert_int_eq(number("lanes"), 0);
    ck_assert_int_eq(daemon_admin_number(rig.session, "pools", "pools/0/gpu/used_bytes"), 0);
    gpu_rig_close(&rig);
}
END_TEST

START_TEST(a_helper_that_died_is_started_again)
{
    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 128 * MIB, 0, ITEM_BYTES);
    pid_t pid = (pid_t)number("pid");
    ck_assert_int_gt(pid, 1);
    kill(pid, SIGKILL);
    wait_number("restarts", 1);
    ck_assert_int_eq(number("lanes"), 0);
    ck_assert_int_eq(daemon_admin_number(rig.session, "pools", "pools/0/gpu/used_bytes"), 0);
    check_text("last_error", "ended");
    pid_t next = gpu_rig_helper(&rig, pid);
    gpu_rig_disconnect(&rig);
    gpu_rig_connect(&rig, ITEM_BYTES);
    check_text("state", "serving");
    ck_assert_int_eq(number("pid"), next);
    ck_assert_int_eq(number("lanes"), 1);
    ck_assert_int_eq(number("restarts"), 1);
    gpu_rig_close(&rig);
}
END_TEST

/* Even if this test, and so the daemon, is root's. */
START_TEST(a_helper_has_no_capabilities)
{
    char path[64], line[256];
    struct rlimit core;
    int n = 0;

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 128 * MIB, 0, ITEM_BYTES);
    snprintf(path, sizeof(path), "/proc/%lld/status", (long long)number("pid"));
    FILE *f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, "NoNewPrivs:", 11) == 0)
            ck_assert_int_eq(atoi(line + 11), 1);
        else if (strncmp(line, "Cap", 3) != 0 || (geteuid() != 0 && strncmp(line, "CapBnd", 6) == 0))
            continue;
        else
            ck_assert_msg(strtoull(line + 7, NULL, 16) == 0, "%s", line);
        n++;
    }
    fclose(f);
    ck_assert_int_eq(
        n, geteuid() == 0 ? 6 : 5); /* inheritable, permitted, effective, ambient; the bounding set is root's */
    ck_assert_int_eq(prlimit((pid_t)number("pid"), RLIMIT_CORE, NULL, &core), 0);
    ck_assert_uint_eq(core.rlim_max, 0);
    if (geteuid() != 0)
        puts("SKIP: not root: a helper has none anyway");
    gpu_rig_close(&rig);
}
END_TEST

/* What a client is told of its pool. */
static void check_stat(uint64_t budget_bytes, uint64_t used_bytes)
{
    struct spw_stat stat;

    SPW(spw_stat(rig.space, &stat));
    ck_assert_uint_eq(stat.gpu_budget, budget_bytes);
    ck_assert_uint_eq(stat.gpu_used, used_bytes);
}

static void attach_is_refused(const struct spw_gpu_options *options, const char *words)
{
    spw_gpu *gpu;

    ck_assert_int_eq(gpu_rig_attach(&rig, options, &gpu), -ENOSPC);
    ck_assert_uint_eq(spw_error_limit(), SPW_LIMIT_POOL_GPU);
    ck_assert_msg(strstr(spw_error_text(), words) != NULL, "\"%s\" in: %s", words, spw_error_text());
}

static void configure(const char *gpu)
{
    char sections[256];

    snprintf(sections, sizeof(sections), "[tier.dram]\nsize = 128 MiB\n[pool default]\ngpu = %s\n", gpu);
    daemon_configure(&rig.daemon, "engines = 1\n", sections);
}

START_TEST(a_pool_has_a_budget)
{
    static const struct spw_gpu_options small = {.slots = 2, .slot_bytes = 8 * MIB}; /* 32 MiB, both directions */
    spw_gpu *one, *two;

    gpu_rig_driver(&rig);
    daemon_init(&rig.daemon);
    configure("64 MiB");
    daemon_start(&rig.daemon);
    rig.session = daemon_connect(&rig.daemon);
    rig.space = daemon_space(rig.session, "default", "kv", ITEM_BYTES, SPW_CLASS_KV, SPW_CACHE);
    attach_is_refused(NULL, "a lane of 120 MiB: pool default may have 64 MiB of GPU memory, and uses 0");
    check_stat(64 * MIB, 0);
    ck_assert_int_eq(gpu_rig_attach(&rig, &small, &one), 0);
    check_stat(64 * MIB, 32 * MIB);
    ck_assert_int_eq(gpu_rig_attach(&rig, &small, &two), 0);
    check_stat(64 * MIB, 64 * MIB);
    attach_is_refused(&small, "and uses 64");
    spw_gpu_detach(one); /* its own go first */
    ck_assert_int_eq(gpu_rig_attach(&rig, &small, &one), 0);
    attach_is_refused(&small, "and uses 64");
    configure("512 MiB");
    kill(rig.daemon.pid, SIGHUP);
    for (int64_t end = clock_ms() + WAIT_MS; clock_ms() < end; sleep_ms(20))
        if (daemon_admin_number(rig.session, "pools", "pools/0/gpu/budget_bytes") == 512 * MIB)
            break;
    ck_assert_int_eq(gpu_rig_attach(&rig, NULL, &rig.gpu), 0);
    ck_assert_int_eq(daemon_admin_number(rig.session, "pools", "pools/0/gpu/used_bytes"), 64 * MIB + LANE_BYTES);
    check_stat(512 * MIB, 64 * MIB + LANE_BYTES);
    spw_gpu_detach(two);
    spw_gpu_detach(one);
    check_stat(512 * MIB, LANE_BYTES);
    gpu_rig_close(&rig);
}
END_TEST

START_TEST(a_session_has_few_lanes)
{
    static const struct spw_gpu_options small = {.slots = 1, .slot_bytes = 8 * MIB}; /* 16 MiB, both directions */
    spw_gpu *gpus[16], *more;

    gpu_rig_driver(&rig);
    gpu_rig_open(&rig, 128 * MIB, 0, ITEM_BYTES); /* the first lane */
    for (size_t i = 1; i < ARRAY_LEN(gpus); i++)
        ck_assert_int_eq(gpu_rig_attach(&rig, &small, &gpus[i]), 0);
    ck_assert_int_eq(gpu_rig_attach(&rig, &small, &more), -ENOSPC);
    ck_assert_uint_eq(spw_error_limit(), SPW_LIMIT_GPU_LANES);
    ck_assert_msg(strstr(spw_error_text(), "this session has 16 lanes at engine 0"), "%s", spw_error_text());
    ck_assert_int_eq(number("lanes"), 16);
    spw_gpu_detach(gpus[7]);
    ck_assert_int_eq(gpu_rig_attach(&rig, &small, &gpus[7]), 0);
    for (size_t i = 1; i < ARRAY_LEN(gpus); i++)
        spw_gpu_detach(gpus[i]);
    gpu_rig_close(&rig);
}
END_TEST

/* The daemon does not find the driver; this process has it already. */
START_TEST(without_a_driver_there_is_no_gpu)
{
    static const char *const variable = "LD_LIBRARY_PATH";
    const char *path = getenv(variable);

    gpu_rig_driver(&rig);
    if (!rig.control || !path) {
        puts("SKIP: the machine has a driver, and it cannot be taken away");
        return;
    }
    unsetenv(variable);
    gpu_rig_daemon(&rig, 128 * MIB, 0);
    setenv(variable, path, 1);
    rig.session = daemon_connect(&rig.daemon);
    rig.space = daemon_space(rig.session, "default", "kv", ITEM_BYTES, SPW_CLASS_KV, SPW_CACHE);
    ck_assert_int_eq(gpu_rig_attach(&rig, NULL, &rig.gpu), -ENODEV);
    ck_assert_uint_eq(spw_error_limit(), SPW_LIMIT_GPU_FAILED);
    ck_assert_msg(strstr(spw_error_text(), "libcuda.so.1"), "%s", spw_error_text());
    wait_text("state", "paused");
    check_text("last_error", "libcuda.so.1");
    ck_assert_int_eq(number("lanes"), 0);
    ck_assert_int_eq(number("pid"), 0);
    ck_assert_int_eq(daemon_admin_number(rig.session, "pools", "pools/0/gpu/used_bytes"), 0);
    rig.gpu = NULL;
    gpu_rig_close(&rig);
}
END_TEST

static void configure_gpus(const char *daemon_gpus, const char *pool_keys)
{
    char keys[256], sections[256];

    snprintf(keys, sizeof(keys), "engines = 1\ngpus = %s\n", daemon_gpus);
    snprintf(sections, sizeof(sections), "[tier.dram]\nsize = 128 MiB\n[pool default]\n%s", pool_keys);
    daemon_configure(&rig.daemon, keys, sections);
}

static void reload_gpus(const char *daemon_gpus, const char *pool_keys, const char *logged)
{
    configure_gpus(daemon_gpus, pool_keys);
    kill(rig.daemon.pid, SIGHUP);
    for (int64_t end = clock_ms() + WAIT_MS; !daemon_logged(&rig.daemon, logged);)
        ck_assert_msg(clock_ms() < end, "no '%s' in %s", logged, daemon_log(&rig.daemon));
}

static void attach_is_forbidden(const char *words)
{
    spw_gpu *gpu;

    ck_assert_int_eq(gpu_rig_attach(&rig, NULL, &gpu), -ENODEV);
    ck_assert_msg(strstr(spw_error_text(), words) != NULL, "\"%s\" in: %s", words, spw_error_text());
}

START_TEST(what_is_listed_is_served_from_the_start)
{
    char uuid[64];

    gpu_rig_driver(&rig);
    gpu_rig_context(&rig);
    uuid_print(uuid);
    daemon_init(&rig.daemon);
    configure_gpus(uuid, "");
    daemon_start(&rig.daemon);
    wait_text("state", "serving"); /* nobody has asked for it */
    check_text("uuid", uuid);
    check_text("listed", "true");
    gpu_rig_connect(&rig, ITEM_BYTES);
    reload_gpus(uuid, "gpus = none\n", "[pool default] gpus: none, was all");
    attach_is_forbidden("pool default may not use it: see gpus in its [pool] section");
    reload_gpus("none", "", "gpus: none, was GPU-");
    attach_is_forbidden("see gpus in [daemon]");
    check_text("state", "serving"); /* there is a lane */
    spw_gpu_detach(rig.gpu);
    rig.gpu = NULL;
    wait_text("state", "off");
    reload_gpus("any", "", "gpus: any, was none");
    ck_assert_int_eq(gpu_rig_attach(&rig, NULL, &rig.gpu), 0);
    check_text("listed", "false");
    gpu_rig_close(&rig);
}
END_TEST

START_TEST(a_pool_without_a_budget_starts_nothing)
{
    gpu_rig_driver(&rig);
    daemon_init(&rig.daemon);
    configure("0");
    daemon_start(&rig.daemon);
    rig.session = daemon_connect(&rig.daemon);
    rig.space = daemon_space(rig.session, "default", "kv", ITEM_BYTES, SPW_CLASS_KV, SPW_CACHE);
    attach_is_refused(NULL, "pool default may have 0 MiB of GPU memory, and uses 0: raise gpu in its [pool] section");
    ck_assert_ptr_null(gpu_shown(0));
    gpu_rig_close(&rig);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpu_control");
    TCase *tc = tcase_create("control");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, what_is_shown);
    tcase_add_test(tc, a_helper_that_died_is_started_again);
    tcase_add_test(tc, a_helper_has_no_capabilities);
    tcase_add_test(tc, a_pool_has_a_budget);
    tcase_add_test(tc, a_pool_without_a_budget_starts_nothing);
    tcase_add_test(tc, a_session_has_few_lanes);
    tcase_add_test(tc, without_a_driver_there_is_no_gpu);
    tcase_add_test(tc, what_is_listed_is_served_from_the_start);
    suite_add_tcase(s, tc);
    return suite_main(s);
}
