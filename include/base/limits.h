/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every bound of the daemon in one place. A queue, a table or a loop without a line here is a bug. Those that an admin
 * may change are defaults (DEFAULT_) and have a knob of the same name in the config; docs/admin.md lists them.
 */
#pragma once

#include "include/base/base.h"

/* Names and keys (fixed by the ABI; abi.h asserts that they agree). */
#define KEY_BYTES_MAX 32
#define NAME_BYTES_MAX 63 /* pool, device, class; without the final NUL */
#define PARTS_MAX 1024    /* sessions that commit one block together */

/* Objects. */
#define PIECE_BYTES_MAX (8 * MIB) /* a block or tensor above this is kept in pieces of this size */
#define OBJECT_BYTES_MAX (1 * TIB)
#define GRANULE_BYTES (64 * KIB) /* unit of checksums */

/* Engines, sessions, rings. */
#define ENGINES_MAX 64
#define SESSIONS_MAX 16384
#define SESSION_RINGS_MAX 64
#define RING_ENTRIES_MAX 4096
#define RING_ENTRIES_MIN 8
#define LIST_ITEMS_MAX 4096 /* keys of one SQE */
#define LIST_WARM_ITEMS 16  /* elements of a list whose memory is asked for before the first of them is served */
#define WALKED_PER_ITEM 4   /* pieces of one object that a request goes over, and pays for as for one key */
#define QUANTUM_ITEMS 64    /* keys that one session may have served before the next one's turn */
#define SCRATCH_BYTES_MAX (64 * MIB)
#define CONTROL_MESSAGE_BYTES_MAX 65536
#define SESSION_SPACES_MAX 256                    /* that one session may open at one engine; 10 bits of a handle */
#define ENGINE_RINGS_MAX 16384                    /* of all sessions at one engine */
#define DEFAULT_WAITS 16384                       /* pieces for which one engine's requests wait */
#define ITEM_PIECES_MAX 4096                      /* pieces of an object that one item may touch */
#define REQUEST_TIMEOUT_MS_MAX 60000              /* the longest wait for room or a device */
#define PIN_MS_MAX 86400000                       /* a pin lasts at most a day, unless it is renewed */
#define HELLO_TIMEOUT_MS 5000                     /* a connection that says nothing is closed after that */
#define REFUSED_SESSIONS_MAX 64                   /* connections over a limit that are still told so */
#define USERS_MAX (SESSIONS_MAX + 2)              /* whose leases an engine counts: more than have sessions */
#define UID_OWNERS_MAX 1024                       /* jobs of one user, those included that linger */
#define UID_SCRATCH_BYTES_MAX (2 * GIB)           /* rings' scratch memory of one user's sessions */
#define DESCRIPTORS_PER_MESSAGE_MAX 253           /* the kernel's SCM_MAX_FD */
#define STORED_DESCRIPTORS_MAX 16384              /* kept for the next process: FileDescriptorStoreMax of the unit */
#define STORED_NAME_BYTES_MAX 31                  /* of one of these */
#define DEFAULT_REATTACH_NS UINT64_C(60000000000) /* for which a session waits for its client after a restart */
#define REATTACH_NS_MAX UINT64_C(3600000000000)
#define DEFAULT_SESSION_LEASES 65536
#define DEFAULT_UID_SESSIONS 256
#define DEFAULT_REQUESTS 8192 /* in flight in one engine */
#define DEFAULT_MAX_SESSIONS 4096
#define DEFAULT_UID_REQUESTS_PERCENT 75 /* of what one engine may have in flight */
#define DEFAULT_UID_LEASES_PERCENT 75   /* of what leases may pin of a pool */
#define DEFAULT_UID_DESCRIPTORS 16384
#define UID_DESCRIPTORS_MAX 1048576
#define SESSION_DESCRIPTORS 2 /* its socket and its process */
#define RING_DESCRIPTORS 3    /* its memory, its scratch memory, its doorbell */
#define DEFAULT_SESSION_RINGS 64
#define SESSION_LEASES_MAX (UINT32_C(1) << 24)
#define WORKERS_MAX 64  /* threads that copy and checksum for one engine */
#define WEIGHT_MAX 1000 /* of a pool, device or class against its equals */
#define DEFAULT_WEIGHT 100
#define DEFAULT_URING_ENTRIES 512 /* device requests that one engine has in the kernel */
#define URING_ENTRIES_MAX 8192
#define DEFAULT_POLLS 4096 /* descriptors that one engine waits for */
#define POLLS_MAX (UINT32_C(1) << 20)
#define DEFAULT_WORKS 1024                 /* copies and checksums of one engine that workers have; more wait */
#define WORK_PART_BYTES (256 * KIB)        /* of a larger job, taken by one worker at a time */
#define WORK_HERE_BYTES_MAX (256 * KIB)    /* of a copy or checksum that the engine makes itself */
#define WORK_HERE_COPY_BYTES_MAX (1 * MIB) /* of copies, at a time, if there is one worker */
#define WORK_HERE_TURN_BYTES (64 * KIB)    /* once a turn has made that many, the rest waits for the next */
#define WORK_HERE_QUEUE_BYTES (512 * KIB)  /* that wait for the engine; what goes beyond is for the workers */
#define STREAM_COPY_BYTES_MIN (32 * KIB)   /* from here on copies go around the cache */
#define URGENT_RUN_MAX 16                  /* urgent bytes that go before a background one that waits */
#define BACKGROUND_BYTES_MAX (16 * MIB)    /* of background requests that one device has at a time */
#define BACKGROUND_BESIDE_BYTES (1 * MIB)  /* the same while a client waits for it */
#define WRITE_BESIDE_BYTES (256 * KIB)     /* of writes that one device has while clients wait for reads */
#define READ_SHORT_BYTES_MAX (2 * MIB)     /* a longer read does not hold up writes */
#define WRITE_BYTES_MAX (4 * MIB)          /* of writes that one device has at any time; or two, if they are large */
#define WRITE_REFILL_BYTES (1 * MIB)       /* must end before more go, once there are so many */
#define WRITE_GROWTH 16                    /* a write that ends adds this part of its bytes to the limit beside reads */
#define DEVICE_PART_BYTES (128 * KIB)      /* of a larger request, that go at once while clients wait for reads */
#define READ_FAVOUR 4                      /* reads count so much less than writes between pools */
#define LAG_SECTORS (UINT64_C(131072))     /* that a pool's writes may be behind its share because of reads */
#define SHARED_BYTES (2 * MIB)             /* of the requests of several pools that one device has at a time */
#define SHARED_REQUESTS 4                  /* or so many, if they are large */
#define SHARED_LASTS_BYTES (256 * MIB)     /* that a device moves after two were at it at once, and is still theirs */

