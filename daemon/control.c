/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the daemon's life on the control thread: start-up progress, signals, reloads, the watchdog, and the way down.
 *
 * The watchdog tells the truth: the service manager hears WATCHDOG=1 only while every engine answers its pings. Pings
 * also carry the progress of start-up and of the drain.
 */
#include "daemon/control.h"

#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "daemon/control_budget.h"
#include "daemon/fdstore.h"
#include "daemon/gpu.h"
#include "daemon/handover.h"
#include "daemon/log.h"
#include "daemon/owner.h"
#include "daemon/sd.h"
#include "daemon/session.h"
#include "daemon/session_kept.h"
#include "include/base/cleanup.h"
#include "include/base/kill_point.h"
#include "include/base/units.h"
#include "io/sandbox.h"
#include "io/workers.h"

#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)
#define SAY_NS (2 * NS_PER_S) /* progress of whatever takes longer */
#define PING_STARTING_NS (20 * NS_PER_MS)
#define PING_NS NS_PER_S
#define DRAIN_SERVING_NS (30 * NS_PER_S)
#define ENGINE_DEAD_NS (10 * NS_PER_S) /* without an answer: no WATCHDOG=1 any more */

static void control_step(struct control *control);

static void control_set_state(struct control *control, enum control_state state)
{
    control->state = state;
    control->state_since_ns = control->said_ns = loop_now_ns();
}

/* --- Engines: are they alive, and how far? ----------------------------------------------------------------------- */

static void ping_answered(struct call *base)
{
    struct engine_watch *watch = container_of(base, struct engine_watch, ping.call);
    struct control *control = base->at_control_ctx;

    watch->pinging = false;
    watch->answered_ns = loop_now_ns();
    watch->have_bytes = watch->ping.have_bytes;
    watch->want_bytes = watch->ping.want_bytes;
    watch->dirty_bytes = watch->ping.dirty_bytes;
    watch->refused_bytes = watch->ping.refused_bytes;
    watch->is_ready |= watch->ping.is_ready;
    control_step(control);
}

static void control_ping(struct control *control)
{
    for (uint32_t i = 0; i < control->n_engines; i++) {
        struct engine_watch *watch = &control->watches[i];

        if (watch->pinging || watch->is_stopped)
            continue;
        watch->pinging = true;
        watch->pinged_ns = loop_now_ns();
        watch->ping.call.at_control = ping_answered;
        watch->ping.call.at_control_ctx = control;
        engine_ping(control->engines[i], &watch->ping);
    }
}

static bool engines_are_alive(const struct control *control)
{
    uint64_t now_ns = loop_now_ns();

    for (uint32_t i = 0; i < control->n_engines; i++) {
        const struct engine_watch *watch = &control->watches[i];

        if (watch->pinging && now_ns - watch->pinged_ns > ENGINE_DEAD_NS)
            return false;
    }
    return true;
}

static void say_starting(uint64_t have_bytes, uint64_t want_bytes)
{
    unsigned long long have_mib = have_bytes / MIB, want_mib = want_bytes / MIB;

    log_info("taking memory: %llu of %llu MiB", have_mib, want_mib);
    sd_status("taking memory: %llu of %llu MiB", have_mib, want_mib);
}

static void say_draining(uint64_t dirty_bytes, uint32_t n_sessions)
{
    unsigned long long dirty_mib = div_round_up(dirty_bytes, MIB);

    log_info("writing back: %llu MiB left, %u sessions", dirty_mib, n_sessions);
    sd_status("writing back: %llu MiB left", dirty_mib);
}

static void control_say_progress(struct control *control)
{
    uint64_t have = 0, want = 0, dirty = 0, now_ns = loop_now_ns();

    if (now_ns - control->said_ns < SAY_NS)
        return;
    control->said_ns = now_ns;
    for (uint32_t i = 0; i < control->n_engines; i++) {
        have += control->watches[i].have_bytes;
        want += control->watches[i].want_bytes;
        dirty += control->watches[i].dirty_bytes;
    }
    if (control->state == CONTROL_STARTING && control->config->daemon.ready_progress)
        say_starting(have, want);
    else if (control->state == CONTROL_DRAINING)
        say_draining(dirty, control->n_sessions);
}

