/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the one table of sections and keys. A key is a row: its name, its type, where its value lies, its bounds, and
 * whether a reload may change it. Parsing, printing, diff and merge walk the rows, so that a new key is one new line
 * here and cannot be forgotten by any of them. Values themselves are read and written in config_value.c.
 */
#include "daemon/config_keys.h"

#include <string.h>

static const char *const words_log_level[] = {"error", "warning", "notice", "info", "debug"};
static const char *const words_hugepages[] = {"try", "require", "never"};
static const char *const words_seccomp[] = {"off", "log", "on"};
static const char *const words_trusted[] = {"auto", "yes", "no"};
static const char *const words_durability[] = {"cache", "scratch", "durable"};

const char *const config_class_names[CONFIG_CLASSES] = {"kv", "weights", "activation", "optimizer", "generic"};
const char *const config_tier_names[CONFIG_TIERS] = {"gpu", "dram", "cxl", "nvme"};

#define MEMBER(type_, member_)                                                                                         \
    .offset = offsetof(struct type_, member_), .size = sizeof(((struct type_ *)NULL)->member_)
#define RANGE(min_, max_) .min = (min_), .max = (max_)
#define WORDS(words_) .words = (words_), .n_words = ARRAY_LEN(words_)

#define KEY_DAEMON(member_) MEMBER(config_daemon, member_)
static const struct config_key keys_daemon[] = {
    {"socket", CONFIG_TYPE_PATH, KEY_DAEMON(socket)},
    {"engines", CONFIG_TYPE_UINT, KEY_DAEMON(engines), RANGE(0, ENGINES_MAX), .zero = "auto"},
    {"workers", CONFIG_TYPE_UINT, KEY_DAEMON(workers), RANGE(0, WORKERS_MAX), .zero = "auto"},
    {"spin_us", CONFIG_TYPE_UINT, KEY_DAEMON(spin_us), .reloads = true, RANGE(0, 1000000)},
    {"max_sessions", CONFIG_TYPE_UINT, KEY_DAEMON(max_sessions), .reloads = true, RANGE(1, SESSIONS_MAX)},
    {"uid_sessions", CONFIG_TYPE_UINT, KEY_DAEMON(uid_sessions), .reloads = true, RANGE(1, SESSIONS_MAX)},
    {"uid_descriptors", CONFIG_TYPE_UINT, KEY_DAEMON(uid_descriptors), .reloads = true, RANGE(16, UID_DESCRIPTORS_MAX)},
    {"uid_requests_percent", CONFIG_TYPE_UINT, KEY_DAEMON(uid_requests_percent), .reloads = true, RANGE(50, 100)},
    {"session_leases", CONFIG_TYPE_UINT, KEY_DAEMON(session_leases), .reloads = true, RANGE(1, SESSION_LEASES_MAX)},
    {"session_rings", CONFIG_TYPE_UINT, KEY_DAEMON(session_rings), .reloads = true, RANGE(1, SESSION_RINGS_MAX)},
    {"reattach", CONFIG_TYPE_DURATION, KEY_DAEMON(reattach_ns), .reloads = true},
    {"max_objects", CONFIG_TYPE_UINT, KEY_DAEMON(max_objects), RANGE(0, UINT32_MAX - 1), .zero = "auto"},
    {"admin_group", CONFIG_TYPE_NAME, KEY_DAEMON(admin_group), .zero = "none"},
    {"log_level", CONFIG_TYPE_ENUM, KEY_DAEMON(log_level), .reloads = true, WORDS(words_log_level)},
    {"ready_progress", CONFIG_TYPE_BOOL, KEY_DAEMON(ready_progress)},
    {"inject", CONFIG_TYPE_BOOL, KEY_DAEMON(inject)},
    {"gpus", CONFIG_TYPE_GPUS, KEY_DAEMON(gpus), .reloads = true, .zero = "any"},
    {"user", CONFIG_TYPE_NAME, KEY_DAEMON(user), .zero = "none"},
    {"seccomp", CONFIG_TYPE_ENUM, KEY_DAEMON(seccomp), WORDS(words_seccomp)},
    {"gpu_seccomp", CONFIG_TYPE_ENUM, KEY_DAEMON(gpu_seccomp), WORDS(words_seccomp)},
};

#define KEY_DRAM(member_) MEMBER(config_dram, member_)
static const struct config_key keys_dram[] = {
    {"size", CONFIG_TYPE_AMOUNT, KEY_DRAM(size)},
    {"nodes", CONFIG_TYPE_NODES, KEY_DRAM(nodes)},
    {"hugepages", CONFIG_TYPE_ENUM, KEY_DRAM(hugepages), WORDS(words_hugepages)},
    {"pretouch", CONFIG_TYPE_BOOL, KEY_DRAM(pretouch)},
    {"force_small_pages", CONFIG_TYPE_BOOL, KEY_DRAM(force_small_pages)},
    {"clean_percent", CONFIG_TYPE_UINT, KEY_DRAM(clean_percent), .reloads = true, RANGE(0, 50)},
};

#define KEY_CXL(member_) MEMBER(config_cxl, member_)
static const struct config_key keys_cxl[] = {
    {"size", CONFIG_TYPE_SIZE, KEY_CXL(size_bytes), RANGE(0, UINT64_MAX)},
    {"nodes", CONFIG_TYPE_NODES, KEY_CXL(nodes)},
};