/* Memory. */
#define CHUNKS_MAX 4096 /* of one engine */
#define WINDOW_BYTES (1 * GIB)
#define SLAB_BYTES_MIN (16 * MIB)
#define SLAB_BYTES_MAX (128 * MIB) /* so that every multiple of 64 KiB up to PIECE_BYTES_MAX fits without a tail */
#define NODES_MAX 64
#define TIER_BYTES_MIN (64 * MIB)        /* a smaller memory tier is a mistake in the config */
#define WINDOWS_MAX 16384                /* of one engine; the kernel's limit on registered buffers */
#define GUARDED_MAPPINGS_MAX 16384       /* chunks of one process that the SIGBUS handler knows */
#define SMALL_PAGES_BYTES_MAX (64 * GIB) /* of one node in 4 KiB pages, unless force_small_pages */
#define PROMOTE_BYTES_MAX (64 * MIB)     /* of a pool, from CXL memory to DRAM, in a tenth of a second */
#define BUDGET_STEP_BYTES_MIN (64 * MIB) /* that engines trade at a time */
#define CHUNK_CAP_BYTES_MIN (32 * MIB) /* a chunk is an eighth of its pool, or this, so that memory can be given back */
#define GROW_REQUESTS_MAX 64           /* of one engine, at the grower; more wait */
#define MEMORY_WAIT_MS 1000        /* for memory that the machine has, but that somebody else has not given back yet */
#define MEMORY_LOOK_MS 10          /* between two looks meanwhile */
#define MEMORY_WAIT_AGAIN_MS 10000 /* after a wait in vain: no other one */
#define MEMORY_RETRY_MS_MIN 1000   /* until memory that was refused is asked for again; each time twice as long */
#define MEMORY_RETRY_MS_MAX 60000
#define POPULATE_SLICE_BYTES (64 * MIB)
#define POPULATE_THREADS_MAX 16