/* Once it is ready, only the watchdog wants to know: without one an idle daemon sleeps until somebody comes. */
static uint64_t watch_period_ns(const struct control *control)
{
    uint64_t period_ns = control->state == CONTROL_STARTING ? PING_STARTING_NS : PING_NS;

    if (control->state == CONTROL_READY)
        period_ns = UINT64_MAX;
    return control->watchdog_ns > 0 ? MIN(period_ns, control->watchdog_ns / 3) : period_ns;
}

static void control_watch(struct loop_timer *timer)
{
    struct control *control = container_of(timer, struct control, watch_timer);

    control_ping(control);
    control_say_progress(control);
    if (control->watchdog_ns > 0) {
        if (engines_are_alive(control))
            sd_alive();
        else
            log_error("an engine does not answer: the watchdog will end this process");
    }
    uint64_t period_ns = watch_period_ns(control);

    if (period_ns != UINT64_MAX)
        loop_timer_set(&control->loop, timer, loop_now_ns() + period_ns);
}

/* --- Devices ----------------------------------------------------------------------------------------------------- */

static void distrusted(struct call *call)
{
    (void)call;
}

void control_flush_failed(void *ctx, uint32_t engine, uint32_t device, int why)
{
    struct control *control = ctx;
    struct control_device *d = &control->devices[device];

    if (d->is_distrusted)
        return;
    d->is_distrusted = true;
    log_warning("[device %s] a flush failed (engine %u): until a restart no engine writes to it any more",
                control->config->devices[device].section.name, engine);
    for (uint32_t i = 0; i < control->n_engines; i++) {
        if (i == engine)
            continue;
        d->distrusts[i] = (struct distrust_call){.call.at_control = distrusted, .device = device, .why = why};
        engine_device_distrust(control->engines[i], &d->distrusts[i]);
    }
}

/* --- Up and down ------------------------------------------------------------------------------------------------- */

/* Everything is set up, and nobody has been listened to. Engines and workers have theirs already. */
static void control_enter_sandbox(void)
{
    struct sandbox_stat stat;

    (void)sandbox_enter(SANDBOX_CONTROL);
    sandbox_stat(&stat);
    if (stat.error < 0)
        log_warning("threads go without a filter of system calls: %s", log_errno(stat.error));
}

static void control_become_ready(struct control *control)
{
    struct listener *listener = &control->listener;
    uint64_t refused_bytes = 0;

    for (uint32_t i = 0; i < control->n_engines; i++)
        refused_bytes += control->watches[i].refused_bytes;
    if (refused_bytes > 0 && control->config->dram.hugepages == CONFIG_HUGEPAGES_REQUIRE) {
        log_error("[tier.dram] hugepages = require: pages went elsewhere while they were taken, %llu of 2 MiB are "
                  "missing: raise vm.nr_hugepages",
                  (unsigned long long)div_round_up(refused_bytes, 2 * MIB));
        control_stop(control, "it lacks hugepages");
        control->exit_status = EXIT_FAILURE;
        return;
    }
    control_enter_sandbox();
    int r = listener_start(listener);

    if (r < 0) {
        log_error("cannot listen: %s", log_errno(r));
        control_stop(control, "it cannot listen");
        control->exit_status = EXIT_FAILURE;
        return;
    }
    budgets_start(control);
    sessions_wait(control);
    kill_point("control.listening");
    control_set_state(control, CONTROL_READY);
    log_notice("ready: %u engine%s, %u pool%s, socket %s", control->n_engines, control->n_engines == 1 ? "" : "s",
               control->config->n_pools, control->config->n_pools == 1 ? "" : "s",
               listener->path[0] ? listener->path : "of the service manager");
    sd_status("serving");
    sd_ready();
    kill_point("control.ready");
}

