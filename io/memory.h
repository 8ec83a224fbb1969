/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of the machine: NUMA nodes, chunks (memfds on a node, sealed, populated, perhaps locked), the memfds that
 * rings and records live in, the limits on all of them, and the SIGBUS guard.
 *
 * Threads: all functions are thread-safe. Creation blocks for as long as touching the pages takes.
 */
#pragma once

#include "include/base/base.h"
#include "include/base/cleanup.h"
#include "include/base/limits.h"

#define MEMORY_NODE_ANY UINT32_MAX
#define MEMORY_PAGE_BYTES 4096
#define MEMORY_HUGE_BYTES (2 * MIB)

/* --- Nodes and limits -------------------------------------------------------------------------------------------- */

struct memory_node {
    uint32_t id;   /* the kernel's number */
    bool has_cpus; /* one without is tier `cxl` */
    uint64_t total_bytes;
    uint64_t free_bytes;
    uint64_t free_huge_bytes; /* free 2 MiB hugepages */
    uint64_t huge_bytes;      /* all of them */
};

struct memory_nodes {
    uint32_t n;
    bool is_numa; /* false: the kernel tells nothing about nodes, and the one here is the whole machine */
    struct memory_node node[NODES_MAX];
};
must_check int memory_nodes_read(struct memory_nodes *ret_nodes);

struct memory_limits {
    uint64_t memlock_bytes;   /* RLIMIT_MEMLOCK; UINT64_MAX: none */
    bool can_lock_all;        /* CAP_IPC_LOCK: the limit does not hold */
    uint64_t available_bytes; /* MemAvailable: more than this ends in the OOM killer */
};
void memory_limits_read(struct memory_limits *ret_limits);

/* --- Chunks ------------------------------------------------------------------------------------------------------ */

enum memory_pages {
    MEMORY_PAGES_AUTO,  /* the best of the following (only a wish, never in a report) */
    MEMORY_PAGES_HUGE,  /* 2 MiB hugetlb */
    MEMORY_PAGES_THP,   /* transparent hugepages */
    MEMORY_PAGES_SMALL, /* 4 KiB */
};

