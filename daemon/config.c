/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the life of a configuration: defaults, reading the file, the list of mistakes. A config starts as the defaults;
 * the file is laid over it (config_parse.c), then the whole is checked (config_check.c). Main thread only.
 */
#include "daemon/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/config_keys.h"
#include "include/base/units.h"
#include "include/base/user_dir.h"

#define NS_PER_S UINT64_C(1000000000)

void config_env_init(struct config_env *ret_env, bool user_mode)
{
    long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    const char *runtime_dir = secure_getenv("XDG_RUNTIME_DIR");

    *ret_env = (struct config_env){
        .user_mode = user_mode,
        .uid = geteuid(),
        .memory_bytes = pages > 0 && page_bytes > 0 ? (uint64_t)pages * (uint64_t)page_bytes : 0,
        .runtime_dir = runtime_dir && *runtime_dir ? runtime_dir : NULL,
    };
}

/* Control characters would let a file write lines of its own into a log. */
static void make_printable(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

void config_error_add(struct config_errors *errors, const char *path, uint32_t line, const char *format, ...)
{
    va_list args;

    if (errors->n == CONFIG_ERRORS_MAX) {
        errors->n_left_out++;
        return;
    }
    struct config_error *e = &errors->at[errors->n++];
    size_t len;

    e->line = line;
    if (line)
        snprintf(e->text, sizeof(e->text), "%s:%u: ", path, line);
    else
        snprintf(e->text, sizeof(e->text), "%s: ", *path ? path : "defaults");
    len = strlen(e->text);
    va_start(args, format);
    vsnprintf(e->text + len, sizeof(e->text) - len, format, args);
    va_end(args);
    make_printable(e->text);
}

static void ids_add_uid(struct config_ids *ids, uid_t uid)
{
    ids->n = 1;
    ids->ids[0] = uid;
    snprintf(ids->text, sizeof(ids->text), "%u", uid);
}

/* Who may open a pool has no default for a daemon that serves a machine: the admin says it. */
void config_pool_init(struct config_pool *pool, const char *name, const struct config_env *env)
{
    *pool = (struct config_pool){
        .trusted = CONFIG_TRUSTED_AUTO,
        .weight = DEFAULT_WEIGHT,
        .linger_ns = 30 * NS_PER_S,
        .max_leases_percent = 80,
        .uid_leases_percent = DEFAULT_UID_LEASES_PERCENT,
        .prefetch_ahead = 64 * MIB,
    };
    snprintf(pool->section.name, sizeof(pool->section.name), "%s", name);
    if (env->user_mode)
        ids_add_uid(&pool->users, env->uid);
}

void config_device_init(struct config_device *device, const char *name)
{
    *device = (struct config_device){.weight = DEFAULT_WEIGHT};
    snprintf(device->section.name, sizeof(device->section.name), "%s", name);
}

static void socket_init(struct config_daemon *d, const struct config_env *env)
{
    char dir[USER_DIR_BYTES];

    user_dir_fallback(env->uid, dir);
    if (!env->user_mode)
        snprintf(d->socket, sizeof(d->socket), "/run/spillway/spillwayd.sock");
    else if (env->runtime_dir)
        snprintf(d->socket, sizeof(d->socket), "%s/spillway/spillwayd.sock", env->runtime_dir);
    else
        snprintf(d->socket, sizeof(d->socket), "%s/spillwayd.sock", dir);
}

static void daemon_init(struct config_daemon *d, const struct config_env *env)
{
    *d = (struct config_daemon){
        .spin_us = 100,
        .max_sessions = DEFAULT_MAX_SESSIONS,
        .uid_sessions = DEFAULT_UID_SESSIONS,
        .uid_descriptors = DEFAULT_UID_DESCRIPTORS,
        .uid_requests_percent = DEFAULT_UID_REQUESTS_PERCENT,
        .session_leases = DEFAULT_SESSION_LEASES,
        .session_rings = DEFAULT_SESSION_RINGS,
        .reattach_ns = DEFAULT_REATTACH_NS,
        .log_level = CONFIG_LOG_INFO,
        .ready_progress = true,
        .seccomp = CONFIG_SECCOMP_ON,
        .gpu_seccomp = CONFIG_SECCOMP_OFF,
    };
    socket_init(d, env);
}

static void dram_init(struct config_dram *dram, const struct config_env *env)
{
    *dram = (struct config_dram){.pretouch = true, .clean_percent = 2};
    if (env->user_mode)
        dram->size = (struct config_amount){.kind = CONFIG_AMOUNT_BYTES, .bytes = 256 * MIB};
    else
        dram->size = (struct config_amount){.kind = CONFIG_AMOUNT_PERCENT, .percent_milli = 25000};
}

static bool policy_known(const struct config_env *env, const char *name)
{
    for (const char *const *p = env->policy_names; p && *p; p++)
        if (strcmp(*p, name) == 0)
            return true;
    return !env->policy_names;
}

static void class_init(struct config_class *class, const char *name, const char *policy, uint32_t durability,
                       const struct config_env *env)
{
    *class = (struct config_class){.durability = durability, .weight = DEFAULT_WEIGHT};
    snprintf(class->section.name, sizeof(class->section.name), "%s", name);
    if (!policy_known(env, policy) && env->policy_names[0])
        policy = env->policy_names[0];
    snprintf(class->policy, sizeof(class->policy), "%s", policy);
}

static void defaults_init(struct spillway_config *c, const struct config_env *env)
{
    static const struct {
        const char *policy;
        uint32_t durability;
    } classes[CONFIG_CLASSES] = {
        [CONFIG_CLASS_KV] = {"chain", CONFIG_DURABILITY_CACHE},
        [CONFIG_CLASS_WEIGHTS] = {"adaptive", CONFIG_DURABILITY_CACHE},
        [CONFIG_CLASS_ACTIVATION] = {"adaptive", CONFIG_DURABILITY_SCRATCH},
        [CONFIG_CLASS_OPTIMIZER] = {"plan", CONFIG_DURABILITY_SCRATCH},
        [CONFIG_CLASS_GENERIC] = {"adaptive", CONFIG_DURABILITY_CACHE},
    };

    daemon_init(&c->daemon, env);
    dram_init(&c->dram, env);
    for (unsigned i = 0; i < CONFIG_CLASSES; i++)
        class_init(&c->classes[i], config_class_names[i], classes[i].policy, classes[i].durability, env);
}

/* All of a file, with room for one byte more than is allowed, to tell "full" from "too large". */
static int file_read(const char *path, char *buffer, size_t buffer_bytes, size_t *ret_bytes)
{
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    size_t bytes = 0;

    if (fd < 0)
        return -errno;
    while (bytes < buffer_bytes) {
        ssize_t n = read(fd, buffer + bytes, buffer_bytes - bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        bytes += (size_t)n;
    }
    *ret_bytes = bytes;
    return 0;
}

static int file_apply(struct spillway_config *c, const char *path, const struct config_env *env,
                      struct config_errors *errors)
{
    cleanup_free char *text = malloc(CONFIG_FILE_BYTES_MAX + 1);
    size_t bytes = 0;

    if (!text)
        return -ENOMEM;
    snprintf(c->path, sizeof(c->path), "%s", path);
    int r = file_read(path, text, CONFIG_FILE_BYTES_MAX + 1, &bytes);
    if (r < 0) {
        config_error_add(errors, path, 0, "cannot read: %s", strerror(-r));
        return r;
    }
    if (bytes > CONFIG_FILE_BYTES_MAX) {
        config_error_add(errors, path, 0, "larger than 1 MiB: this is not a config");
        return -EINVAL;
    }
    return config_parse_text(c, text, bytes, env, errors);
}

int config_load(const char *path, const struct config_env *env, struct spillway_config **ret_config,
                struct config_errors *errors)
{
    cleanup_config struct spillway_config *c = calloc(1, sizeof(*c));
    int r = -ENOMEM;

    *errors = (struct config_errors){0};
    if (c) {
        defaults_init(c, env);
        r = path ? file_apply(c, path, env, errors) : 0;
    }
    if (r == -ENOMEM && errors->n == 0) /* it is no mistake of the file's, but whoever waits has to hear of it */
        config_error_add(errors, path ? path : "the defaults", 0, "cannot read: %s", strerror(ENOMEM));
    if (r < 0)
        return r;
    if (c->n_pools == 0) {
        config_pool_init(&c->pools[c->n_pools++], "default", env);
        ids_add_uid(&c->pools[0].users, env->uid);
    }
    config_check(c, env, errors);
    if (errors->n > 0)
        return -EINVAL;
    *ret_config = steal_ptr(c);
    return 0;
}

struct spillway_config *config_free(struct spillway_config *config)
{
    free(config);
    return NULL;
}
