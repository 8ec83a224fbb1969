/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the memfd `sessions`: one table for all of them, so that a session costs no descriptor of the store, and coming and
 * going no system call. What a session opened is not here: its client opens it again, and its rights are looked at again.
 *
 * A process may be killed between any two stores, so a row is in use only from the store of its number on; what is written
 * is there for the next process, for the machine lives. The next process believes a table of its own layout only. Its
 * content is the daemon's own, and is not checked further.
 */
#include "daemon/session_kept.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/fdstore.h"
#include "daemon/log.h"
#include "daemon/shm.h"
#include "include/base/atomic.h"
#include "include/base/cleanup.h"

#define KEPT_NAME "sessions"
#define KEPT_MAGIC UINT64_C(0x315453455350574c) /* "LWPSEST1" in memory */
#define KEPT_LAYOUT 1
#define HELPER_MS (2 * GPU_STOP_MS) /* for one to end */

struct kept_table {
    uint64_t magic; /* stored last */
    uint32_t layout, n_engines;
    uint64_t memory_id;
    uint64_t next_session, next_owner;
    uint64_t reserved[3];
    int32_t helpers[GPUS_MAX]; /* pids; 0: none */
    struct kept_session sessions[SESSIONS_MAX];
    struct kept_owner owners[OWNERS_MAX];
};

struct kept {
    struct memory_shared memory;
    struct kept_table *table;
    bool is_old;
    uint32_t n_free_sessions, n_free_owners;
    uint32_t free_sessions[SESSIONS_MAX], free_owners[OWNERS_MAX];
};

static int random_id(uint64_t *ret_id)
{
    do {
        if (getrandom(ret_id, sizeof(*ret_id), 0) != sizeof(*ret_id))
            return -EIO;
    } while (*ret_id == 0);
    return 0;
}

static int table_make(struct kept *kept, struct fdstore *store, uint32_t n_engines)
{
    uint64_t id;
    int r = random_id(&id);

    if (r < 0)
        return r;
    r = shm_own_new("spillway-sessions", sizeof(struct kept_table), &kept->memory);
    if (r < 0)
        return r;
    kept->table = kept->memory.mem;
    kept->table->layout = KEPT_LAYOUT;
    kept->table->n_engines = n_engines;
    kept->table->memory_id = id;
    store_release(&kept->table->magic, KEPT_MAGIC);
    r = fdstore_keep(store, KEPT_NAME, kept->memory.fd);
    if (r < 0)
        log_warning("sessions are not kept for the next process: %s", log_errno(r));
    return 0;
}

static int table_take(struct kept *kept, int fd, uint32_t n_engines, const char **ret_why)
{
    struct memory_shared memory;

    *ret_why = "its table of sessions is of another layout";
    if (shm_own_adopt(fd, sizeof(struct kept_table), &memory) < 0) {
        close(fd);
        return -EPROTONOSUPPORT;
    }
    const struct kept_table *table = memory.mem;
    bool is_known = table->magic == KEPT_MAGIC && table->layout == KEPT_LAYOUT;

    if (is_known)
        *ret_why = "it had another number of engines";
    if (!is_known || table->n_engines != n_engines) {
        memory_shared_destroy(&memory);
        return -EPROTONOSUPPORT;
    }
    *ret_why = NULL;
    kept->memory = memory;
    kept->table = memory.mem;
    kept->is_old = true;
    return 0;
}

/* Lowest numbers first: rows in use are at the beginning, and pages that were never needed are not there. */
static void free_lists(struct kept *kept)
{
    for (uint32_t i = SESSIONS_MAX; i-- > 0;)
        if (kept->table->sessions[i].number == 0)
            kept->free_sessions[kept->n_free_sessions++] = i;
    for (uint32_t i = OWNERS_MAX; i-- > 0;)
        if (kept->table->owners[i].number == 0)
            kept->free_owners[kept->n_free_owners++] = i;
}

int kept_new(struct fdstore *store, uint32_t n_engines, struct kept **ret_kept, const char **ret_why)
{
    cleanup_free struct kept *kept = calloc(1, sizeof(*kept));
    int fd = fdstore_take(store, KEPT_NAME), r = -ENOENT;

    *ret_why = NULL;
    if (!kept)
        return -ENOMEM;
    kept->memory = MEMORY_SHARED_NONE;
    if (fd >= 0)
        r = table_take(kept, fd, n_engines, ret_why);
    if (fd >= 0 && r < 0)
        fdstore_forget(store, KEPT_NAME);
    if (r < 0)
        r = table_make(kept, store, n_engines);
    if (r < 0)
        return r;
    free_lists(kept);
    *ret_kept = steal_ptr(kept);
    return 0;
}

struct kept *kept_free(struct kept *kept)
{
    if (kept)
        memory_shared_destroy(&kept->memory);
    free(kept);
    return NULL;
}