#define KEY_DEVICE(member_) MEMBER(config_device, member_)
static const struct config_key keys_device[] = {
    {"path", CONFIG_TYPE_PATH, KEY_DEVICE(path)},
    {"capacity", CONFIG_TYPE_SIZE, KEY_DEVICE(capacity_bytes), RANGE(0, UINT64_MAX), .zero = "all"},
    {"weight", CONFIG_TYPE_UINT, KEY_DEVICE(weight), .reloads = true, RANGE(1, WEIGHT_MAX)},
    {"write_budget", CONFIG_TYPE_DECIMAL, KEY_DEVICE(write_budget_milli), .reloads = true, RANGE(1, 1000000),
     .zero = "none"},
    {"sparse", CONFIG_TYPE_BOOL, KEY_DEVICE(sparse)},
};

#define KEY_POOL(member_) MEMBER(config_pool, member_)
static const struct config_key keys_pool[] = {
    {"users", CONFIG_TYPE_USERS, KEY_POOL(users), .reloads = true},
    {"groups", CONFIG_TYPE_GROUPS, KEY_POOL(groups), .reloads = true},
    {"trusted", CONFIG_TYPE_ENUM, KEY_POOL(trusted), WORDS(words_trusted)},
    {"dram", CONFIG_TYPE_AMOUNT, KEY_POOL(budgets[CONFIG_TIER_DRAM]), .reloads = true},
    {"cxl", CONFIG_TYPE_AMOUNT, KEY_POOL(budgets[CONFIG_TIER_CXL]), .reloads = true},
    {"nvme", CONFIG_TYPE_AMOUNT, KEY_POOL(budgets[CONFIG_TIER_NVME]), .reloads = true},
    {"gpu", CONFIG_TYPE_AMOUNT, KEY_POOL(budgets[CONFIG_TIER_GPU]), .reloads = true},
    {"gpus", CONFIG_TYPE_GPUS, KEY_POOL(gpus), .reloads = true, .zero = "all"},
    {"weight", CONFIG_TYPE_UINT, KEY_POOL(weight), .reloads = true, RANGE(1, WEIGHT_MAX)},
    {"write_budget", CONFIG_TYPE_RATE, KEY_POOL(write_budget), .reloads = true, .zero = "none"},
    {"linger", CONFIG_TYPE_DURATION, KEY_POOL(linger_ns), .reloads = true},
    {"max_leases_percent", CONFIG_TYPE_UINT, KEY_POOL(max_leases_percent), .reloads = true, RANGE(1, 100)},
    {"uid_leases_percent", CONFIG_TYPE_UINT, KEY_POOL(uid_leases_percent), .reloads = true, RANGE(1, 100)},
    {"session_bytes", CONFIG_TYPE_SIZE, KEY_POOL(session_bytes), .reloads = true, RANGE(0, UINT64_MAX), .zero = "none"},
    {"prefetch_ahead", CONFIG_TYPE_SIZE, KEY_POOL(prefetch_ahead), .reloads = true, RANGE(0, UINT64_MAX),
     .zero = "none"},
};

#define KEY_CLASS(member_) MEMBER(config_class, member_)
static const struct config_key keys_class[] = {
    {"policy", CONFIG_TYPE_POLICY, KEY_CLASS(policy)},
    {"durability", CONFIG_TYPE_ENUM, KEY_CLASS(durability), WORDS(words_durability)},
    {"weight", CONFIG_TYPE_UINT, KEY_CLASS(weight), .reloads = true, RANGE(1, WEIGHT_MAX)},
};

static_assert(ARRAY_LEN(keys_daemon) <= CONFIG_KEYS_MAX && ARRAY_LEN(keys_pool) <= CONFIG_KEYS_MAX,
              "a line number for each key");

#define KEYS(keys_) .n_keys = ARRAY_LEN(keys_), .keys = (keys_)
const struct config_kind_info config_kinds[CONFIG_KINDS] = {
    [CONFIG_DAEMON] = {"daemon", false, KEYS(keys_daemon)}, [CONFIG_DRAM] = {"tier.dram", false, KEYS(keys_dram)},
    [CONFIG_CXL] = {"tier.cxl", false, KEYS(keys_cxl)},     [CONFIG_DEVICE] = {"device", true, KEYS(keys_device)},
    [CONFIG_POOL] = {"pool", true, KEYS(keys_pool)},        [CONFIG_CLASS] = {"class", true, KEYS(keys_class)},
};

/* The parser and the merge write through the result, and own the config that they pass. */
struct config_section *config_section_at(const struct spillway_config *config, enum config_kind kind, uint32_t i)
{
    struct spillway_config *c = (struct spillway_config *)(uintptr_t)config;

    switch (kind) {
    case CONFIG_DAEMON:
        return i == 0 ? &c->daemon.section : NULL;
    case CONFIG_DRAM:
        return i == 0 ? &c->dram.section : NULL;
    case CONFIG_CXL:
        return i == 0 ? &c->cxl.section : NULL;
    case CONFIG_DEVICE:
        return i < c->n_devices ? &c->devices[i].section : NULL;
    case CONFIG_POOL:
        return i < c->n_pools ? &c->pools[i].section : NULL;
    case CONFIG_CLASS:
        return i < CONFIG_CLASSES ? &c->classes[i].section : NULL;
    case CONFIG_KINDS:
        break;
    }
    return NULL;
}

struct config_section *config_section_find(const struct spillway_config *config, enum config_kind kind,
                                           const char *name)
{
    struct config_section *section;

    for (uint32_t i = 0; (section = config_section_at(config, kind, i)) != NULL; i++)
        if (strcmp(section->name, name) == 0)
            return section;
    return NULL;
}

const char *config_section_title(enum config_kind kind, const struct config_section *section,
                                 char ret_title[static NAME_BYTES_MAX + 16])
{
    snprintf(ret_title, NAME_BYTES_MAX + 16, "%s%s%s", config_kinds[kind].name, config_kinds[kind].named ? " " : "",
             section->name);
    return ret_title;
}
