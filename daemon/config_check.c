/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns what no single line shows: sums of budgets, devices named twice, who may open a pool and whether that makes it
 * trusted; and the values that are derived from others. Runs on the file's config, and again on the mixture that a
 * reload makes. Changes nothing but derived values.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/config_keys.h"
#include "include/base/checked.h"
#include "include/base/units.h"

struct checker {
    struct spillway_config *config;
    const struct config_env *env;
    struct config_errors *errors;
};

#define check_error(ck, line_, ...) config_error_add((ck)->errors, (ck)->config->path, (line_), __VA_ARGS__)

/* A line with a mistake of its own has a value that nobody chose: what follows from it is not worth telling. */
static bool line_told(const struct checker *ck, uint32_t line)
{
    for (uint32_t i = 0; i < ck->errors->n; i++)
        if (ck->errors->at[i].line == line)
            return true;
    return false;
}

/* The line of the key whose value lies at `member`, else of its section. */
static uint32_t line_of(enum config_kind kind, const struct config_section *section, const void *member)
{
    const struct config_kind_info *info = &config_kinds[kind];

    for (uint32_t i = 0; i < info->n_keys; i++)
        if ((const char *)section + info->keys[i].offset == (const char *)member && section->key_lines[i])
            return section->key_lines[i];
    return section->line;
}

static void check_tier_size(struct checker *ck, const char *tier, uint64_t size_bytes, uint32_t line)
{
    char text[UNITS_TEXT_BYTES], limit[UNITS_TEXT_BYTES];

    if (size_bytes < TIER_BYTES_MIN)
        check_error(ck, line, "size: [tier.%s] has %s; the least that works is %s", tier, size_print(size_bytes, text),
                    size_print(TIER_BYTES_MIN, limit));
    if (ck->env->memory_bytes && size_bytes > ck->env->memory_bytes)
        check_error(ck, line, "size: [tier.%s] has %s, but this machine has only %s of memory", tier,
                    size_print(size_bytes, text), size_print(ck->env->memory_bytes, limit));
}

static void check_nodes(struct checker *ck, uint64_t nodes, uint32_t line)
{
    uint64_t missing = nodes & ~ck->env->nodes;

    if (ck->env->nodes && missing)
        check_error(ck, line, "nodes: this machine has no memory node %d", __builtin_ctzll(missing));
}

static void check_tiers(struct checker *ck)
{
    struct config_dram *dram = &ck->config->dram;
    struct config_cxl *cxl = &ck->config->cxl;
    uint32_t dram_line = line_of(CONFIG_DRAM, &dram->section, &dram->size);
    char text[UNITS_TEXT_BYTES];

    if (dram->size.kind == CONFIG_AMOUNT_AUTO)
        check_error(ck, dram_line, "size: [tier.dram] has a size or a percentage of the machine's memory, not 'auto'");
    else if (dram->size.kind == CONFIG_AMOUNT_PERCENT)
        dram->size_bytes = percent_of(dram->size.percent_milli, ck->env->memory_bytes);
    else
        dram->size_bytes = dram->size.bytes;
    if (dram->size.kind != CONFIG_AMOUNT_AUTO)
        check_tier_size(ck, "dram", dram->size_bytes, dram_line);
    check_nodes(ck, dram->nodes, line_of(CONFIG_DRAM, &dram->section, &dram->nodes));
    if (cxl->size_bytes > 0)
        check_tier_size(ck, "cxl", cxl->size_bytes, line_of(CONFIG_CXL, &cxl->section, &cxl->size_bytes));
    uint64_t both;
    if (cxl->size_bytes > 0 && ck->env->memory_bytes &&
        (!add_u64(dram->size_bytes, cxl->size_bytes, &both) || both > ck->env->memory_bytes))
        check_error(ck, line_of(CONFIG_CXL, &cxl->section, &cxl->size_bytes),
                    "size: [tier.dram] and [tier.cxl] together have more than this machine's %s of memory",
                    size_print(ck->env->memory_bytes, text));
    check_nodes(ck, cxl->nodes, line_of(CONFIG_CXL, &cxl->section, &cxl->nodes));
    if (dram->nodes & cxl->nodes)
        check_error(ck, line_of(CONFIG_CXL, &cxl->section, &cxl->nodes), "nodes: node %d is also in [tier.dram]",
                    __builtin_ctzll(dram->nodes & cxl->nodes));
}

