/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ownership as a sequence: take with a cleanup attribute, store, null the local. A local that is handed over is
 * "stolen", so reading a function from top to bottom tells who frees what.
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define cleanup_(fn) __attribute__((cleanup(fn)))

/* Defines fn##p, for use with cleanup_(): calls fn on the pointer when the local leaves its scope. */
#define DEFINE_CLEANUP(type, fn)                                                                                       \
    static inline void fn##p(type *p)                                                                                  \
    {                                                                                                                  \
        if (*p)                                                                                                        \
            fn(*p);                                                                                                    \
    }

static inline void free_p(void *p)
{
    free(*(void **)p);
}

static inline void close_p(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void fclose_p(FILE **f)
{
    if (*f)
        fclose(*f);
}

#define cleanup_free cleanup_(free_p)
#define cleanup_close cleanup_(close_p)
#define cleanup_fclose cleanup_(fclose_p)

#define steal_ptr(p)                                                                                                   \
    ({                                                                                                                 \
        __auto_type stolen_ = (p);                                                                                     \
        (p) = NULL;                                                                                                    \
        stolen_;                                                                                                       \
    })

static inline int steal_fd(int *fd)
{
    int stolen = *fd;
    *fd = -1;
    return stolen;
}
