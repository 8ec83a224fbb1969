/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the list of what is kept for the next process, by name. The copies themselves are the service manager's (its
 * descriptor store); the list is what we believe that it has, and what a process that takes our place is given.
 *
 *   LEFT ── taken ──▶ KEPT ── forgotten ──▶ gone            LEFT: by the process before us, ours to close
 *     └── nobody wants it: closed ──▶ gone                   KEPT: the descriptor is somebody else's here
 *
 * Names: `sessions`, `engine.E`, `chunk.E.R.P`; what else comes is the listening socket, or is closed. The manager says
 * nothing when its store is full, so we count, and refuse before it would.
 */
#include "daemon/fdstore.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/log.h"
#include "daemon/sd.h"
#include "include/base/limits.h"

struct entry {
    char name[STORED_NAME_BYTES_MAX + 1];
    int fd;
    bool is_left;
};

struct fdstore {
    pthread_mutex_t lock;
    bool has_manager;
    int socket, n_sockets;
    uint32_t n, max;
    struct entry *entries; /* STORED_DESCRIPTORS_MAX, in no order */
};

static bool name_ok(const char *name)
{
    return strcmp(name, "sessions") == 0 || strncmp(name, "engine.", 7) == 0 || strncmp(name, "chunk.", 6) == 0;
}

static struct entry *entry_find(const struct fdstore *store, const char *name)
{
    for (uint32_t i = 0; i < store->n; i++)
        if (strcmp(store->entries[i].name, name) == 0)
            return &store->entries[i];
    return NULL;
}

static void entry_add(struct fdstore *store, const char *name, int fd, bool is_left)
{
    struct entry *entry = &store->entries[store->n++];

    *entry = (struct entry){.fd = fd, .is_left = is_left};
    memcpy(entry->name, name, strlen(name) + 1);
}

static void entry_remove(struct fdstore *store, struct entry *entry)
{
    if (entry->is_left)
        close(entry->fd);
    if (store->has_manager)
        sd_unstore(entry->name);
    *entry = store->entries[--store->n];
}

int fdstore_put_left(struct fdstore *store, const char *name, int fd)
{
    int r = !name_ok(name) || strlen(name) > STORED_NAME_BYTES_MAX || entry_find(store, name) ? -EINVAL
            : store->n == STORED_DESCRIPTORS_MAX                                              ? -ENOSPC
                                                                                              : 0;

    if (r == 0)
        entry_add(store, name, fd, true);
    else
        close(fd);
    return r;
}

static void passed_take(struct fdstore *store, const char *name, int fd)
{
    if (sd_is_listening(fd)) {
        if (store->n_sockets++ == 0)
            store->socket = fd;
        else
            close(fd);
        return;
    }
    if (fdstore_put_left(store, name, fd) == 0)
        return;
    log_notice("a descriptor of the name '%.64s' was passed, which means nothing here: it is closed", name);
    if (store->has_manager)
        sd_unstore(name);
}

static int passed_take_all(struct fdstore *store)
{
    char **names = NULL;
    int first, n = sd_descriptors(&first, &names);

    for (int i = 0; names && i < n; i++) {
        passed_take(store, names[i], first + i);
        free(names[i]);
    }
    free(names);
    return MIN(n, 0);
}

int fdstore_new(struct fdstore **ret_store)
{
    struct fdstore *store = calloc(1, sizeof(*store));

    if (!store)
        return -ENOMEM;
    pthread_mutex_init(&store->lock, NULL);
    store->socket = -1;
    store->has_manager = sd_store_open();
    store->max = sd_store_max();
    if (store->max == 0 || store->max > STORED_DESCRIPTORS_MAX)
        store->max = STORED_DESCRIPTORS_MAX;
    store->entries = calloc(STORED_DESCRIPTORS_MAX, sizeof(*store->entries));
    int r = store->entries ? passed_take_all(store) : -ENOMEM;

    if (r < 0) {
        fdstore_free(store);
        return r;
    }
    *ret_store = store;
    return 0;
}

struct fdstore *fdstore_free(struct fdstore *store)
{
    if (!store)
        return NULL;
    for (uint32_t i = 0; store->entries && i < store->n; i++)
        if (store->entries[i].is_left)
            close(store->entries[i].fd);
    if (store->socket >= 0)
        close(store->socket);
    sd_store_close();
    pthread_mutex_destroy(&store->lock);
    free(store->entries);
    free(store);
    return NULL;
}

bool fdstore_is_kept(const struct fdstore *store)
{
    return store && store->has_manager;
}

int fdstore_take_socket(struct fdstore *store)
{
    int fd = store->socket;

    if (store->n_sockets > 1)
        return -EINVAL;
    store->socket = -1;
    return fd;
}

int fdstore_take(struct fdstore *store, const char *name)
{
    struct entry *entry = store ? entry_find(store, name) : NULL;

    if (!entry || !entry->is_left)
        return -1;
    entry->is_left = false;
    return entry->fd;
}

const char *fdstore_next(const struct fdstore *store, const char *prefix, uint32_t *at)
{
    for (; *at < store->n; ++*at)
        if (store->entries[*at].is_left && strncmp(store->entries[*at].name, prefix, strlen(prefix)) == 0)
            return store->entries[(*at)++].name;
    return NULL;
}

uint32_t fdstore_close_rest(struct fdstore *store)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < store->n;) {
        if (store->entries[i].is_left) {
            entry_remove(store, &store->entries[i]);
            n++;
        } else {
            i++;
        }
    }
    return n;
}

int fdstore_keep(struct fdstore *store, const char *name, int fd)
{
    int r = 0;

    assert(name_ok(name) && strlen(name) <= STORED_NAME_BYTES_MAX);
    if (!store)
        return 0;
    pthread_mutex_lock(&store->lock);
    if (store->n >= store->max)
        r = -ENOSPC;
    else if (store->has_manager)
        r = sd_store(name, fd);
    if (r != -ENOSPC)
        entry_add(store, name, fd, false);
    pthread_mutex_unlock(&store->lock);
    return r;
}

void fdstore_forget(struct fdstore *store, const char *name)
{
    if (!store)
        return;
    pthread_mutex_lock(&store->lock);
    struct entry *entry = entry_find(store, name);

    if (entry)
        entry_remove(store, entry);
    pthread_mutex_unlock(&store->lock);
}

void fdstore_forget_all(struct fdstore *store)
{
    pthread_mutex_lock(&store->lock);
    while (store->n > 0)
        entry_remove(store, &store->entries[store->n - 1]);
    pthread_mutex_unlock(&store->lock);
}

uint32_t fdstore_room(const struct fdstore *store)
{
    struct fdstore *mutable = (struct fdstore *)(uintptr_t)store; /* the lock alone changes */

    pthread_mutex_lock(&mutable->lock);
    uint32_t room = store->max - MIN(store->n, store->max);

    pthread_mutex_unlock(&mutable->lock);
    return room;
}

bool fdstore_at(const struct fdstore *store, uint32_t at, const char **ret_name, int *ret_fd)
{
    if (at >= store->n)
        return false;
    *ret_name = store->entries[at].name;
    *ret_fd = store->entries[at].fd;
    return true;
}