static void say_left(uint32_t engine, const struct tiering_left *left)
{
    unsigned long long n_durable = left->durable_pieces, n_cache = left->cache_pieces;

    if (n_durable + n_cache == 0)
        return;
    log_print(n_durable > 0 ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO,
              "engine %u: %llu durable pieces (%llu KiB) that no SYNC had written, and %llu of cache (%llu KiB), are "
              "gone: devices had no "
              "room for them, or failed",
              engine, n_durable, left->durable_bytes / 1024ULL, n_cache, left->cache_bytes / 1024ULL);
}

static void engine_stopped(struct call *base)
{
    struct engine_watch *watch = container_of(base, struct engine_watch, stop.call);
    struct control *control = base->at_control_ctx;

    watch->is_stopped = true;
    kill_point("control.engine_stopped");
    if (!control->keeps)
        say_left(base->engine->config.number, &watch->stop.left);
    if (watch->stop.result < 0) {
        log_error("engine %u did not close its devices cleanly: %s", base->engine->config.number,
                  log_errno(watch->stop.result));
        control->exit_status = EXIT_FAILURE;
    }
    control_step(control);
}

static void engine_drained(struct call *base)
{
    struct engine_watch *watch = container_of(base, struct engine_watch, stop.call);

    watch->is_drained = true;
    kill_point("control.engine_drained");
    control_step(base->at_control_ctx);
}

static void control_for_engines(struct control *control, void (*ask)(struct engine *engine, struct stop_call *call),
                                void (*answer)(struct call *call))
{
    for (uint32_t i = 0; i < control->n_engines; i++) {
        struct stop_call *call = &control->watches[i].stop;

        *call = (struct stop_call){.call.at_control = answer, .call.at_control_ctx = control};
        ask(control->engines[i], call);
    }
}

static void control_drain(struct control *control)
{
    control->is_draining = true;
    control_for_engines(control, engine_drain, engine_drained);
}

/* Nobody is served from now on. */
static void control_close(struct control *control)
{
    control->is_closed = true;
    if (control->successor)
        listener_pause(&control->listener);
    else
        listener_close(&control->listener);
    if (control->keeps)
        sessions_leave(control);
    else
        sessions_end(control, "the daemon stops");
}

/* Where sessions are kept for the next process, clients are served while bytes are written back: they wait only from the
 * end of that to the next process. */
void control_stop(struct control *control, const char *why)
{
    if (control->state >= CONTROL_DRAINING)
        return;
    log_notice("stopping: %s", why);
    sd_stopping();
    kill_point("control.stop");
    control->keeps = fdstore_is_kept(control->fdstore) && session_reattach_ms(control) > 0;
    control_set_state(control, CONTROL_DRAINING);
    loop_timer_set(&control->loop, &control->watch_timer, loop_now_ns() + PING_NS);
    if (control->keeps)
        control_drain(control);
    else
        control_close(control);
    control_step(control);
}

bool control_hand_over(struct control *control, struct session *session)
{
    if (control->state != CONTROL_READY || control->tune)
        return false;
    log_notice("process %d takes over", session->who.pid);
    control->successor = session;
    session->kept = kept_session_free(control->kept, session->kept); /* it ends with this process */
    control->keeps = true;
    control_set_state(control, CONTROL_DRAINING);
    control->is_draining = true; /* memory goes over as it is: nothing need be written */
    for (uint32_t i = 0; i < control->n_engines; i++)
        control->watches[i].is_drained = true;
    control_step(control);
    return true;
}

/* But for the one of a successor, which stays to the end. */
static bool sessions_are_gone(const struct control *control)
{
    list_for_each (l, &control->sessions)
        if (list_entry(l, struct session, link) != control->successor)
            return false;
    return true;
}

void control_session_gone(struct control *control)
{
    control_step(control);
}

static bool all_engines(const struct control *control, size_t flag_offset)
{
    for (uint32_t i = 0; i < control->n_engines; i++)
        if (!*(const bool *)((const char *)&control->watches[i] + flag_offset))
            return false;
    return true;
}

