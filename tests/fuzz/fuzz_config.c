/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration: any text. What is accepted is printed, compared with itself and with what a second text says, and
 * merged with that, as a reload does it; each mistake has a line of the file, and can be shown.
 */
#include <ctype.h>
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/config_keys.h"
#include "tests/fuzz/fuzz.h"

static int user_find(const char *name, uint32_t *ret_uid)
{
    *ret_uid = 1000 + (uint8_t)name[0];
    return isalpha((unsigned char)name[0]) ? 0 : -ENOENT;
}

static const char *const policies[] = {"lru", "s3-fifo", "arc", "chain", "adaptive", "plan", NULL};

static struct config_env env_of(uint8_t bits)
{
    return (struct config_env){
        .user_mode = bits & 1,
        .uid = 990,
        .memory_bytes = 64 * GIB,
        .nodes = bits & 2 ? 3 : 0,
        .policy_names = bits & 4 ? NULL : policies,
        .user_find = user_find,
        .group_find = user_find,
    };
}

static void errors_check(const struct config_errors *errors, uint32_t n_lines)
{
    fuzz_check(errors->n > 0 && errors->n <= CONFIG_ERRORS_MAX);
    for (uint32_t i = 0; i < errors->n; i++) {
        fuzz_check(errors->at[i].line <= n_lines, "line %u of %u", errors->at[i].line, n_lines);
        for (const char *c = errors->at[i].text; *c; c++)
            fuzz_check((unsigned char)*c >= 0x20 && *c != 0x7f);
    }
}

static void config_look(const struct spillway_config *config)
{
    static struct config_changes none;
    size_t bytes;
    cleanup_free char *text = config_print_json(config, &none, &bytes);

    config_diff(config, config, &none);
    fuzz_check(none.n == 0 && none.n_left_out == 0);
    fuzz_check(text);
    fuzz_check(bytes > 0 && text[0] == '{');
    for (uint32_t pool = 0; pool < config->n_pools; pool++)
        for (int tier = 0; tier < CONFIG_TIERS; tier++)
            fuzz_check(config_pool_budget_bytes(config, pool, tier, 10 * GIB) <= 10 * GIB || tier == CONFIG_TIER_GPU);
    fuzz_check(config->n_pools > 0 && config->n_pools <= POOLS_MAX && config->n_devices <= DEVICES_MAX);
    fuzz_check(strlen(config->daemon.socket) > 0);
}

/* Through the very door that an admin's file goes through. */
static struct spillway_config *load(const uint8_t *text, size_t size, const struct config_env *env)
{
    static struct config_errors errors;
    static int fd = -1;
    static char path[32];
    struct spillway_config *config = NULL;
    uint32_t n_lines = 1;

    if (fd < 0) {
        fd = memfd_create("config", MFD_CLOEXEC);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    }
    fuzz_check(ftruncate(fd, 0) == 0 && pwrite(fd, text, size, 0) == (ssize_t)size);
    for (size_t i = 0; i < size; i++)
        n_lines += text[i] == '\n';
    int r = config_load(path, env, &config, &errors);

    fuzz_check((r == 0) == (errors.n == 0) && (r == 0) == (config != NULL));
    if (!config)
        errors_check(&errors, n_lines);
    else
        config_look(config);
    return config;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct config_changes changes;
    static struct config_errors errors;
    struct fuzz f = fuzz_of(data, size);
    struct config_env env = env_of(fuzz_u8(&f));
    /* A line with a form feed parts the file before the reload from the one after it. */
    const uint8_t *cut = f.left ? memchr(f.at, '\f', f.left) : NULL;
    size_t first = cut ? (size_t)(cut - f.at) : f.left;
    cleanup_config struct spillway_config *old = load(f.at, first, &env), *wanted = NULL, *merged = NULL;

    if (!cut || !old)
        return 0;
    wanted = load(cut + 1, f.left - first - 1, &env);
    if (!wanted)
        return 0;
    config_diff(old, wanted, &changes);
    fuzz_check(changes.n <= CONFIG_CHANGES_MAX);
    int r = config_merge(old, wanted, &env, &merged, &errors);

    fuzz_check((r == 0) == (merged != NULL));
    if (!merged)
        return 0;
    config_look(merged);
    config_diff(merged, wanted, &changes);
    for (uint32_t i = 0; i < changes.n; i++) /* what a reload may change it has changed */
        fuzz_check(changes.at[i].needs_restart, "%s %s", changes.at[i].section, changes.at[i].key);
    return 0;
}
