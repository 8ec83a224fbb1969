/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon as a whole, on the control (main) thread: event loop, engines, sessions, the daemon's own life.
 */
#pragma once

#include <sys/types.h>

#include "daemon/config.h"
#include "daemon/engine.h"
#include "daemon/gpu_launcher.h"
#include "daemon/listener.h"
#include "daemon/loop.h"
#include "daemon/spaces.h"
#include "io/engine_queue.h"
#include "io/store.h"

struct fdstore;
struct gpus;
struct grower;
struct kept;
struct workers;

struct control_device {
    struct device device;
    struct store_identity identity;
    uint64_t used_bytes; /* of the device: as formatted, or less */
    uint16_t first_dev;  /* engine 0's number of it */
    struct distrust_call distrusts[ENGINES_MAX];
    bool is_distrusted; /* a flush failed at some engine, and all others were told */
};

/*
 * STARTING ──▶ READY ──▶ DRAINING ──▶ STOPPING ──▶ GONE
 *     └────────────────────┘
 * Memory is being taken; clients are served; sessions end and dirty bytes are written; engines end; the loop ends.
 * control_set_state() is the one place that assigns it.
 */
enum control_state { CONTROL_STARTING, CONTROL_READY, CONTROL_DRAINING, CONTROL_STOPPING, CONTROL_GONE };

struct engine_watch {
    struct ping_call ping;
    struct stop_call stop;
    bool pinging;
    uint64_t pinged_ns, answered_ns;
    uint64_t have_bytes, want_bytes, dirty_bytes, refused_bytes;
    bool is_ready, is_drained, is_stopped;
};

struct control {
    struct loop loop;
    struct engine_queue mailbox; /* engines post here */
    struct loop_source mailbox_source, signal_source;
    struct loop_timer watch_timer;
    enum control_state state;
    bool is_closed;   /* DRAINING: nobody is served any more */
    bool is_draining; /* DRAINING: the engines write back */
    uint64_t state_since_ns, said_ns;
    int exit_status;

    struct spillway_config *config;
    struct config_env env;
    const char *config_path; /* NULL: none */
    bool user_mode;
    uid_t uid;
    gid_t admin_gid;
    bool has_admin_gid;
    uint64_t started_ns;
    uint64_t watchdog_ns; /* 0: nobody watches */

    uint32_t n_engines;
    struct engine *engines[ENGINES_MAX];
    struct engine_watch watches[ENGINES_MAX];
    struct workers *workers;
    struct grower *grower;
    struct control_device devices[DEVICES_MAX];
    struct tune_call *tune;         /* a reload on its way to the engines */
    struct config_changes *pending; /* what the last reload changed, and what of it waits for a restart; or NULL */
    uint32_t n_tuning;
    struct budgets *budgets; /* from READY on */

    struct fdstore *fdstore;
    struct kept *kept;         /* of sessions and owners, for the next process */
    bool keeps;                /* DRAINING: the next process goes on with the sessions */
    struct session *successor; /* of the process that takes over; NULL: none */
    struct listener listener;
    struct list sessions;
    uint32_t n_sessions, n_refused;
    struct list accounts, owners;
    uint32_t n_owners;
    struct spaces *spaces;
    struct gpus *gpus;
    struct gpu_launcher launcher;
    struct pool_gpu_stat pool_gpus[POOLS_MAX]; /* engines read them */
};

/* --- shares.c --- */
/* The config's part of tiering's pools: that engine's share of each budget. Memory is shared alike, a device by who
 * has its partitions. What an engine may have now is budgets_granted()'s to say. */
void control_pool_config(const struct control *control, uint32_t engine, uint32_t pool,
                         struct tiering_pool_config *ret_config);
/* The class that an SPW_CLASS_… names. */
const struct config_class *control_class(const struct spillway_config *config, uint32_t spw_class);
/* All that an engine can be told while it runs. */
void control_tuning(const struct control *control, uint32_t engine, struct engine_tuning *ret_tuning);
/* And what they look at for themselves: pools' budgets on GPUs. */
void control_tell_gpus(struct control *control);
uint64_t control_nvme_bytes(const struct control *control);

/* --- control.c --- */
/* Looks the configured group up. -ENOENT. */
must_check int control_find_admin_group(struct control *control);
/* Of so many bytes of all devices, the part that lies in this engine's partitions. */
uint64_t control_nvme_of_engine(const struct control *control, uint32_t engine, uint64_t bytes);

/* For engine_config.flush_failed. ctx: the control. */
void control_flush_failed(void *ctx, uint32_t engine, uint32_t device, int why);
/* Runs until the daemon is to end; what the process should exit with. Engines run already. */
int control_run(struct control *control);
must_check int control_init(struct control *control);
void control_deinit(struct control *control);
void control_stop(struct control *control, const char *why);
/* The same, and all that this process has goes to the one behind that session. False: not now. */
must_check bool control_hand_over(struct control *control, struct session *session);
void control_reload(struct control *control);
/* The last session is gone, say. */
void control_session_gone(struct control *control);