static void control_step_draining(struct control *control)
{
    bool is_drained = all_engines(control, offsetof(struct engine_watch, is_drained));
    bool is_late = loop_now_ns() - control->state_since_ns > DRAIN_SERVING_NS; /* clients make more than is written */

    if (!control->is_closed && (is_drained || is_late))
        control_close(control);
    if (!control->is_closed || !sessions_are_gone(control))
        return;
    if (!control->is_draining) {
        control_drain(control);
    } else if (is_drained) {
        control_set_state(control, CONTROL_STOPPING);
        control_for_engines(control, engine_stop, engine_stopped);
    }
}

/* Whatever has happened: is the next state due? */
static void control_step(struct control *control)
{
    switch (control->state) {
    case CONTROL_STARTING:
        if (all_engines(control, offsetof(struct engine_watch, is_ready)))
            control_become_ready(control);
        break;
    case CONTROL_READY:
        break;
    case CONTROL_DRAINING:
        control_step_draining(control);
        break;
    case CONTROL_STOPPING:
        if (!all_engines(control, offsetof(struct engine_watch, is_stopped)))
            break;
        if (control->successor) {
            struct session *session = control->successor;

            handover_give(control);
            control->successor = NULL;
            session_end(session, NULL, false);
        }
        if (list_is_empty(&control->sessions)) {
            control_set_state(control, CONTROL_GONE);
            control->loop.stop = true;
        }
        break;
    case CONTROL_GONE:
        break;
    }
}

/* --- Reload ------------------------------------------------------------------------------------------------------ */

static void reload_done(struct call *base)
{
    struct control *control = base->at_control_ctx;

    if (--control->n_tuning > 0)
        return;
    free(control->tune);
    control->tune = NULL;
    kill_point("control.reloaded");
    log_notice("reloaded");
    sd_ready();
}

static void reload_apply(struct control *control)
{
    log_set_level((enum log_level)control->config->daemon.log_level);
    workers_set_spin(control->workers, control->config->daemon.spin_us);
    control->tune = calloc(control->n_engines, sizeof(*control->tune));
    if (!control->tune) {
        log_error("no memory to tell the engines");
        sd_ready();
        return;
    }
    control->n_tuning = control->n_engines;
    for (uint32_t i = 0; i < control->n_engines; i++) {
        struct tune_call *tune = &control->tune[i];

        control_tuning(control, i, &tune->tuning);
        for (uint32_t p = 0; p < tune->tuning.n_pools; p++)
            budgets_apply(control, i, p, &tune->tuning.pools[p]); /* they change hands as memory becomes free */
        tune->call.at_control = reload_done;
        tune->call.at_control_ctx = control;
        engine_tune(control->engines[i], tune);
    }
    budgets_reload(control);
    gpus_configured(control->gpus);
}

static void reload_say(const struct config_changes *changes)
{
    for (uint32_t i = 0; i < changes->n; i++) {
        const struct config_change *c = &changes->at[i];

        if (c->needs_restart)
            log_warning("[%s] %s: %s stays until a restart (the file says %s)", c->section, c->key, c->old_value,
                        c->new_value);
        else
            log_notice("[%s] %s: %s, was %s", c->section, c->key, c->new_value, c->old_value);
    }
    if (changes->n_left_out > 0)
        log_warning("and %u changes more", changes->n_left_out);
}

static void say_errors(const struct config_errors *errors)
{
    for (uint32_t i = 0; i < errors->n; i++)
        log_error("%s", errors->at[i].text);
}

void control_reload(struct control *control)
{
    cleanup_free struct config_errors *errors = calloc(1, sizeof(*errors));
    cleanup_free struct config_changes *changes = calloc(1, sizeof(*changes));
    cleanup_config struct spillway_config *wanted = NULL;
    struct spillway_config *merged = NULL;

    if (control->state != CONTROL_READY || control->tune || !errors || !changes) {
        log_warning("not reloaded: %s", control->tune ? "the last reload is not through" : "not now");
        return;
    }
    sd_reloading(loop_now_ns());
    int r = config_load(control->config_path, &control->env, &wanted, errors);

    if (r == 0) {
        config_diff(control->config, wanted, changes);
        r = config_merge(control->config, wanted, &control->env, &merged, errors);
    }
    if (r < 0 || !merged) {
        say_errors(errors);
        log_error("not reloaded: the old configuration stays in force");
        sd_ready();
        return;
    }
    reload_say(changes);
    config_free(control->config);
    control->config = merged;
    control_tell_gpus(control);
    free(control->pending);
    control->pending = steal_ptr(changes);
    kill_point("control.reload");
    reload_apply(control);
}