/* By two paths, too: a link and its target are one device. */
static bool same_device(const struct config_device *a, const struct config_device *b)
{
    struct stat st_a, st_b;

    if (strcmp(a->path, b->path) == 0)
        return true;
    if (stat(a->path, &st_a) < 0 || stat(b->path, &st_b) < 0)
        return false;
    if (S_ISBLK(st_a.st_mode) && S_ISBLK(st_b.st_mode))
        return st_a.st_rdev == st_b.st_rdev;
    return st_a.st_dev == st_b.st_dev && st_a.st_ino == st_b.st_ino;
}

static void check_devices(struct checker *ck)
{
    for (uint32_t i = 0; i < ck->config->n_devices; i++) {
        const struct config_device *d = &ck->config->devices[i];
        uint32_t line = line_of(CONFIG_DEVICE, &d->section, d->path);

        if (d->path[0] == '\0') {
            if (!line_told(ck, line))
                check_error(ck, line, "[device %s] has no path", d->section.name);
            continue;
        }
        if (d->capacity_bytes > 0 && d->capacity_bytes < TIER_BYTES_MIN)
            check_error(ck, line_of(CONFIG_DEVICE, &d->section, &d->capacity_bytes),
                        "capacity: [device %s] is smaller than 64 MiB", d->section.name);
        for (uint32_t j = 0; j < i; j++)
            if (same_device(d, &ck->config->devices[j])) {
                check_error(ck, line, "path: %s is already used by [device %s] on line %u", d->path,
                            ck->config->devices[j].section.name, ck->config->devices[j].section.line);
                break;
            }
    }
}

static void check_pool_access(struct checker *ck, struct config_pool *p)
{
    bool one_user = !p->users.any && p->users.n == 1 && p->groups.n == 0;

    p->is_trusted = one_user && p->trusted != CONFIG_TRUSTED_NO;
    if (line_told(ck, line_of(CONFIG_POOL, &p->section, &p->users)) ||
        line_told(ck, line_of(CONFIG_POOL, &p->section, &p->groups)))
        return;
    if (!p->users.any && p->users.n == 0 && p->groups.n == 0)
        check_error(ck, p->section.line, "[pool %s] lets nobody in: set users or groups", p->section.name);
    else if (p->trusted == CONFIG_TRUSTED_YES && !one_user)
        check_error(
            ck, line_of(CONFIG_POOL, &p->section, &p->trusted),
            "trusted: [pool %s] is open to %s. In a trusted pool each client can overwrite the others' bytes, so "
            "exactly one user and no group may open it; leave 'trusted' out, or give each user a pool",
            p->section.name,
            p->users.any       ? "everybody"
            : p->groups.n == 0 ? "more than one user"
                               : "a group");
}

/* What is known of a tier's size before anything is opened; 0: not known. */
static uint64_t tier_bytes_known(const struct spillway_config *c, enum config_tier tier)
{
    uint64_t sum = 0;

    if (tier == CONFIG_TIER_DRAM)
        return c->dram.size_bytes;
    if (tier == CONFIG_TIER_CXL)
        return c->cxl.size_bytes;
    for (uint32_t i = 0; tier == CONFIG_TIER_NVME && i < c->n_devices; i++)
        if (c->devices[i].capacity_bytes == 0 || !add_u64(sum, c->devices[i].capacity_bytes, &sum))
            return 0;
    return sum;
}

static bool tier_absent(const struct spillway_config *c, enum config_tier tier)
{
    return (tier == CONFIG_TIER_CXL && c->cxl.size_bytes == 0) || (tier == CONFIG_TIER_NVME && c->n_devices == 0);
}

