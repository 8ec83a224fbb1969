/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the composition at start: which devices there are and what is on them, which engine gets which partition, what
 * each engine is made of. Every refusal names the thing and what to do about it.
 *
 * Partition p of a device belongs to engine p % n_engines, so the same configuration always finds its objects again.
 */
#include "daemon/startup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/control_budget.h"
#include "daemon/fdstore.h"
#include "daemon/gpu.h"
#include "daemon/log.h"
#include "daemon/sd.h"
#include "daemon/session.h"
#include "daemon/session_kept.h"
#include "daemon/startup_hugepages.h"
#include "include/base/cleanup.h"
#include "include/base/kill_point.h"
#include "include/base/units.h"
#include "include/base/user_dir.h"
#include "io/grower.h"
#include "io/memory.h"
#include "io/workers.h"
#include "tiering/policy.h"

#define WORKERS_DEFAULT 4
#define POPULATE_THREADS_DEFAULT 4
#define PARTS_DEADLINE_NS UINT64_C(60000000000)
#define MAX_OBJECTS_MIN 65536
#define MAX_OBJECTS_AUTO (UINT64_C(1) << 26) /* of the daemon, unless max_objects says otherwise */
#define DRAM_BYTES_PER_OBJECT (4 * KIB)
#define NVME_BYTES_PER_OBJECT (32 * KIB)

/* --- Machine ----------------------------------------------------------------------------------------------------- */

struct machine {
    uint32_t n_cpus;
    uint32_t n_dram, n_cxl;
    uint32_t dram[NODES_MAX], cxl[NODES_MAX];
    uint64_t cxl_bytes[NODES_MAX];
};

static bool in_mask(uint64_t mask, uint32_t node)
{
    return mask == 0 || (node < 64 && (mask >> node & 1) != 0);
}

static int machine_read(const struct spillway_config *config, struct machine *ret_machine)
{
    struct memory_nodes nodes;
    struct machine m = {.n_cpus = (uint32_t)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1L)};
    int r = memory_nodes_read(&nodes);

    if (r < 0)
        return r;
    for (uint32_t i = 0; i < nodes.n; i++) {
        const struct memory_node *node = &nodes.node[i];

        if (node->has_cpus && in_mask(config->dram.nodes, node->id)) {
            m.dram[m.n_dram++] = node->id;
        } else if (!node->has_cpus && config->cxl.size_bytes > 0 && in_mask(config->cxl.nodes, node->id)) {
            m.cxl_bytes[m.n_cxl] = node->total_bytes;
            m.cxl[m.n_cxl++] = node->id;
        }
    }
    if (m.n_dram == 0) {
        log_error("[tier.dram] nodes: none of them is a node of this machine with CPUs and memory: numactl -H shows "
                  "what there is");
        return -ENXIO;
    }
    if (config->cxl.size_bytes > 0 && m.n_cxl == 0)
        log_warning("[tier.cxl] there is no node with memory and no CPU%s: the tier stays empty",
                    config->cxl.nodes ? " among `nodes`" : "");
    if (!nodes.is_numa)
        m.dram[0] = MEMORY_NODE_ANY;
    *ret_machine = m;
    return 0;
}

/* Memory is shared alike: the pools of the first engine are those of each. */
static int check_hugepages(const struct control *control, const struct machine *machine,
                           const struct tiering_pool_config *pools)
{
    struct hugepages need = {0};

    /* What the last process left has them already. */
    if (control->config->dram.hugepages != CONFIG_HUGEPAGES_REQUIRE || kept_is_old(control->kept))
        return 0;
    for (uint32_t e = 0; e < control->n_engines; e++)
        for (uint32_t i = 0; i < control->config->n_pools; i++)
            hugepages_add(&need, machine->dram[e % machine->n_dram], pools[i].dram_bytes);
    return hugepages_check(&need);
}