/* --- Signals, mailbox -------------------------------------------------------------------------------------------- */

static void control_signal(struct loop_source *source, uint32_t events)
{
    struct control *control = container_of(source, struct control, signal_source);
    struct signalfd_siginfo info;

    (void)events;
    while (read(source->fd, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo == SIGHUP)
            control_reload(control);
        else
            control_stop(control, info.ssi_signo == SIGTERM ? "SIGTERM" : "SIGINT");
    }
}

/* The mailbox sleeps only while the loop does: so a message costs a system call only then. */
static void control_mail(struct loop_source *source, uint32_t events)
{
    struct control *control = container_of(source, struct control, mailbox_source);
    uint64_t count;

    if (events & EPOLLIN)
        (void)!read(source->fd, &count, sizeof(count));
    (void)engine_queue_run(&control->mailbox);
}

int control_run(struct control *control)
{
    int r = 0;

    control_set_state(control, CONTROL_STARTING);
    control->watchdog_ns = sd_watchdog_ns();
    control_watch(&control->watch_timer);
    kill_point("control.run");
    while (!control->loop.stop && r == 0) {
        bool may_sleep = engine_queue_sleep_prepare(&control->mailbox);

        r = loop_turn(&control->loop, may_sleep ? UINT64_MAX : 0);
        engine_queue_sleep_end(&control->mailbox);
        (void)engine_queue_run(&control->mailbox);
    }
    if (r < 0) { /* engines cannot be stopped in order without it; what was acknowledged is on the devices */
        log_error("epoll_wait: %s", log_errno(r));
        _exit(EXIT_FAILURE);
    }
    return control->exit_status;
}

int control_find_admin_group(struct control *control)
{
    struct group entry, *group;
    char buffer[16384];

    if (getgrnam_r(control->config->daemon.admin_group, &entry, buffer, sizeof(buffer), &group) != 0 || !group)
        return -ENOENT;
    control->admin_gid = group->gr_gid;
    control->has_admin_gid = true;
    return 0;
}

static int signals_open(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);

    return fd < 0 ? -errno : fd;
}

int control_init(struct control *control)
{
    list_init(&control->sessions);
    list_init(&control->accounts);
    list_init(&control->owners);
    control->uid = geteuid();
    control->started_ns = loop_now_ns();
    control->loop.epoll_fd = control->mailbox.wake_fd = -1;
    control->listener = LISTENER_NONE;
    for (uint32_t i = 0; i < DEVICES_MAX; i++)
        control->devices[i].device = DEVICE_NONE;
    control->mailbox_source = (struct loop_source){.fd = -1, .events = EPOLLIN, .ready = control_mail};
    control->signal_source = (struct loop_source){.fd = -1, .events = EPOLLIN, .ready = control_signal};
    loop_timer_init(&control->watch_timer, control_watch);
    int r = loop_init(&control->loop);

    if (r == 0)
        r = engine_queue_init(&control->mailbox);
    if (r == 0)
        r = spaces_new(&control->spaces);
    if (r < 0)
        return r;
    control->mailbox_source.fd = control->mailbox.wake_fd;
    r = loop_add(&control->loop, &control->mailbox_source);
    if (r == 0)
        r = control->signal_source.fd = signals_open();
    return r < 0 ? r : loop_add(&control->loop, &control->signal_source);
}

void control_deinit(struct control *control)
{
    listener_close(&control->listener);
    owners_free(control);
    control->kept = kept_free(control->kept);
    control->budgets = budgets_free(control->budgets);
    free(control->pending);
    control->spaces = spaces_free(control->spaces);
    if (control->signal_source.fd >= 0)
        close(control->signal_source.fd);
    engine_queue_deinit(&control->mailbox);
    loop_deinit(&control->loop);
}