/* One pool's budget, if it is one that cannot be: more than nothing of a tier that does not exist. */
static bool budget_impossible(struct checker *ck, const struct config_pool *p, enum config_tier tier, uint32_t line)
{
    const struct config_amount *a = &p->budgets[tier];

    if (tier == CONFIG_TIER_GPU && a->kind == CONFIG_AMOUNT_PERCENT) {
        check_error(ck, line, "gpu: a number of bytes, or 'auto': how much memory GPUs have is not known here");
        return true;
    }
    if (!tier_absent(ck->config, tier) || a->kind == CONFIG_AMOUNT_AUTO || (a->bytes == 0 && a->percent_milli == 0))
        return false;
    if (tier == CONFIG_TIER_CXL)
        check_error(ck, line, "cxl: there is no cxl tier; set size in [tier.cxl], or leave this out");
    else
        check_error(ck, line, "nvme: there is no device; add a [device NAME] section, or leave this out");
    return true;
}

/* Told once a tier, at the pool that goes over the edge. */
static void check_budgets(struct checker *ck, enum config_tier tier)
{
    const struct spillway_config *c = ck->config;
    uint64_t total = tier_bytes_known(c, tier), bytes = 0, percent_milli = 0;
    const char *tier_name = config_tier_names[tier];
    char sum_text[UNITS_TEXT_BYTES], total_text[UNITS_TEXT_BYTES];

    for (uint32_t i = 0; i < c->n_pools; i++) {
        const struct config_pool *p = &c->pools[i];
        const struct config_amount *a = &p->budgets[tier];
        uint32_t line = line_of(CONFIG_POOL, &p->section, a);

        if (budget_impossible(ck, p, tier, line) || a->kind == CONFIG_AMOUNT_AUTO)
            continue;
        percent_milli += a->percent_milli;
        if (!add_u64(bytes, a->bytes, &bytes))
            bytes = UINT64_MAX;
        if (percent_milli > PERCENT_MILLI_WHOLE) {
            check_error(ck, line, "%s: the pools up to here have %s %% of the tier", tier_name,
                        milli_print(percent_milli, sum_text));
            return;
        }
        uint64_t sum;
        if (total != 0 && (!add_u64(percent_of((uint32_t)percent_milli, total), bytes, &sum) || sum > total)) {
            check_error(ck, line, "%s: the pools up to here have %s, but the tier has %s", tier_name,
                        size_print(sum, sum_text), size_print(total, total_text));
            return;
        }
    }
}

static void check_pools_get_dram(struct checker *ck)
{
    const struct spillway_config *c = ck->config;

    for (uint32_t i = 0; i < c->n_pools; i++)
        if (config_pool_budget_bytes(c, i, CONFIG_TIER_DRAM, c->dram.size_bytes) < SLAB_BYTES_MIN)
            check_error(ck, line_of(CONFIG_POOL, &c->pools[i].section, &c->pools[i].budgets[CONFIG_TIER_DRAM]),
                        "dram: [pool %s] gets less than 16 MiB, too little to work; give it more, or the others less",
                        c->pools[i].section.name);
}

/* What one session may hold beside a pool that is smaller than that. */
static void check_session_bytes(struct checker *ck, uint32_t pool)
{
    const struct spillway_config *c = ck->config;
    const struct config_pool *p = &c->pools[pool];
    char session[UNITS_TEXT_BYTES], memory[UNITS_TEXT_BYTES];
    uint64_t bytes = config_pool_budget_bytes(c, pool, CONFIG_TIER_DRAM, c->dram.size_bytes) +
                     config_pool_budget_bytes(c, pool, CONFIG_TIER_CXL, c->cxl.size_bytes);

    if (p->session_bytes > bytes)
        check_error(ck, line_of(CONFIG_POOL, &p->section, &p->session_bytes),
                    "session_bytes: %s for one connection, but [pool %s] has only %s of memory",
                    size_print(p->session_bytes, session), p->section.name, size_print(bytes, memory));
}