bool kept_is_old(const struct kept *kept)
{
    return kept->is_old;
}

void kept_set_cold(struct kept *kept)
{
    struct kept_session *row;

    for (uint32_t at = 0; (row = kept_session_next(kept, &at)) != NULL;)
        kept_session_free(kept, row);
    if (++kept->table->memory_id == 0) /* another one is all that is asked of it */
        kept->table->memory_id++;
}

uint64_t kept_memory_id(const struct kept *kept)
{
    return kept->table->memory_id;
}

uint64_t kept_next_session(struct kept *kept)
{
    return ++kept->table->next_session;
}

uint64_t kept_sessions_ever(const struct kept *kept)
{
    return kept->table->next_session;
}

uint64_t kept_next_owner(struct kept *kept)
{
    return ++kept->table->next_owner;
}

/* --- Helpers ----------------------------------------------------------------------------------------------------- */

static void helper_change(struct kept *kept, pid_t from, pid_t to)
{
    for (uint32_t i = 0; kept && i < GPUS_MAX; i++) {
        if (kept->table->helpers[i] != from)
            continue;
        kept->table->helpers[i] = to;
        return;
    }
}

void kept_helper_began(struct kept *kept, pid_t pid)
{
    helper_change(kept, 0, pid);
}

void kept_helper_ended(struct kept *kept, pid_t pid)
{
    helper_change(kept, pid, 0);
}

/* The number may be another process's by now. */
static bool is_helper(pid_t pid)
{
    char path[32], name[32] = "";

    snprintf(path, sizeof(path), "/proc/%d/comm", pid);
    cleanup_fclose FILE *f = fopen(path, "re");

    return f && fgets(name, sizeof(name), f) && strncmp(name, "spillway-gpu", 12) == 0;
}

static void helper_end(pid_t pid)
{
    struct pollfd pfd = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};

    if (pfd.fd < 0)
        return;
    if (is_helper(pid) && poll(&pfd, 1, HELPER_MS) == 0) { /* it ends by itself when its daemon has gone, as a rule */
        log_warning("spillway-gpu, pid %d, of the last process does not end: it is killed", pid);
        (void)syscall(SYS_pidfd_send_signal, pfd.fd, SIGKILL, NULL, 0);
        (void)poll(&pfd, 1, HELPER_MS);
    }
    close(pfd.fd);
}

void kept_helpers_end(struct kept *kept)
{
    for (uint32_t i = 0; i < GPUS_MAX; i++) {
        if (kept->table->helpers[i] > 0)
            helper_end(kept->table->helpers[i]);
        kept->table->helpers[i] = 0;
    }
}

/* --- Rows -------------------------------------------------------------------------------------------------------- */

struct kept_session *kept_session_new(struct kept *kept)
{
    if (kept->n_free_sessions == 0)
        return NULL;
    struct kept_session *row = &kept->table->sessions[kept->free_sessions[--kept->n_free_sessions]];

    *row = (struct kept_session){0};
    return row;
}

void kept_session_use(struct kept_session *row, uint64_t number)
{
    store_release(&row->number, number);
}

struct kept_session *kept_session_free(struct kept *kept, struct kept_session *row)
{
    if (!row)
        return NULL;
    store_release(&row->number, 0);
    explicit_bzero(row->token, sizeof(row->token));
    kept->free_sessions[kept->n_free_sessions++] = (uint32_t)(row - kept->table->sessions);
    return NULL;
}

struct kept_owner *kept_owner_new(struct kept *kept)
{
    if (kept->n_free_owners == 0)
        return NULL;
    struct kept_owner *row = &kept->table->owners[kept->free_owners[--kept->n_free_owners]];

    *row = (struct kept_owner){0};
    return row;
}

void kept_owner_use(struct kept_owner *row, uint64_t number)
{
    store_release(&row->number, number);
}

struct kept_owner *kept_owner_free(struct kept *kept, struct kept_owner *row)
{
    if (!row)
        return NULL;
    store_release(&row->number, 0);
    explicit_bzero(row->token, sizeof(row->token));
    kept->free_owners[kept->n_free_owners++] = (uint32_t)(row - kept->table->owners);
    return NULL;
}

struct kept_session *kept_session_next(struct kept *kept, uint32_t *at)
{
    while (*at < SESSIONS_MAX) {
        struct kept_session *row = &kept->table->sessions[(*at)++];

        if (row->number != 0)
            return row;
    }
    return NULL;
}

struct kept_owner *kept_owner_next(struct kept *kept, uint32_t *at)
{
    while (*at < OWNERS_MAX) {
        struct kept_owner *row = &kept->table->owners[(*at)++];

        if (row->number != 0)
            return row;
    }
    return NULL;
}
