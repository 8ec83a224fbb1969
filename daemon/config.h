/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration of spillwayd: what an admin wrote, checked, with every default filled in.
 *
 * A struct spillway_config is built whole or not at all, and never changes afterwards: a reload builds a second one,
 * config_diff() says what changed, config_merge() gives the one to run with. So a bad file leaves the old one in force.
 * All functions are for the main thread (the parser's settings are process-wide). Nothing here prints or logs: mistakes
 * come back as a list, each one ready to be shown.
 */
#pragma once

#include <stdio.h>
#include <sys/types.h>

#include "include/base/cleanup.h"
#include "include/base/limits.h"

#define CONFIG_ERRORS_MAX 20
#define CONFIG_CHANGES_MAX 64
#define CONFIG_FILE_BYTES_MAX (1 * MIB)
#define CONFIG_LINE_BYTES_MAX 4096 /* without the newline */
#define CONFIG_VALUE_BYTES_MAX 255
#define CONFIG_TEXT_BYTES_MAX 2687 /* of a value that lists GPUs: GPUS_MAX of them, a comma and a blank between */
#define CONFIG_KEYS_MAX 20         /* of one section; config_keys.c asserts it */
#define CONFIG_IDS_MAX 64          /* users or groups of one pool */

enum config_kind {
    CONFIG_DAEMON,
    CONFIG_DRAM,
    CONFIG_CXL,
    CONFIG_DEVICE,
    CONFIG_POOL,
    CONFIG_CLASS,
    CONFIG_KINDS,
};

enum config_tier { CONFIG_TIER_GPU, CONFIG_TIER_DRAM, CONFIG_TIER_CXL, CONFIG_TIER_NVME, CONFIG_TIERS };
enum config_log_level { CONFIG_LOG_ERROR, CONFIG_LOG_WARNING, CONFIG_LOG_NOTICE, CONFIG_LOG_INFO, CONFIG_LOG_DEBUG };
enum config_seccomp { CONFIG_SECCOMP_OFF, CONFIG_SECCOMP_LOG, CONFIG_SECCOMP_ON };
enum config_hugepages { CONFIG_HUGEPAGES_TRY, CONFIG_HUGEPAGES_REQUIRE, CONFIG_HUGEPAGES_NEVER };
enum config_trusted { CONFIG_TRUSTED_AUTO, CONFIG_TRUSTED_YES, CONFIG_TRUSTED_NO };
enum config_class_index {
    CONFIG_CLASS_KV,
    CONFIG_CLASS_WEIGHTS,
    CONFIG_CLASS_ACTIVATION,
    CONFIG_CLASS_OPTIMIZER,
    CONFIG_CLASS_GENERIC,
    CONFIG_CLASSES,
};
enum config_durability { CONFIG_DURABILITY_CACHE, CONFIG_DURABILITY_SCRATCH, CONFIG_DURABILITY_DURABLE };

/* Begins every section. A line of 0 means "not in the file": the value is the default. */
struct config_section {
    char name[NAME_BYTES_MAX + 1]; /* of a device, pool or class; empty for the others */
    uint32_t line;
    uint32_t key_lines[CONFIG_KEYS_MAX]; /* in the order of the section's table of keys */
};

/* A share of a tier: a percentage of it, a number of bytes, or an equal part of what the others leave. */
struct config_amount {
    uint64_t bytes;
    uint32_t percent_milli;
    enum { CONFIG_AMOUNT_AUTO, CONFIG_AMOUNT_BYTES, CONFIG_AMOUNT_PERCENT } kind;
};

/* So many bytes in each period. bytes 0: no limit. */
struct config_rate {
    uint64_t bytes, period_ns;
};

/* Users or groups: as written, and as numbers. */
struct config_ids {
    char text[CONFIG_VALUE_BYTES_MAX + 1];
    bool any;
    uint32_t n;
    uint32_t ids[CONFIG_IDS_MAX];
};

struct config_gpu {
    uint8_t uuid[16];
    bool is_mig;
};

/* GPUs and MIG instances; without a list all that there are, or none. */
struct config_gpus {
    enum { CONFIG_GPUS_ALL, CONFIG_GPUS_NONE, CONFIG_GPUS_LIST } kind;
    uint32_t n;
    struct config_gpu at[GPUS_MAX];
};

struct config_daemon {
    struct config_section section;
    char socket[CONFIG_VALUE_BYTES_MAX + 1];
    uint32_t engines; /* 0: one a node */
    uint32_t workers; /* of one engine; 0: the smaller of 4 and the number of CPUs */
    uint32_t spin_us;
    uint32_t max_sessions;
    uint32_t uid_sessions;
    uint32_t uid_descriptors;
    uint32_t uid_requests_percent; /* of what one engine may have in flight */
    uint32_t session_leases;
    uint32_t session_rings;
    uint64_t reattach_ns; /* that a session waits for its client after a restart; 0: it ends with the daemon */
    uint32_t max_objects; /* 0: derived from the tiers' sizes */
    char admin_group[NAME_BYTES_MAX + 1]; /* empty: root and the daemon's own user alone */
    uint32_t log_level;                   /* enum config_log_level */
    bool ready_progress;                  /* say how far start-up is */
    bool inject;                          /* root may order faults of devices */
    struct config_gpus gpus;              /* that are served */
    char user[NAME_BYTES_MAX + 1];        /* to become, started as root; empty: none */
    uint32_t seccomp;                     /* enum config_seccomp: of the daemon's threads */
    uint32_t gpu_seccomp;                 /* the same, of helpers */
};

struct config_dram {
    struct config_section section;
    struct config_amount size; /* of the machine's memory */
    uint64_t size_bytes;       /* derived from size */
    uint64_t nodes;            /* bit mask; 0: all */
    uint32_t hugepages;        /* enum config_hugepages */
    bool pretouch;
    bool force_small_pages;
    uint32_t clean_percent;
};

struct config_cxl {
    struct config_section section;
    uint64_t size_bytes; /* 0: not used */
    uint64_t nodes;      /* bit mask; 0: every node that has memory and no CPU */
};

struct config_device {
    struct config_section section;
    char path[CONFIG_VALUE_BYTES_MAX + 1];
    uint64_t capacity_bytes;     /* 0: as it was formatted */
    uint32_t weight;             /* share of new segments, against the other devices */
    uint32_t write_budget_milli; /* thousandths of a drive write per day; 0: none */
    bool sparse;                 /* a file may have holes */
};

struct config_pool {
    struct config_section section;
    struct config_ids users;
    struct config_ids groups;
    uint32_t trusted; /* enum config_trusted */
    bool is_trusted;  /* derived from users, groups and trusted */
    struct config_amount budgets[CONFIG_TIERS];
    struct config_gpus gpus;         /* that its sessions may use, of those that are served */
    uint32_t weight;                 /* share of I/O, against the other pools */
    struct config_rate write_budget; /* what may be written to devices */
    uint64_t linger_ns;
    uint32_t max_leases_percent;
    uint32_t uid_leases_percent; /* of that */
    uint64_t session_bytes;      /* 0: no limit but the pool's */
    uint64_t prefetch_ahead;     /* bytes; 0: nothing is loaded before it is asked for */
};

struct config_class {
    struct config_section section;
    char policy[NAME_BYTES_MAX + 1];
    uint32_t durability; /* enum config_durability */
    uint32_t weight;
};

struct spillway_config {
    char path[CONFIG_VALUE_BYTES_MAX + 1]; /* empty: no file, defaults only */
    struct config_daemon daemon;
    struct config_dram dram;
    struct config_cxl cxl;
    uint32_t n_devices, n_pools;
    struct config_device devices[DEVICES_MAX];
    struct config_class classes[CONFIG_CLASSES]; /* by enum config_class_index; always all of them */
    struct config_pool pools[POOLS_MAX];
};

/* What the checks must know about the machine and the process. All pointers are borrowed for the call. */
struct config_env {
    bool user_mode; /* spillwayd --user */
    uid_t uid;      /* the daemon's */
    uint64_t memory_bytes;
    uint64_t nodes;                  /* mask of the nodes that exist; 0: do not check */
    const char *runtime_dir;         /* user mode: where the socket goes; NULL: user_dir.h says */
    const char *const *policy_names; /* NULL-terminated; the first is the fallback. NULL: any name is taken */
    int (*user_find)(const char *name, uint32_t *ret_uid); /* negative errno if there is none; NULL: the system's */
    int (*group_find)(const char *name, uint32_t *ret_gid);
};

struct config_error {
    uint32_t line;  /* 0: about the file as a whole */
    char text[512]; /* `file:line: message; did you mean 'x'?`, printable characters only */
};

struct config_errors {
    uint32_t n;          /* in the order of the file, then those that only the whole shows */
    uint32_t n_left_out; /* found but not kept: there is room for CONFIG_ERRORS_MAX */
    struct config_error at[CONFIG_ERRORS_MAX];
};

struct config_change {
    char section[NAME_BYTES_MAX + 16]; /* `pool chat` */
    char key[NAME_BYTES_MAX + 1];      /* empty: the whole section came or went */
    char old_value[CONFIG_TEXT_BYTES_MAX + 1];
    char new_value[CONFIG_TEXT_BYTES_MAX + 1];
    bool needs_restart;
};

struct config_changes {
    uint32_t n;
    uint32_t n_restart;  /* how many need a restart, those left out included */
    uint32_t n_left_out; /* there is room for CONFIG_CHANGES_MAX */
    struct config_change at[CONFIG_CHANGES_MAX];
};

/* Fills in what this process and machine say: uid, memory, XDG directories. `policy_names` stays NULL. */
void config_env_init(struct config_env *ret_env, bool user_mode);

/*
 * Reads, parses and checks a file; without one (path NULL) all is default. Returns 0, -EINVAL with the mistakes in
 * `errors`, -ENOMEM, or the errno of opening or reading, also with a text in `errors`.
 */
int config_load(const char *path, const struct config_env *env, struct spillway_config **ret_config,
                struct config_errors *errors);
struct spillway_config *config_free(struct spillway_config *config);
DEFINE_CLEANUP(struct spillway_config *, config_free)
#define cleanup_config cleanup_(config_freep)

/*
 * What a pool may use of a tier that turned out to have tier_bytes (a device's size is known only once it is open, and a
 * tier may come up smaller than configured). Pools that name no budget share equally what the others leave.
 */
uint64_t config_pool_budget_bytes(const struct spillway_config *config, uint32_t pool, enum config_tier tier,
                                  uint64_t tier_bytes);

bool config_gpus_have(const struct config_gpus *gpus, const uint8_t uuid[static 16]);

/* Key by key, what differs. Values are as `spillctl config show` prints them. */
void config_diff(const struct spillway_config *old, const struct spillway_config *wanted,
                 struct config_changes *ret_changes);

/*
 * The config to run with after a reload: the old one with what can change taken from `wanted`. Checked as a whole: -EINVAL
 * if the mixture does not add up (a budget that fits only the new tier's size), which a restart would cure.
 */
int config_merge(const struct spillway_config *old, const struct spillway_config *wanted, const struct config_env *env,
                 struct spillway_config **ret_config, struct config_errors *errors);

/*
 * Every key with its value, where it came from and whether a reload changes it; and of `pending` (may be NULL), what waits
 * for a restart. A text for the caller to free; NULL: no memory.
 */
char *config_print_json(const struct spillway_config *config, const struct config_changes *pending, size_t *ret_size);