static void check_write_budget(struct checker *ck, const struct config_pool *p)
{
    if (p->write_budget.bytes > 0 && ck->config->n_devices == 0)
        check_error(ck, line_of(CONFIG_POOL, &p->section, &p->write_budget),
                    "write_budget: there is no device; add a [device NAME] section, or leave this out");
}

static void check_pool_gpus(struct checker *ck, const struct config_pool *p)
{
    const struct config_gpus *served = &ck->config->daemon.gpus;
    char text[CONFIG_GPU_BYTES];

    for (uint32_t i = 0; i < p->gpus.n; i++) {
        if (config_gpus_have(served, p->gpus.at[i].uuid))
            continue;
        config_gpu_print(&p->gpus.at[i], text);
        check_error(ck, line_of(CONFIG_POOL, &p->section, &p->gpus), "gpus: %s is not in gpus of [daemon]", text);
        return;
    }
}

static void check_daemon(struct checker *ck)
{
    const struct config_daemon *d = &ck->config->daemon;

    if (strlen(d->socket) > 107) /* sockaddr_un.sun_path, with its NUL */
        check_error(ck, line_of(CONFIG_DAEMON, &d->section, d->socket),
                    "socket: the path has %zu characters; the kernel takes 107", strlen(d->socket));
    uint32_t line = line_of(CONFIG_DAEMON, &d->section, &d->uid_sessions);
    if (d->uid_sessions > d->max_sessions && line != d->section.line) /* the default is no mistake of the admin's */
        check_error(ck, line, "uid_sessions: %u for one user, but max_sessions is %u for all", d->uid_sessions,
                    d->max_sessions);
}

void config_check(struct spillway_config *config, const struct config_env *env, struct config_errors *errors)
{
    struct checker ck = {.config = config, .env = env, .errors = errors};
    bool parsed = errors->n == 0;

    check_daemon(&ck);
    check_tiers(&ck);
    check_devices(&ck);
    for (uint32_t i = 0; i < config->n_pools; i++)
        check_pool_access(&ck, &config->pools[i]);
    for (enum config_tier tier = 0; parsed && tier < CONFIG_TIERS; tier++) /* else the sums have wrong terms */
        check_budgets(&ck, tier);
    for (uint32_t i = 0; parsed && i < config->n_pools; i++)
        check_write_budget(&ck, &config->pools[i]);
    for (uint32_t i = 0; parsed && i < config->n_pools; i++)
        check_pool_gpus(&ck, &config->pools[i]);
    if (errors->n == 0)
        check_pools_get_dram(&ck);
    for (uint32_t i = 0; errors->n == 0 && i < config->n_pools; i++)
        check_session_bytes(&ck, i);
}

uint64_t config_pool_budget_bytes(const struct spillway_config *config, uint32_t pool, enum config_tier tier,
                                  uint64_t tier_bytes)
{
    const struct config_amount *mine = &config->pools[pool].budgets[tier];
    uint64_t named = 0, n_auto = 0; /* n_auto counts this pool too, so it ends above 0 */

    if (mine->kind == CONFIG_AMOUNT_PERCENT)
        return percent_of(mine->percent_milli, tier_bytes);
    if (mine->kind == CONFIG_AMOUNT_BYTES)
        return MIN(mine->bytes, tier_bytes);
    for (uint32_t i = 0; i < config->n_pools; i++) {
        const struct config_amount *a = &config->pools[i].budgets[tier];
        uint64_t bytes = a->kind == CONFIG_AMOUNT_PERCENT ? percent_of(a->percent_milli, tier_bytes) : a->bytes;

        n_auto += a->kind == CONFIG_AMOUNT_AUTO;
        if (a->kind != CONFIG_AMOUNT_AUTO && !add_u64(named, bytes, &named))
            named = UINT64_MAX;
    }
    return named >= tier_bytes ? 0 : (tier_bytes - named) / MAX(n_auto, UINT64_C(1));
}