/* Devices. */
#define DEVICES_MAX 32
#define PARTITIONS_MAX 64 /* of one device */
#define SEGMENT_BYTES_MIN (1 * MIB)
#define SEGMENT_BYTES_MAX (16 * MIB)
#define LOG_BLOCKS_UNFLUSHED_MAX 32 /* a flush comes at least this often */
#define STORE_FILL_UP_MAX 256       /* segments whose sums are read at the start, so that they can be filled up */
#define STORE_TXNS_MAX 64           /* open in one partition */
#define STORE_WRITE_FAILURES_MAX 32 /* writes of data that fail one after the other, until the store is given up */
#define STORE_EVACUATIONS_MAX 4     /* segments of one pool that are being emptied at once */
#define STORE_AHEAD_MAX 16          /* segments of one pool, and of all, that are emptied ahead of need */
#define INJECT_RULES_MAX 16         /* faults that an administrator has ordered of one engine */
#define INJECT_VICTIMS_MAX 1024     /* requests at a time that these have hit */
#define RELOCATIONS_MAX 64          /* pieces of one engine on their way from one segment to another */
#define RELOCATION_BYTES (2 * PIECE_BYTES_MAX) /* of one engine's buffer for them */
#define DEFAULT_DEVICE_DEPTH 128               /* requests in flight on one device, of one engine */
#define DEVICE_FILL_BYTES (4 * MIB)            /* of one write, when a file is filled */
#define DEVICE_LOCK_WAIT_MS 5000               /* for the last requests of a daemon that has ended */

/* Pools, spaces, owners. */
#define POOLS_MAX 256
#define SPACES_MAX 65536
#define WRITE_BUDGET_BYTES_MAX (UINT64_C(1) << 60) /* of one budget; more is as good as none */
#define OWNERS_MAX 16384

/* Requests of spillctl. */
#define ADMIN_MEMBERS_MAX 8
#define ADMIN_NAME_BYTES_MAX 31   /* of a member */
#define ADMIN_TEXT_BYTES_MAX 255  /* of a value */
#define ADMIN_NUMBER_BYTES_MAX 63 /* as it is written */

/* GPUs. */
#define GPUS_MAX 64
#define GPU_LANES_MAX 1024 /* of one GPU */
#define GPU_SLOTS_MAX 64   /* of one direction of a lane */
#define DEFAULT_GPU_SLOTS 3
#define GPU_SLOT_BYTES_MIN PIECE_BYTES_MAX /* so that a lease always fits */
#define GPU_SLOT_BYTES_MAX (64 * MIB)
#define DEFAULT_GPU_SLOT_BYTES (20 * MIB)
#define SESSION_GPU_LANES_MAX 16 /* of one session at one engine */
#define GPU_RING_ENTRIES 16384   /* commands that one engine has at one helper, more wait; and one lane's direction */
#define GPU_LANE_AHEAD 2         /* uses of a lane's direction that are on their way: so many times its slots */
#define GPU_LATE_MS 5000         /* a use that has not ended so long after its time: its helper hangs */
#define GPU_DRAIN_MAX 64         /* bytes of a doorbell at a time; a poll sees the rest */
#define GPU_WINDOW_BYTES WINDOW_BYTES    /* registered with the driver at a time; no command crosses one */
#define GPU_AHEAD_SLOTS 3                /* uses that one direction of a GPU has at its copy engine */
#define GPU_ALLOC_BYTES_MAX (1 * TIB)    /* of a direct lane: more than a GPU has */
#define DEFAULT_POOL_GPU_BYTES (1 * GIB) /* of lanes of one pool, on all GPUs */
#define GPU_RESTART_MS_MAX 30000         /* the longest pause before a helper is started again */
#define GPU_TRIALS_MAX 8                 /* helpers at a time of GPUs that may not be there; of one user: */
#define GPU_UID_TRIALS_MAX 4
#define GPU_UID_PLACES_MAX 4    /* GPUs that a user named and that never served; the next takes the place of one */
#define GPU_BLAMES_MAX 64       /* users that named GPUs that could not be started */
#define GPU_BLAME_MS_MAX 60000  /* the longest pause before one is tried again for such a user */
#define GPU_END_MS 5000         /* for all helpers to end, when the daemon does */
#define GPU_TAKE_MAX 256        /* commands of one ring that a helper takes in one turn */
#define GPU_MESSAGES_MAX 16     /* of the daemon, likewise */
#define GPU_SOCKET_TURNS 64     /* of a busy helper, until it looks for messages again */
#define GPU_SPIN_US_MAX 1000000 /* that a helper polls before it naps */
#define GPU_NAP_NS_MIN 20000    /* of a helper that expects what wakes nobody: at first, and from the fourth on */
#define GPU_NAP_NS_MAX 50000
#define GPU_HANG_MS 10000 /* a copy that takes longer never ends: the context is given up */
#define GPU_STOP_MS 1000  /* for copies under way, when the daemon has gone */