void startup_limits(const struct control *control)
{
    struct rlimit files;
    struct memory_limits memory;
    char limit[UNITS_TEXT_BYTES];

    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    /* A connection takes two descriptors, and each of its rings three. */
    uint64_t wanted = control->config->daemon.max_sessions * UINT64_C(5);

    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < wanted)
        log_notice("%llu descriptors are fewer than %u sessions may take (%llu): raise `ulimit -n` or LimitNOFILE=",
                   (unsigned long long)files.rlim_cur, control->config->daemon.max_sessions,
                   (unsigned long long)wanted);
    memory_limits_read(&memory);
    if (!memory.can_lock_all && memory.memlock_bytes < control->config->dram.size_bytes)
        log_notice("at most %s of memory can be locked: raise it with `ulimit -l` or LimitMEMLOCK= "
                   "(until then I/O is slower, and pages can be swapped out)",
                   size_print(memory.memlock_bytes, limit));
}

int startup_runtime_dir(const char *socket_path)
{
    char dir[CONFIG_VALUE_BYTES_MAX + 1], own[USER_DIR_BYTES];
    struct stat st;

    snprintf(dir, sizeof(dir), "%s", socket_path);
    char *slash = strrchr(dir, '/');

    if (!slash || slash == dir)
        return 0;
    *slash = '\0';
    if (mkdir(dir, 0700) == 0)
        return 0;
    if (errno != EEXIST || lstat(dir, &st) < 0)
        return -errno;
    /* In /tmp anybody may have been first. */
    if (!S_ISDIR(st.st_mode) || (st.st_uid != geteuid() && st.st_uid != 0))
        return -EPERM;
    user_dir_fallback(geteuid(), own);
    return strcmp(dir, own) == 0 && !user_dir_is_private(dir, geteuid()) ? -EPERM : 0;
}

/* --- Devices ----------------------------------------------------------------------------------------------------- */

static void device_refuse(const struct config_device *device, int r, const char *why)
{
    if (r == -EMEDIUMTYPE)
        log_error("[device %s] %s is not formatted for Spillway: spillctl device format --capacity SIZE %s",
                  device->section.name, device->path, device->path);
    else if (r == -ENOENT)
        log_error("[device %s] %s does not exist: spillctl device format --capacity SIZE %s", device->section.name,
                  device->path, device->path);
    else
        log_error("[device %s] %s: %s (%s)", device->section.name, device->path, why, log_errno(r));
}