/* done of total bytes are touched. False cancels. Called on the creating thread. */
typedef bool (*memory_progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

/* What a node has for one kind of pages: now, and if nobody else had any of it. UINT64_MAX: not known. */
struct memory_room {
    uint64_t available_bytes, total_bytes;
};

struct memory_chunk_config {
    uint64_t size_bytes;     /* rounded up to whole pages of the kind that is used */
    uint32_t node;           /* MEMORY_NODE_ANY: wherever the kernel likes */
    enum memory_pages pages; /* best kind to try; worse ones are the fallback */
    bool no_fallback;        /* that kind or -ENOMEM */
    bool read_only_fd;       /* also a descriptor that clients can only read from: a shared chunk */
    bool lock;               /* mlock, where the limit allows it */
    bool force_small_pages;  /* more than SMALL_PAGES_BYTES_MAX in 4 KiB pages is wanted, whatever it costs */
    bool unsealed;           /* for tests of the guard only */
    /* Instead of the kernel's files, for tests only. NULL: those. */
    void (*room)(uint32_t node, enum memory_pages pages, struct memory_room *ret_room);
    uint32_t threads;         /* that touch pages; 0: 1 */
    memory_progress progress; /* may be NULL */
    void *progress_ctx;
};

/* What was got, so that the daemon can say so. */
struct memory_report {
    enum memory_pages pages;
    const char *why;    /* not better pages than that; NULL if they are the best. Static */
    uint64_t thp_bytes; /* of THP: really in hugepages */
    bool is_locked;
    int lock_error;                /* why not locked: 0 if it was not asked for, else a negative errno */
    int bind_error;                /* mbind: 0 or a negative errno; then the node is the kernel's choice */
    uint32_t n_sampled, n_on_node; /* pages whose place was looked up; of these, on the wanted node */
};

struct memory_chunk {
    uint32_t refs;     /* atomic */
    uint32_t poisoned; /* atomic: somebody took its pages away, some bytes are zeros that nobody wrote */
    int fd;            /* read and write */
    int read_only_fd;  /* -1 unless asked for */
    void *mem;
    uint64_t size_bytes;
    uint32_t node;
    uint32_t guard; /* memory_guard's */
    struct memory_report report;
};

/*
 * Errors: -ENOMEM (also if size_bytes is above what the machine or the node has available), -E2BIG (small pages above the limit: force_small_pages),
 * -ECANCELED, -EINVAL (no such node, size 0), -ENOSPC (too many chunks), and what memfd_create and fcntl say: a seal
 * that fails is an error.
 */
must_check int memory_chunk_create(const struct memory_chunk_config *config, struct memory_chunk **ret_chunk);
/* One that a process before this one made. Takes the descriptor, on failure too. read_only_fd: as in the config. */
must_check int memory_chunk_adopt(int fd, uint32_t node, bool read_only_fd, struct memory_chunk **ret_chunk);
/* It would be refused now, for somebody else has the memory; but the machine, or the node, has so much. Hugepages count
 * where nothing else will do. */
bool memory_chunk_is_early(const struct memory_chunk_config *config);
struct memory_chunk *memory_chunk_ref(struct memory_chunk *chunk);
/* The last one unmaps and closes. Takes NULL. */
void memory_chunk_unref(struct memory_chunk *chunk);
DEFINE_CLEANUP(struct memory_chunk *, memory_chunk_unref)
/* Gives the pages back to the machine now, whoever still maps them: they would find zeros. Nobody here uses the chunk
 * any more. 0 or a negative errno: then they go with the last mapping. */
int memory_chunk_discard(struct memory_chunk *chunk);

static inline bool memory_chunk_is_poisoned(const struct memory_chunk *chunk)
{
    return __atomic_load_n(&chunk->poisoned, __ATOMIC_ACQUIRE) != 0;
}

const char *memory_pages_name(enum memory_pages pages);

/* --- Other memory ------------------------------------------------------------------------------------------------ */

/* A memfd of fixed size that is mapped here: rings, scratch, records. Mode 0600. */
struct memory_shared {
    int fd;
    void *mem;
    uint64_t size_bytes;
};
#define MEMORY_SHARED_NONE                                                                                             \
    (struct memory_shared)                                                                                             \
    {                                                                                                                  \
        .fd = -1                                                                                                       \
    }

enum memory_shared_flags {
    MEMORY_SHARED_SEAL = 1,     /* SHRINK, GROW, SEAL: for whatever is passed to a client */
    MEMORY_SHARED_POPULATE = 2, /* all pages now, or -ENOMEM */
};
must_check int memory_shared_create(const char *name, uint64_t size_bytes, uint32_t flags,
                                    struct memory_shared *ret_shared);
/* Records: daemon-only, for the next process to find; pages come as they are touched. */
must_check int memory_records_create(const char *name, uint64_t size_bytes, struct memory_shared *ret_shared);
/* Those of the process before. Takes the descriptor, on failure too. */
must_check int memory_records_adopt(int fd, struct memory_shared *ret_shared);
/* This part of it (whole multiples of 2 MiB) will be used at random: in hugepages from now on, if they can be had. What is in
 * it stays. Takes as long as zeroing it. */
void memory_records_touch(void *mem, uint64_t size_bytes);
/* Is that worth the call? Else their pages come as well when they are used. Asks the kernel, by a file. */
bool memory_records_by_collapse(void);
/* Takes one that was never created (MEMORY_SHARED_NONE), and leaves that behind. */
void memory_shared_destroy(struct memory_shared *shared);

/* Zeroed memory of our own, never passed to anybody. Populated, aligned to 2 MiB. */
must_check int memory_private_create(uint64_t size_bytes, uint32_t node, void **ret_mem);
void memory_private_destroy(void *mem, uint64_t size_bytes);

/* --- The guard --------------------------------------------------------------------------------------------------- */

/*
 * Installs the process's SIGBUS handler (once; later calls do nothing). A fault in a chunk maps zeros over the page and
 * poisons the chunk; any other fault is fatal as it always was.
 */
must_check int memory_guard_install(void);
/* Guards [mem, mem + size_bytes): *poisoned becomes 1. Chunks are guarded without asking. -ENOSPC. */
must_check int memory_guard_add(void *mem, uint64_t size_bytes, uint64_t page_bytes, uint32_t *poisoned,
                                uint32_t *ret_guard);
void memory_guard_remove(uint32_t guard);