/* Policies. */
#define POLICY_SCAN_MAX 64             /* pinned objects that one search for a victim passes over */
#define POLICY_TURNS_MAX 4096          /* second chances that one search for a victim gives */
#define VICTIM_REPRIEVES_MAX 64        /* pieces that one search for a victim passes over because of their scores */
#define COUNTED_OBJECTS_MAX 65536      /* pieces of one engine whose uses are counted down (ADVISE) */
#define GHOSTS_MAX (UINT32_C(1) << 30) /* of one policy */
#define SIZING_ENTRIES_MAX 256         /* of a manifest */
#define PLAN_ACCESSES_MAX 65536        /* of an order that a session declares: pieces, counted each time */
#define PLANS_MAX 16                   /* such orders that one class of a pool follows, each of another space */

/* The client library. */
#define CLIENT_RINGS_MAX 64 /* of one thread, over all its sessions and engines */
#define CLIENT_SCRATCH_BYTES_MIN (64 * KIB)
#define CLIENT_SPIN_US_MAX 1000000 /* that a blocking call polls for its answer before it sleeps */
#define CLIENT_SPIN_US_DEFAULT 100
#define CLIENT_COPY_SHARE_BYTES (2 * MIB)     /* smaller transfers are not worth waking a thread */
#define CLIENT_COPY_SHARE_FEW_BYTES (8 * MIB) /* the same where there are two CPUs */
#define CLIENT_WAKE_AHEAD_BYTES (384 * KIB)   /* copied while the engine wakes: 16 us of a fast machine */
#define CLIENT_COPY_SLICE_BYTES (128 * KIB)   /* what one copy thread takes at a time */
#define CLIENT_STREAM_BYTES (32 * KIB)        /* copies from here on go past the caches */
#define CLIENT_BATCH_BYTES (1 * MIB)          /* of PUT and GET: leased at a time, four times over */
#define CLIENT_BATCH_END_BYTES                                                                                         \
    (512 * KIB) /* the same for the first and the last batch: nothing overlaps with their requests */
#define CLIENT_BATCH_VIEWS 64
#define CLIENT_SMALL_GET_BYTES (1 * MIB)   /* of a get job that whoever runs its queue's turn copies */
#define CLIENT_SMALL_GET_VIEWS 16          /* elements of such a job */
#define CLIENT_SMALL_GETS_BYTES (16 * MIB) /* that such jobs of a queue have leased or asked for; more wait */
#define CLIENT_SMALL_GET_BYTES_MIN 4096    /* as which an element counts, so that leases are bounded, too */
#define CLIENT_ADMIN_BYTES_MAX (64 * MIB)  /* of one reply to spillctl */
#define CLIENT_QUEUE_JOBS_MAX 65536        /* of one queue */
#define CLIENT_WORKERS_MAX 1024            /* of one object, with the caller */
#define CLIENT_WORKERS_SPIN_NS 20000       /* that one looks for more, or its caller for its end, before it sleeps */
#define CLIENT_TRAIN_TASK_BLOCKS 8         /* that a thread takes at a time: a megabyte of states */
#define CLIENT_TRAIN_ROUND_BLOCKS 16384    /* whose sums are kept until they are added */