/* A daemon that has just ended holds its lock until the kernel is through with its last request. */
static int device_open_patiently(const char *path, uint32_t flags, struct device *ret_device, const char **ret_why)
{
    uint64_t end_ns = loop_now_ns() + DEVICE_LOCK_WAIT_MS * UINT64_C(1000000);

    for (bool said = false;; said = true) {
        int r = device_open(path, flags, ret_device, ret_why);

        if (r != -EBUSY || loop_now_ns() > end_ns)
            return r;
        if (!said)
            log_info("%s is in use: waiting %u s for its last owner's requests to end", path,
                     DEVICE_LOCK_WAIT_MS / 1000);
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
}

static int device_identify(struct control *control, uint32_t index)
{
    struct control_device *d = &control->devices[index];
    const struct config_device *config = &control->config->devices[index];
    struct uring *uring = control->engines[0]->uring;
    uint16_t dev = 0;
    const char *why = "it cannot be opened";
    kill_point("startup.device");
    int r = device_open_patiently(config->path, config->sparse ? DEVICE_SPARSE : 0, &d->device, &why);

    if (r == 0)
        r = uring_device_add(uring, &d->device, 0, &dev);
    if (r == 0)
        r = store_identify(uring_backend(uring), dev, d->device.size_bytes, &d->identity, &why);
    if (r < 0) {
        device_refuse(config, r, why);
        return r;
    }
    kill_point("startup.device_known");
    d->used_bytes = d->identity.format.device_bytes;
    if (config->capacity_bytes > 0)
        d->used_bytes = MIN(d->used_bytes, config->capacity_bytes);
    d->first_dev = dev;
    return 0;
}

/* Each engine that has a partition there knows the device by a number of its own. */
static int device_attach(struct control *control, uint32_t index)
{
    struct control_device *d = &control->devices[index];
    const struct config_device *config = &control->config->devices[index];
    uint16_t devs[ENGINES_MAX] = {0};
    const char *why = "too many devices";

    for (uint16_t p = 0; p < d->identity.format.partitions; p++) {
        struct engine *engine = control->engines[p % control->n_engines];
        uint16_t *dev = &devs[p % control->n_engines];
        int r = 0;

        if (p < control->n_engines) {
            *dev = d->first_dev;
            if (p > 0)
                r = uring_device_add(engine->uring, &d->device, 0, dev);
        }
        if (r == 0)
            r = engine_store_add(engine, *dev, index, config->section.name, p, d->device.size_bytes, &why);
        if (r < 0) {
            device_refuse(config, r, why);
            return r;
        }
    }
    kill_point("startup.device_open");
    char size[UNITS_TEXT_BYTES];

    log_info("[device %s] %s: %s in %u partition%s%s", config->section.name, config->path,
             size_print(d->used_bytes, size), d->identity.format.partitions,
             d->identity.format.partitions == 1 ? "" : "s",
             d->device.is_direct ? "" : "; its file system has no O_DIRECT, so bytes go through the page cache");
    return 0;
}

/* --- Engines ----------------------------------------------------------------------------------------------------- */

static uint32_t auto_max_objects(const struct spillway_config *config, uint64_t nvme_bytes, uint32_t n_engines)
{
    uint64_t n = config->daemon.max_objects;

    if (n == 0)
        n = MIN((config->dram.size_bytes + config->cxl.size_bytes) / DRAM_BYTES_PER_OBJECT +
                    nvme_bytes / NVME_BYTES_PER_OBJECT,
                MAX_OBJECTS_AUTO);
    return (uint32_t)MAX(n / n_engines, (uint64_t)MAX_OBJECTS_MIN);
}

static int class_configs(const struct spillway_config *config, struct tiering_class_config *ret_classes)
{
    /* The bytes of an optimizer's step pass through the CPU; KV blocks, weights and activations only through DMA. */
    static const enum tiering_placement placement_of[TIERING_CLASSES] = {
        [SPW_CLASS_GENERIC] = TIERING_PLACE_ANY,    [SPW_CLASS_KV] = TIERING_PLACE_DMA,
        [SPW_CLASS_WEIGHTS] = TIERING_PLACE_DMA,    [SPW_CLASS_ACTIVATION] = TIERING_PLACE_DMA,
        [SPW_CLASS_OPTIMIZER] = TIERING_PLACE_DRAM,
    };

    for (uint32_t i = 0; i < TIERING_CLASSES; i++) {
        const struct config_class *c = control_class(config, i);

        ret_classes[i].policy = policy_by_name(c->policy);
        ret_classes[i].durability = (uint8_t)c->durability;
        ret_classes[i].weight = c->weight;
        ret_classes[i].placement = (uint8_t)placement_of[i];
        if (!ret_classes[i].policy) {
            log_error("[class %s] policy: there is no policy '%s'", c->section.name, c->policy);
            return -EINVAL;
        }
    }
    static_assert((int)CONFIG_DURABILITY_CACHE == (int)STORE_CACHE &&
                      (int)CONFIG_DURABILITY_DURABLE == (int)STORE_DURABLE,
                  "the same numbers");
    return 0;
}

static struct memory_chunk_config chunk_config(const struct spillway_config *config, const struct machine *machine,
                                               uint32_t node)
{
    static const enum memory_pages pages[] = {
        [CONFIG_HUGEPAGES_TRY] = MEMORY_PAGES_AUTO,
        [CONFIG_HUGEPAGES_REQUIRE] = MEMORY_PAGES_HUGE,
        [CONFIG_HUGEPAGES_NEVER] = MEMORY_PAGES_SMALL,
    };

    return (struct memory_chunk_config){
        .node = node,
        .pages = pages[config->dram.hugepages],
        .no_fallback = config->dram.hugepages == CONFIG_HUGEPAGES_REQUIRE,
        .lock = true,
        .force_small_pages = config->dram.force_small_pages,
        .threads = MIN(machine->n_cpus, (uint32_t)POPULATE_THREADS_DEFAULT),
    };
}

static uint32_t workers_of_engine(const struct spillway_config *config, const struct machine *machine)
{
    if (config->daemon.workers > 0)
        return config->daemon.workers;
    /* Where there are two CPUs, the engine and a client need them. */
    return machine->n_cpus <= 2 ? 1 : MIN(machine->n_cpus, (uint32_t)WORKERS_DEFAULT);
}

static int engine_make(struct control *control, uint32_t number, const struct machine *machine,
                       const struct tiering_pool_config *pools, uint32_t max_objects)
{
    const struct spillway_config *config = control->config;
    uint32_t node = machine->dram[number % machine->n_dram];
    const char *why;
    struct engine_config engine = {
        .number = number,
        .spin_ns = config->daemon.spin_us * UINT64_C(1000),
        .user_percent = config->daemon.uid_requests_percent,
        .inject = config->daemon.inject,
        .max_requests = DEFAULT_REQUESTS,
        .max_waits = DEFAULT_WAITS,
        .gpus = control->pool_gpus,
        .fdstore = control->fdstore,
        .control = &control->mailbox,
        .chunk_note = gpus_chunk_note,
        .chunk_note_ctx = control->gpus,
        .flush_failed = control_flush_failed,
        .flush_failed_ctx = control,
        .uring = {.workers = control->workers,
                  .lone_worker = workers_of_engine(config, machine) == 1,
                  .grower = control->grower,
                  .chunk = chunk_config(config, machine, node)},
        .tiering = {.pools = pools,
                    .n_pools = config->n_pools,
                    .node = node,
                    .dram_nodes = machine->dram,
                    .n_dram_nodes = machine->n_dram,
                    .cxl_nodes = machine->cxl,
                    .cxl_weights = machine->cxl_bytes,
                    .n_cxl_nodes = machine->n_cxl,
                    .max_objects = max_objects,
                    .max_leases = MIN(max_objects, 4 * config->daemon.session_leases),
                    .clean_percent = config->dram.clean_percent,
                    .chunk_cap_min = CHUNK_CAP_BYTES_MIN,
                    .memory_on_demand = !config->dram.pretouch,
                    .parts_deadline_ns = PARTS_DEADLINE_NS},
    };

    if (getrandom(&engine.tiering.hash_seed, sizeof(engine.tiering.hash_seed), 0) < 0)
        return -errno;
    int r = class_configs(config, engine.tiering.classes);

    if (r < 0)
        return r;
    r = engine_new(&engine, &control->engines[number], &why);
    if (r < 0)
        log_error("engine %u: %s (%s)", number, why, log_errno(r));
    return r;
}

/* Spaces that the devices brought back. */
static int engines_list_spaces(struct control *control)
{
    for (uint32_t e = 0; e < control->n_engines; e++) {
        struct tiering_space_info info;

        for (uint32_t i = 0; tiering_space_at(control->engines[e]->tiering, i, &info); i++) {
            if (info.pool >= control->config->n_pools) /* of a pool that is no longer configured */
                continue;
            int r = spaces_add(control->spaces, control->config->n_pools, info.pool, info.digest, e);

            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* What is on the devices is known only now: each engine gets its share. */
static void engines_share(struct control *control)
{
    struct engine_tuning tuning; /* the main thread's stack has room for that */

    for (uint32_t e = 0; e < control->n_engines; e++) {
        if (control->config->n_devices > 0 && control->engines[e]->n_stores == 0)
            log_warning("engine %u has no partition of any device: its objects stay in memory; format devices with "
                        "--partitions %u, or set engines in [daemon]",
                        e, control->n_engines);
        control_tuning(control, e, &tuning);
        for (uint32_t p = 0; p < tuning.n_pools; p++)
            budgets_apply(control, e, p, &tuning.pools[p]);
        engine_tune_now(control->engines[e], &tuning);
    }
}

static int threads_make(struct control *control, const struct machine *machine)
{
    uint32_t n = workers_of_engine(control->config, machine) * control->n_engines;
    struct workers_config workers = {.spin_us = control->config->daemon.spin_us,
                                     .threads = MIN(n, (uint32_t)WORKERS_MAX)};
    int r = workers_new(&workers, &control->workers);

    kill_point("startup.workers");
    return r < 0 ? r : grower_new(&control->grower);
}

/* 0 if it is not known. A block device has no st_size. */
static uint64_t path_size(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    if (fd < 0)
        return 0;
    off_t size = lseek(fd, 0, SEEK_END);

    close(fd);
    return size < 0 ? 0 : (uint64_t)size;
}

static void devices_size(struct control *control)
{
    /* How many objects an engine must be able to name depends on devices that only an engine can read. What the files
     * say is near enough. */
    for (uint32_t i = 0; i < control->config->n_devices; i++) {
        control->devices[i].device = DEVICE_NONE;
        control->devices[i].used_bytes = path_size(control->config->devices[i].path);
        if (control->config->devices[i].capacity_bytes > 0)
            control->devices[i].used_bytes = control->config->devices[i].capacity_bytes;
    }
}

/* What the last process left of sessions; without it what it left of engines is of no use: owners have numbers. */
static int sessions_take(struct control *control)
{
    const char *why;
    int r = kept_new(control->fdstore, control->n_engines, &control->kept, &why);

    if (r < 0)
        return r;
    if (why)
        log_warning("what the last process left is of no use: %s", why);
    kept_helpers_end(control->kept);
    if (!kept_is_old(control->kept))
        (void)fdstore_close_rest(control->fdstore);
    if (!fdstore_is_kept(control->fdstore))
        log_info("no service manager keeps descriptors: memory and sessions end with this process");
    return 0;
}

/* Sessions go on if nothing of what they may have leased is missing. */
static int sessions_go_on(struct control *control)
{
    bool is_warm = kept_is_old(control->kept);

    for (uint32_t e = 0; e < control->n_engines; e++) {
        const char *why = NULL;

        if (tiering_is_warm(control->engines[e]->tiering, &why))
            continue;
        is_warm = false;
        if (why)
            log_warning("engine %u: what the last process had in memory is of no use: %s", e, why);
    }
    if (!is_warm && kept_is_old(control->kept)) {
        log_warning("what the last process had in memory is gone, and its sessions with it");
        kept_set_cold(control->kept);
    }
    int r = kept_is_old(control->kept) ? sessions_restore(control) : 0; /* owners, if nothing else */

    (void)fdstore_close_rest(control->fdstore);
    return r;
}

/* Before the engines run: until then what is theirs can be read here. */
static void say_recovered(const struct control *control)
{
    char log[UNITS_TEXT_BYTES];

    for (uint32_t e = 0; e < control->n_engines; e++) {
        const struct engine *engine = control->engines[e];
        uint64_t pieces = 0;

        for (uint32_t i = 0; i < engine->n_stores; i++) {
            const struct engine_store *at = &engine->store_at[i];
            const struct config_device *config = &control->config->devices[at->device];
            struct store_stat s;

            tiering_store_stat(engine->tiering, i, &s);
            pieces += s.recovered_pieces;
            log_info("[device %s] %s, partition %u: %llu pieces from %s of log, read in %.2f s", config->section.name,
                     config->path, at->partition, (unsigned long long)s.recovered_pieces,
                     size_print(s.recovered_log_bytes, log), (double)at->log_ns * 1e-9);
        }
        if (engine->n_stores > 0)
            log_info("engine %u: recovery of %llu pieces took %.2f s", e, (unsigned long long)pieces,
                     (double)engine->recovery_ns * 1e-9);
    }
}

static void say_warm(const struct control *control)
{
    struct tiering_warm_counts sum = {0};
    uint64_t recovery_ns = 0;
    char size[UNITS_TEXT_BYTES];

    for (uint32_t e = 0; e < control->n_engines; e++) {
        struct tiering_warm_counts counts;

        tiering_warm_counts(control->engines[e]->tiering, &counts);
        sum.objects += counts.objects;
        sum.leases += counts.leases;
        sum.leases_ended += counts.leases_ended;
        sum.memory_bytes += counts.memory_bytes;
        sum.lost += counts.lost;
        recovery_ns += control->engines[e]->recovery_ns;
    }
    if (sum.memory_bytes > 0)
        log_notice(
            "the last process left %s of memory with %llu objects and %llu leases (%llu have ended, %llu objects are "
            "lost), in place after %.2f s",
            size_print(sum.memory_bytes, size), (unsigned long long)sum.objects, (unsigned long long)sum.leases,
            (unsigned long long)sum.leases_ended, (unsigned long long)sum.lost, (double)recovery_ns * 1e-9);
}

int startup_engines(struct control *control)
{
    const struct spillway_config *config = control->config;
    struct machine machine;
    struct tiering_pool_config pools[POOLS_MAX] = {0}; /* the main thread's stack has room for that */
    int r = machine_read(config, &machine);

    if (r < 0)
        return r;
    control->n_engines = config->daemon.engines ? config->daemon.engines : machine.n_dram;
    r = sessions_take(control);
    if (r < 0) {
        log_error("what the last process left cannot be read: %s", log_errno(r));
        return r;
    }
    r = threads_make(control, &machine);
    if (r < 0) {
        log_error("threads cannot be made: %s", log_errno(r));
        return r;
    }
    r = gpus_new(control, &control->gpus);
    if (r < 0) {
        log_error("what GPUs' helpers need cannot be made or found: %s", log_errno(r));
        return r;
    }
    devices_size(control);
    control_tell_gpus(control);
    uint32_t max_objects = auto_max_objects(config, control_nvme_bytes(control), control->n_engines);

    for (uint32_t i = 0; i < config->n_pools; i++)
        control_pool_config(control, 0, i, &pools[i]); /* devices: see engines_share() */
    r = check_hugepages(control, &machine, pools);
    for (uint32_t i = 0; i < control->n_engines && r == 0; i++)
        r = engine_make(control, i, &machine, pools, max_objects);
    for (uint32_t i = 0; i < config->n_devices && r == 0; i++)
        r = device_identify(control, i);
    if (config->n_devices > 0 && r == 0) {
        log_info("reading the logs of %u device%s", config->n_devices, config->n_devices == 1 ? "" : "s");
        sd_status("reading the devices' logs");
    }
    for (uint32_t i = 0; i < config->n_devices && r == 0; i++)
        r = device_attach(control, i);
    if (r == 0)
        r = budgets_new(control);
    if (r == 0) {
        engines_share(control);
        kill_point("startup.shared");
        r = engines_list_spaces(control);
    }
    if (r == 0)
        r = sessions_go_on(control);
    for (uint32_t i = 0; i < control->n_engines && r == 0; i++)
        r = engine_begin(control->engines[i]);
    if (r == 0)
        say_recovered(control);
    if (r == -ESTALE) { /* the next try finds nothing, and starts */
        log_error("the devices are not those of the last process: what it had in memory is given up");
        fdstore_forget_all(control->fdstore);
    }
    for (uint32_t i = 0; i < control->n_engines && r == 0; i++) {
        kill_point("startup.engine_run");
        r = engine_run(control->engines[i]);
        if (r < 0)
            log_error("engine %u does not start: %s", i, log_errno(r));
    }
    if (r == 0) {
        say_warm(control);
        gpus_configured(control->gpus);
    }
    return r;
}

void startup_undo(struct control *control)
{
    for (uint32_t i = 0; i < control->n_engines; i++) /* those that run, if another one could not be started */
        engine_end(control->engines[i]);
    grower_free(control->grower);
    for (uint32_t i = 0; i < control->n_engines; i++)
        control->engines[i] = engine_free(control->engines[i]);
    gpus_free(control->gpus);
    workers_free(control->workers);
    for (uint32_t i = 0; i < control->config->n_devices; i++)
        if (control->devices[i].device.fd >= 0)
            device_close(&control->devices[i].device);
    control->gpus = NULL;
    control->grower = NULL;
    control->workers = NULL;
}
