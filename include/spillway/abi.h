/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The protocol between a client and spillwayd: control messages on a Unix socket (SOCK_SEQPACKET), and rings in shared
 * memory. Applications use <spillway/spillway.h>; this header is for other client libraries and for the daemon.
 *
 * Everything is little-endian, of fixed width, with explicit padding. Reserved fields must be zero and are checked: a
 * later version gives them a meaning. No field is ever an address: memory is named by chunk, epoch and offset.
 *
 * Control (one request at a time and socket; one reply a request)
 *   HELLO       first message of a connection; the reply names the limits and the session's tokens
 *   POOL_OPEN   by name; the daemon checks uid, gid and supplementary groups of the peer
 *   SPACE_OPEN  finds or creates a space; the reply names the engine that serves it
 *   RING_NEW    a ring pair at one engine; three descriptors come along: ring memory, scratch memory, doorbell
 *   CHUNK_GET   a chunk's descriptor, to be mapped; for writing where the session may write, else read-only
 *   MANIFEST    what it takes of a pool to lease objects of these sizes, before there are any; and whether it has that
 *   GPU_ATTACH  a lane between a GPU's memory and one engine; two descriptors come along: memory of the GPU (made by the
 *               driver, for cuMemImportFromShareableHandle), and the lane's fences. It is staging memory, or, of a direct
 *               lane, an allocation for the client to use
 *   GPU_DETACH  frees a lane
 *   ADMIN       a JSON request for spillctl; allowed to the daemon's own uid, root and the admin group
 *   UNANSWERED  after a restart: requests of a ring that is gone whose answers never came; see below
 *   AWAY        from the daemon, unasked, the last message of a connection: its next process takes the session over
 *   HANDOVER    `spillwayd --upgrade` asks for all that the daemon has; allowed to the daemon's own uid
 *
 * Restarts
 *   When the connection ends, and reattach_ms of the welcome is not 0 or AWAY was the last message, the daemon is being
 *   restarted, or it has ended the session. The client connects again and says HELLO with its session's token, for
 *   reattach_ms at most (after AWAY: as the message says). The reply is a welcome with the same session number, or -ENOENT:
 *   then the session is over. Leases and chunks are what they were, as long as memory_id is; if that has changed they are
 *   gone, and the numbers of leases, chunks and epochs mean something else from now on. Everything else is made anew: the
 *   client opens its pools and spaces (handles may change), and rings; GPU lanes are over.
 *   It then sends the requests that were not answered once more, with the same user_data and SPW_SQE_RETRY. Before that, for
 *   each ring that had RESERVE or ACQUIRE under way, UNANSWERED names these by their user_data: what they were granted is
 *   taken back. So user_data must not be used twice in a session for such requests, nor be 0, as long as the leases live.
 *   The credentials must be those of before, pid included. A token that is not known ends the connection.
 *
 * Rings (one producer, one consumer each; indices are free-running, sizes powers of two)
 *   The client writes SQEs and sq.tail, the daemon cq.tail and CQEs. The daemon takes an SQE only when the completion ring
 *   has room for its CQE beside those of all that are in flight: it never overflows, a client that does not take its CQEs
 *   just stops being served on that ring. CQEs come in any order. An SQE names a list of items in the ring's scratch
 *   memory, and where in it the results go. Items and results belong to the daemon from the submission to the CQE.
 *   Violations (a tail that is further ahead than the ring is long, a reserved bit, an unknown opcode) end the session.
 *   Mistakes in arguments fail the one SQE (an unknown handle, a list outside scratch, arg[] that the operation does not
 *   use and that is not 0) or the one item:
 *     -ERANGE     a range that no object can have: such an item takes one result
 *     -EMSGSIZE   length 0 for an object of several pieces (LOOKUP answers for its first piece)
 *     -E2BIG      an item of more than 4096 pieces; the list ends there (SPW_LIMIT_PIECES)
 *     -EOVERFLOW  the results do not fit scratch; the list ends there
 *   What was answered before the list ended is valid. A request that was cancelled, or ran out of time, has that errno
 *   in its CQE if nothing was granted; else the CQE says 0, and each result its own status.
 *
 * Sleeping and waking
 *   Before a side sleeps it sets its flag, makes a full fence, and looks at the other's tail once more. A side that
 *   publishes a tail makes a full fence and then looks at the other's flag.
 *   The client wakes the engine (sq.flags & SPW_RING_NEED_WAKEUP) by sending one byte on the doorbell socket. The
 *   daemon wakes the client by FUTEX_WAKE on cq.tail (cq.flags & SPW_RING_WAKE_FUTEX) or by one byte on the doorbell
 *   (cq.flags & SPW_RING_WAKE_DOORBELL), which a client can poll; either is one-shot: the daemon does not clear the
 *   flag, but a client that is awake clears it.
 *   Flags are the lowest 4 bits. Above them is a number, which the sleeper changes each time it sets its flags, or 0. Who
 *   has sent a byte need not send another as long as the same number, not 0, stands there.
 */
#pragma once

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define SPW_ABI_VERSION 1
#define SPW_ABI_MAGIC UINT32_C(0x4c575053) /* "SPWL" in memory */

#define SPW_KEY_BYTES 32
#define SPW_NAME_BYTES 64 /* with the final NUL */
#define SPW_TOKEN_BYTES 16
#define SPW_DIGEST_BYTES 32
#define SPW_TEXT_BYTES 256
#define SPW_LIST_MAX 4096

#define SPW_ASSERT_SIZE(type, bytes) static_assert(sizeof(struct type) == (bytes), #type)
#define SPW_ASSERT_OFFSET(type, field, at) static_assert(offsetof(struct type, field) == (at), #type "." #field)

/* --- Control messages ---------------------------------------------------------------------------------------------- */

enum {
    SPW_MSG_HELLO = 1,
    SPW_MSG_POOL_OPEN = 2,
    SPW_MSG_SPACE_OPEN = 3,
    SPW_MSG_RING_NEW = 4,
    SPW_MSG_RING_FREE = 5,
    SPW_MSG_CHUNK_GET = 6,
    SPW_MSG_ADMIN = 7,
    SPW_MSG_GPU_ATTACH = 8,
    SPW_MSG_GPU_DETACH = 9,
    SPW_MSG_UNANSWERED = 10,
    SPW_MSG_AWAY = 11, /* the daemon's; it has SPW_MSG_REPLY, too */
    SPW_MSG_HANDOVER = 12,
    SPW_MSG_MANIFEST = 13,
    SPW_MSG_REPLY = 0x8000, /* or-ed to the type of the request */
};

/* Begins every message, in both directions. */
struct spw_msg {
    uint32_t magic;
    uint16_t type;
    uint16_t version;    /* SPW_ABI_VERSION of the sender */
    uint32_t size_bytes; /* of the whole message */
    uint32_t request;    /* chosen by the client, returned in the reply */
    int32_t status;      /* reply: 0 or a negative errno; request: 0 */
    uint32_t detail;     /* reply: SPW_LIMIT_…, or 0 */
};
SPW_ASSERT_SIZE(spw_msg, 24);
SPW_ASSERT_OFFSET(spw_msg, type, 4);
SPW_ASSERT_OFFSET(spw_msg, version, 6);
SPW_ASSERT_OFFSET(spw_msg, size_bytes, 8);
SPW_ASSERT_OFFSET(spw_msg, request, 12);
SPW_ASSERT_OFFSET(spw_msg, status, 16);
SPW_ASSERT_OFFSET(spw_msg, detail, 20);

/* The reply to any request that failed: what, which limit, and which knob. */
struct spw_msg_error {
    struct spw_msg msg;
    char text[SPW_TEXT_BYTES]; /* NUL-terminated */
};
SPW_ASSERT_SIZE(spw_msg_error, 280);
SPW_ASSERT_OFFSET(spw_msg_error, text, 24);

/* What the daemon can do, in spw_msg_welcome.features. */
enum {
    SPW_FEATURE_NVME = 1 << 0,
    SPW_FEATURE_DEGRADED_MEMLOCK = 1 << 1, /* memory is not locked: slower I/O */
    SPW_FEATURE_GPU = 1 << 2,              /* at least one GPU is served */
};

struct spw_msg_hello {
    struct spw_msg msg;
    uint32_t version_min, version_max;      /* that the client speaks */
    uint64_t flags;                         /* reserved */
    uint8_t session_token[SPW_TOKEN_BYTES]; /* of a session to go on with, after a restart; zero: a new one */
    uint8_t owner_token[SPW_TOKEN_BYTES];   /* of the job that this process belongs to; zero: a new owner */
    char name[SPW_NAME_BYTES];              /* for spillctl sessions; NUL-terminated */
    uint64_t reserved[4];
};
SPW_ASSERT_SIZE(spw_msg_hello, 168);
SPW_ASSERT_OFFSET(spw_msg_hello, flags, 32);
SPW_ASSERT_OFFSET(spw_msg_hello, session_token, 40);
SPW_ASSERT_OFFSET(spw_msg_hello, owner_token, 56);
SPW_ASSERT_OFFSET(spw_msg_hello, name, 72);
SPW_ASSERT_OFFSET(spw_msg_hello, reserved, 136);

struct spw_msg_welcome {
    struct spw_msg msg;
    uint32_t version; /* that both speak from now on */
    uint32_t engines;
    uint64_t features;
    uint64_t session; /* number, as spillctl shows it */
    uint8_t session_token[SPW_TOKEN_BYTES];
    uint8_t owner_token[SPW_TOKEN_BYTES];
    uint32_t rings_max, ring_entries_max;
    uint32_t list_max, reserved0;
    uint64_t scratch_bytes_max;
    uint64_t memory_id; /* of what the daemon has in memory; another one: all of that is new */
    uint32_t
        reattach_ms; /* for which the session waits for its client after a restart; 0: it ends with the connection */
    uint32_t reserved1;
    uint64_t reserved[2];
};
SPW_ASSERT_SIZE(spw_msg_welcome, 136);
SPW_ASSERT_OFFSET(spw_msg_welcome, features, 32);
SPW_ASSERT_OFFSET(spw_msg_welcome, session, 40);
SPW_ASSERT_OFFSET(spw_msg_welcome, session_token, 48);
SPW_ASSERT_OFFSET(spw_msg_welcome, owner_token, 64);
SPW_ASSERT_OFFSET(spw_msg_welcome, rings_max, 80);
SPW_ASSERT_OFFSET(spw_msg_welcome, scratch_bytes_max, 96);
SPW_ASSERT_OFFSET(spw_msg_welcome, memory_id, 104);
SPW_ASSERT_OFFSET(spw_msg_welcome, reattach_ms, 112);
SPW_ASSERT_OFFSET(spw_msg_welcome, reserved, 120);

struct spw_msg_pool_open {
    struct spw_msg msg;
    char name[SPW_NAME_BYTES];
};
SPW_ASSERT_SIZE(spw_msg_pool_open, 88);

enum {
    SPW_POOL_TRUSTED = 1 << 0, /* sessions write in place; COMMIT copies nothing */
};

struct spw_msg_pool {
    struct spw_msg msg;
    uint32_t pool; /* handle for this session */
    uint32_t flags;
    uint64_t dram_bytes, cxl_bytes, nvme_bytes, gpu_bytes; /* budgets */
    uint64_t reserved[2];
};
SPW_ASSERT_SIZE(spw_msg_pool, 80);
SPW_ASSERT_OFFSET(spw_msg_pool, dram_bytes, 32);

#define SPW_MANIFEST_MAX 256 /* entries */

enum {
    SPW_MANIFEST_WRITE = 1 << 0, /* leased for writing: in a shared pool that takes private memory of the session */
};

/* Objects of one size. Entries may have the same size. */
struct spw_manifest_entry {
    uint64_t size_bytes; /* of each, 1 TiB at most; above a piece it is kept in pieces */
    uint64_t count;      /* how many there are; at least `slots` are meant */
    uint32_t slots;      /* how many are leased at once */
    uint32_t flags;      /* SPW_MANIFEST_… */
};
SPW_ASSERT_SIZE(spw_manifest_entry, 24);
SPW_ASSERT_OFFSET(spw_manifest_entry, slots, 16);

/*
 * What that takes, and what there is for one space of the pool, whoever else uses it. leased_bytes is the sum over all slots,
 * each piece in whole sectors of 4 KiB: no more than 4 KiB a piece above the sizes. Nothing is set aside by asking.
 */
struct spw_sizing {
    uint64_t leased_bytes;   /* all slots at once */
    uint64_t leasable_bytes; /* what this user may lease at once */
    uint64_t memory_bytes,
        memory_max_bytes; /* of the pool, so that all slots can be leased; that it has, in all tiers of memory */
    uint64_t private_bytes, private_max_bytes; /* of the session, for slots that are written: 0 in a trusted pool */
    uint64_t leases, leases_max;               /* of the session: one a piece */
    uint64_t stored_bytes, stored_max_bytes;   /* all objects; memory and devices */
    uint32_t limit;                            /* enum spw_limit: the first that does not allow it; 0: it fits */
    uint32_t reserved;
};
SPW_ASSERT_SIZE(spw_sizing, 88);
SPW_ASSERT_OFFSET(spw_sizing, memory_bytes, 16);
SPW_ASSERT_OFFSET(spw_sizing, leases, 48);
SPW_ASSERT_OFFSET(spw_sizing, limit, 80);

/* Followed by n entries. -EINVAL: an entry without a size, or of one above 1 TiB; -E2BIG: sums that no machine has. */
struct spw_msg_manifest {
    struct spw_msg msg;
    uint32_t pool; /* handle */
    uint32_t n;    /* at most SPW_MANIFEST_MAX */
    uint64_t reserved[2];
};
SPW_ASSERT_SIZE(spw_msg_manifest, 48);
SPW_ASSERT_OFFSET(spw_msg_manifest, reserved, 32);

struct spw_msg_sizing {
    struct spw_msg msg;
    struct spw_sizing sizing;
    uint64_t reserved[2];
};
SPW_ASSERT_SIZE(spw_msg_sizing, 128);
SPW_ASSERT_OFFSET(spw_msg_sizing, sizing, 24);

enum spw_class {
    SPW_CLASS_GENERIC = 0,
    SPW_CLASS_KV = 1,
    SPW_CLASS_WEIGHTS = 2,
    SPW_CLASS_ACTIVATION = 3,
    SPW_CLASS_OPTIMIZER = 4,
    SPW_CLASSES = 5,
};

enum spw_durability {
    SPW_DURABILITY_DEFAULT = 0, /* of the class */
    SPW_CACHE = 1,              /* may be dropped under pressure */
    SPW_SCRATCH = 2,            /* never dropped while its owner lives */
    SPW_DURABLE = 3,            /* survives crash and power loss once a SYNC was acknowledged */
};

enum {
    SPW_SPACE_MUST_EXIST = 1 << 0, /* ENOENT instead of creating it */
};

struct spw_msg_space_open {
    struct spw_msg msg;
    uint32_t pool; /* handle */
    uint32_t flags;
    uint8_t digest[SPW_DIGEST_BYTES]; /* of what the bytes mean; with the pool it is the space's identity */
    uint64_t item_bytes;              /* fixed size of its blocks, or 0: each its own */
    uint8_t class_id;                 /* enum spw_class */
    uint8_t durability;               /* enum spw_durability */
    uint8_t reserved0[2];
    uint32_t node; /* NUMA node that the client prefers, or UINT32_MAX */
    uint64_t reserved[2];
};
SPW_ASSERT_SIZE(spw_msg_space_open, 96);
SPW_ASSERT_OFFSET(spw_msg_space_open, digest, 32);
SPW_ASSERT_OFFSET(spw_msg_space_open, item_bytes, 64);
SPW_ASSERT_OFFSET(spw_msg_space_open, class_id, 72);
SPW_ASSERT_OFFSET(spw_msg_space_open, node, 76);
SPW_ASSERT_OFFSET(spw_msg_space_open, reserved, 80);

struct spw_msg_space {
    struct spw_msg msg;
    uint32_t space;  /* handle for this session */
    uint32_t engine; /* that serves it: use a ring of this engine */
    uint64_t space_id;
    uint32_t piece_bytes; /* objects above this are kept, and acquired, in pieces of this size */
    uint32_t shards;      /* 1 */
    uint64_t reserved[2];
};
SPW_ASSERT_SIZE(spw_msg_space, 64);
SPW_ASSERT_OFFSET(spw_msg_space, space_id, 32);
SPW_ASSERT_OFFSET(spw_msg_space, piece_bytes, 40);

struct spw_msg_ring_new {
    struct spw_msg msg;
    uint32_t engine;
    uint32_t sq_entries, cq_entries; /* powers of two */
    uint32_t reserved0;
    uint64_t scratch_bytes;
    uint64_t reserved[2];
};
SPW_ASSERT_SIZE(spw_msg_ring_new, 64);
SPW_ASSERT_OFFSET(spw_msg_ring_new, scratch_bytes, 40);

/* Comes with three descriptors: ring memory, scratch memory, the client's end of the doorbell. */
struct spw_msg_ring {
    struct spw_msg msg;
    uint32_t ring; /* number in this session */
    uint32_t sq_entries, cq_entries;
    uint32_t sq_offset, cq_offset; /* of the arrays in the ring memory, whose start is a struct spw_ring */
    uint32_t reserved0;
    uint64_t ring_bytes, scratch_bytes;
    uint64_t reserved[2];
};
SPW_ASSERT_SIZE(spw_msg_ring, 80);
SPW_ASSERT_OFFSET(spw_msg_ring, ring_bytes, 48);

struct spw_msg_ring_free {
    struct spw_msg msg;
    uint32_t ring;
    uint32_t reserved0;
};
SPW_ASSERT_SIZE(spw_msg_ring_free, 32);

struct spw_msg_chunk_get {
    struct spw_msg msg;
    uint32_t engine;
    uint32_t chunk; /* as a result named them */
    uint32_t epoch;
    uint32_t reserved0;
};
SPW_ASSERT_SIZE(spw_msg_chunk_get, 40);

enum {
    SPW_CHUNK_WRITABLE = 1 << 0,
};

/* Comes with one descriptor. */
struct spw_msg_chunk {
    struct spw_msg msg;
    uint32_t chunk, epoch;
    uint32_t flags;
    uint32_t page_bytes; /* of the memory behind it: map at multiples of this */
    uint64_t size_bytes;
};
SPW_ASSERT_SIZE(spw_msg_chunk, 48);
SPW_ASSERT_OFFSET(spw_msg_chunk, size_bytes, 40);

#define SPW_UUID_BYTES 16

struct spw_msg_gpu_attach {
    struct spw_msg msg;
    uint32_t pool; /* handle: its gpu budget pays for the lane's memory */
    uint32_t engine;
    uint8_t uuid[SPW_UUID_BYTES]; /* the GPU's, or MIG instance's, as the driver tells it */
    uint32_t slots;               /* of each direction; 0: the daemon's default */
    uint32_t reserved0;
    uint64_t slot_bytes;  /* 0: the daemon's default. Rounded up to what the driver can allocate */
    uint64_t alloc_bytes; /* not 0: a direct lane, with an allocation of this size, likewise rounded up */
    uint64_t reserved[3];
};
SPW_ASSERT_SIZE(spw_msg_gpu_attach, 96);
SPW_ASSERT_OFFSET(spw_msg_gpu_attach, uuid, 32);
SPW_ASSERT_OFFSET(spw_msg_gpu_attach, slots, 48);
SPW_ASSERT_OFFSET(spw_msg_gpu_attach, slot_bytes, 56);
SPW_ASSERT_OFFSET(spw_msg_gpu_attach, alloc_bytes, 64);
SPW_ASSERT_OFFSET(spw_msg_gpu_attach, reserved, 72);

/* Comes with two descriptors: the lane's memory, zeroed, and one page that begins with a struct spw_gpu_fences. Staging memory
 * has the slots of spills, then as many of fetches. -ENODEV: no such GPU here, or it cannot be used: words tell why; -ENOSPC:
 * SPW_LIMIT_POOL_GPU, SPW_LIMIT_GPU_LANES; -ENOMEM: the GPU has no memory left; -EAGAIN: its helper is being started. */
struct spw_msg_gpu {
    struct spw_msg msg;
    uint32_t lane; /* number at this engine */
    uint32_t slots;
    uint64_t slot_bytes;
    uint64_t staging_bytes; /* of the lane's memory: at least 2 * slots * slot_bytes, or alloc_bytes */
    uint64_t alloc_bytes;   /* that uses may name; 0: no direct lane */
    uint64_t reserved[3];
};
SPW_ASSERT_SIZE(spw_msg_gpu, 80);
SPW_ASSERT_OFFSET(spw_msg_gpu, slot_bytes, 32);
SPW_ASSERT_OFFSET(spw_msg_gpu, staging_bytes, 40);
SPW_ASSERT_OFFSET(spw_msg_gpu, alloc_bytes, 48);
SPW_ASSERT_OFFSET(spw_msg_gpu, reserved, 56);

struct spw_msg_gpu_detach {
    struct spw_msg msg;
    uint32_t engine;
    uint32_t lane;
};
SPW_ASSERT_SIZE(spw_msg_gpu_detach, 32);

/* Followed by as many user_data, 64 bits each: at most SPW_LIST_MAX. Answered when their leases are given back. */
struct spw_msg_unanswered {
    struct spw_msg msg;
    uint32_t engine;
    uint32_t n;
};
SPW_ASSERT_SIZE(spw_msg_unanswered, 32);
SPW_ASSERT_OFFSET(spw_msg_unanswered, engine, 24);

struct spw_msg_away {
    struct spw_msg msg;
    uint32_t reattach_ms;
    uint32_t reserved0;
};
SPW_ASSERT_SIZE(spw_msg_away, 32);

/* The reply to HANDOVER: several messages, each with as many descriptors as names; all but the last have SPW_MSG_MORE in
 * `detail`. Names are NUL-terminated; that of the listening socket is `socket`. */
struct spw_msg_handover {
    struct spw_msg msg;
    uint32_t n;
    uint32_t reserved0;
    char names[64][32];
};
SPW_ASSERT_SIZE(spw_msg_handover, 2080);

/* ADMIN request and reply: a struct spw_msg, then JSON text up to size_bytes. A long reply comes in several messages of
 * the same request; all but the last have SPW_MSG_MORE in `detail`. */
#define SPW_MSG_MORE UINT32_C(0x80000000)

/* --- Limits that an error names ------------------------------------------------------------------------------------ */

/* spw_result.detail, spw_cqe.detail, spw_msg.detail: which limit was met. docs/admin.md names the knob of each. */
enum spw_limit {
    SPW_LIMIT_NONE = 0,
    SPW_LIMIT_POOL_DRAM = 1,      /* [pool] dram */
    SPW_LIMIT_POOL_NVME = 2,      /* [pool] nvme */
    SPW_LIMIT_POOL_LEASES = 3,    /* [pool] max_leases_percent: leased bytes of the tier */
    SPW_LIMIT_SESSION_LEASES = 4, /* [daemon] session_leases */
    SPW_LIMIT_SESSION_BYTES = 5,  /* [pool] session_bytes */
    SPW_LIMIT_OBJECTS = 6,        /* [daemon] max_objects */
    SPW_LIMIT_REQUESTS = 7,       /* requests in flight in one engine */
    SPW_LIMIT_UID_SESSIONS = 8,   /* [daemon] uid_sessions */
    SPW_LIMIT_SESSIONS = 9,       /* [daemon] max_sessions */
    SPW_LIMIT_SESSION_RINGS = 10, /* [daemon] session_rings */
    SPW_LIMIT_SPACES = 11,        /* spaces of the daemon */
    SPW_LIMIT_OWNERS = 12,        /* owners of the daemon */
    SPW_LIMIT_OBJECT_BYTES = 13,  /* largest object; or its size in this space */
    SPW_LIMIT_DESCRIPTORS = 14,   /* LimitNOFILE */
    SPW_LIMIT_MEMLOCK = 15,       /* LimitMEMLOCK */
    SPW_LIMIT_DEVICE_FAILED = 16, /* a device failed: spillctl device */
    SPW_LIMIT_PIECES = 17,        /* extents that one request may hold */
    SPW_LIMIT_HINTS = 18,         /* objects of one engine that are pinned, or whose uses are counted */
    SPW_LIMIT_POOL_GPU = 19,      /* [pool] gpu */
    SPW_LIMIT_GPU_LANES = 20,     /* lanes of one GPU, or of one session */
    SPW_LIMIT_GPU_FAILED = 21,    /* the GPU or its helper failed: spillctl gpus */
    SPW_LIMIT_DEVICE_BYTES = 22,  /* a device is full of what must stay */
    SPW_LIMIT_DEVICE_LOG = 23,    /* a device's log is full: spillctl device format --object-size */
    SPW_LIMIT_UID_LEASES = 24,    /* [pool] uid_leases_percent: of all sessions of the user */
    SPW_LIMIT_UID_FDS = 25,       /* [daemon] uid_descriptors */
    SPW_LIMIT_PLAN = 26,          /* accesses of a plan: 65536, or as many as its pool may have pieces in memory */
    SPW_LIMIT_PLANS = 27,         /* spaces of a pool and a class that have a plan: 16 */
};

/* --- Rings --------------------------------------------------------------------------------------------------------- */

enum {
    SPW_RING_NEED_WAKEUP = 1 << 0,   /* sq.flags, daemon: send a byte on the doorbell */
    SPW_RING_WAKE_FUTEX = 1 << 0,    /* cq.flags, client: FUTEX_WAKE cq.tail */
    SPW_RING_WAKE_DOORBELL = 1 << 1, /* cq.flags, client: send a byte on the doorbell */
};

/* The start of a ring's memory. What one side writes never shares a pair of cache lines with what the other writes. */
struct spw_ring {
    struct {
        uint32_t sq_tail;  /* client */
        uint32_t cq_head;  /* client */
        uint32_t cq_flags; /* client */
        uint32_t reserved[29];
    } client;
    struct {
        uint32_t sq_head;  /* daemon */
        uint32_t cq_tail;  /* daemon; a futex */
        uint32_t sq_flags; /* daemon */
        uint32_t reserved[29];
    } daemon;
};
SPW_ASSERT_SIZE(spw_ring, 256);
SPW_ASSERT_OFFSET(spw_ring, client.cq_head, 4);
SPW_ASSERT_OFFSET(spw_ring, client.cq_flags, 8);
SPW_ASSERT_OFFSET(spw_ring, daemon.sq_head, 128);
SPW_ASSERT_OFFSET(spw_ring, daemon.cq_tail, 132);
SPW_ASSERT_OFFSET(spw_ring, daemon.sq_flags, 136);

enum spw_op {
    SPW_OP_NOP = 0,
    SPW_OP_LOOKUP = 1,     /* items → results; cqe.value: length of the longest resident prefix */
    SPW_OP_RESERVE = 2,    /* items → results with write leases */
    SPW_OP_COMMIT = 3,     /* handles → results */
    SPW_OP_ABORT = 4,      /* handles → results */
    SPW_OP_ACQUIRE = 5,    /* items → results with leases */
    SPW_OP_RELEASE = 6,    /* handles → results */
    SPW_OP_TOUCH = 7,      /* items: counts as a use */
    SPW_OP_PREFETCH = 8,   /* items: into memory; arg[0] = deadline in ms, 0: none. Completes when all are there */
    SPW_OP_ADVISE = 9,     /* items; arg[0] = enum spw_advice, arg[1] = its value */
    SPW_OP_PIN = 10,       /* items: not evicted for arg[0] ms; 0 unpins */
    SPW_OP_DELETE = 11,    /* items */
    SPW_OP_SYNC = 12,      /* items, or the whole space when n_items is 0: durable, and atomically so */
    SPW_OP_STAT = 13,      /* a struct spw_stat at `results` */
    SPW_OP_CANCEL = 14,    /* arg[0] = user_data of the request; its own CQE says whether it took */
    SPW_OP_TENSOR = 15,    /* one item, length_bytes = size: opens or creates a tensor */
    SPW_OP_PUT_RANGE = 16, /* items: from the leased tensor range of handle arg[0], from its byte arg[1] on, commit */
    SPW_OP_GET_RANGE = 17, /* items: into the write-leased tensor range of handle arg[0], from its byte arg[1] on */
    SPW_OP_GPU_SPILL =
        18, /* handles: arg[0] = lane, arg[1] = sequence, arg[2] = offset in the allocation of a direct lane;
                              from that slot, or from there, to the leases' bytes */
    SPW_OP_GPU_FETCH = 19, /* handles: the same, the other way */
    SPW_OP_PLAN = 20, /* items: the order of accesses; arg[0] = items of it before this list, arg[1] = of all of it */
    SPW_OPS = 21,
};

enum {
    SPW_SQE_CHAIN = 1 << 0,   /* each item is the prefix of the next: the policy lives on this */
    SPW_SQE_ALL = 1 << 1,     /* all or nothing; else each item has a status of its own */
    SPW_SQE_WRITE = 1 << 2,   /* ACQUIRE: for writing (tensors) */
    SPW_SQE_NO_WAIT = 1 << 3, /* ACQUIRE: what is not in memory is -EAGAIN, and is not fetched */
    /* In sessions that went on after a restart: this was submitted before, and was perhaps done. So COMMIT, ABORT and RELEASE of
     * a handle that is not known, and DELETE of an object that is not there, have done what was wanted: 0. */
    SPW_SQE_RETRY = 1 << 4,
    SPW_SQE_FLAGS = 0x1f,
};

struct spw_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t reserved0;
    uint32_t space;      /* handle; 0 for NOP, CANCEL, and lists of handles */
    uint64_t user_data;  /* returned in the CQE; names the request for CANCEL */
    uint32_t items;      /* byte offset in scratch, a multiple of 64 */
    uint32_t n_items;    /* at most SPW_LIST_MAX */
    uint32_t results;    /* byte offset in scratch, a multiple of 64 */
    uint32_t timeout_ms; /* how long it may take; 0: 60 s, the most there is, but RESERVE does not wait for room */
    uint64_t arg[3];
    uint64_t reserved;
};
SPW_ASSERT_SIZE(spw_sqe, 64);
SPW_ASSERT_OFFSET(spw_sqe, space, 4);
SPW_ASSERT_OFFSET(spw_sqe, user_data, 8);
SPW_ASSERT_OFFSET(spw_sqe, items, 16);
SPW_ASSERT_OFFSET(spw_sqe, n_items, 20);
SPW_ASSERT_OFFSET(spw_sqe, results, 24);
SPW_ASSERT_OFFSET(spw_sqe, timeout_ms, 28);
SPW_ASSERT_OFFSET(spw_sqe, arg, 32);
SPW_ASSERT_OFFSET(spw_sqe, reserved, 56);

struct spw_cqe {
    uint64_t user_data;
    int32_t status;  /* 0: every item has its own status; else a negative errno for the whole request */
    uint32_t detail; /* enum spw_limit */
    uint64_t value;  /* see the operation; else the number of items with status 0 */
    uint64_t reserved;
};
SPW_ASSERT_SIZE(spw_cqe, 32);
SPW_ASSERT_OFFSET(spw_cqe, status, 8);
SPW_ASSERT_OFFSET(spw_cqe, detail, 12);
SPW_ASSERT_OFFSET(spw_cqe, value, 16);

/*
 * One object, or a range of it. A range that touches k pieces of an object takes k consecutive results, so the client
 * knows beforehand where each item's results lie: pieces(offset, length) = last piece − first piece + 1, and 1 for
 * length 0, which means the whole of an object of one piece.
 */
struct spw_item {
    uint8_t key[SPW_KEY_BYTES]; /* zero-padded; compared whole */
    uint32_t group;
    uint8_t key_len; /* 1 to 32; part of the identity */
    uint8_t flags;   /* reserved */
    uint16_t part;
    uint16_t n_parts; /* 0 or 1: not in parts */
    uint16_t reserved0;
    uint32_t reserved1;
    uint64_t offset_bytes;
    uint64_t length_bytes; /* RESERVE: the object's size (0: the space's item_bytes) */
};
SPW_ASSERT_SIZE(spw_item, 64);
SPW_ASSERT_OFFSET(spw_item, group, 32);
SPW_ASSERT_OFFSET(spw_item, key_len, 36);
SPW_ASSERT_OFFSET(spw_item, part, 38);
SPW_ASSERT_OFFSET(spw_item, n_parts, 40);
SPW_ASSERT_OFFSET(spw_item, offset_bytes, 48);
SPW_ASSERT_OFFSET(spw_item, length_bytes, 56);

/*
 * Write leases. In a trusted pool they are on the tensor's own bytes. In a shared pool they are on a copy of the range in
 * a chunk that only this session maps (its size counts against session_bytes, as for RESERVE), filled before the grant, so
 * that ACQUIRE with WRITE and NO_WAIT is -EAGAIN. RELEASE with DIRTY copies the range back, and is answered when others
 * can see it; readers that have a lease then go on seeing the old bytes until they release it. Nothing else changes the
 * tensor: not a RELEASE without DIRTY, not the end of the session. Of two leases on the same range the last RELEASE wins,
 * as a whole. A RELEASE that fails (-ENOSPC: no room for the copy in time; -EFAULT: the copy could not be read) has ended
 * the lease and changed nothing; one that was cancelled or timed out may still take effect. PUT_RANGE and GET_RANGE work
 * on the copy.
 */
enum {
    SPW_RELEASE_DIRTY = 1 << 0,   /* write lease: the bytes changed */
    SPW_RELEASE_DISCARD = 1 << 1, /* write lease: the range goes back to what it was, as far as that is known */
};

/*
 * Moving a GPU's bytes. A lane has two directions, each with slots of its own that are used strictly in turn: use
 * number s (from 1 on, the sequence) of a direction is of slot (s - 1) % slots. One GPU_SPILL or GPU_FETCH is one use: the
 * bytes of its leases lie in the slot one behind the other, in the list's order, without gaps. Leases are as RESERVE or
 * ACQUIRE gave them (for GPU_SPILL those of RESERVE or for writing), each on all that it is on; COMMIT and RELEASE are the
 * client's, and are -EBUSY until the CQE. There are no results: value is the number of bytes.
 *
 *   spill   the client's stream waits for daemon_seq >= s - slots, fills the slot, and writes client_seq = s; the SQE may be
 *           submitted before or after. The daemon copies when it sees client_seq >= s, then publishes daemon_seq = s.
 *   fetch   the SQE is submitted; the daemon copies when it sees client_seq >= s - slots, then publishes daemon_seq = s. The
 *           client's stream waits for it, empties the slot, and writes client_seq = s.
 *
 * A direct lane has no slots: the bytes of a use lie in its allocation, from arg[2] on, and the client alone knows what is
 * where. `slots` only bounds how many uses may be on their way, and slot_bytes how large one is. Nothing is filled or emptied
 * in turn, so both directions have the same rule: the daemon copies when it sees client_seq >= s, which the client's stream
 * writes when the source is there (spill) or may be overwritten (fetch), then publishes daemon_seq = s. Uses whose bytes
 * overlap are in no order, but for those of one direction, which are copied one after the other.
 *
 * All are free-running 64-bit numbers that begin with 0. When a use fails (-EIO: the copy; -ETIMEDOUT: the request's time
 * was over; -ECANCELED; -EPIPE: an earlier use had failed) the lane is over in both directions: the daemon stores the
 * status, as a positive errno, in both `status` words, then SPW_GPU_SEQ_OVER in both daemon_seq. So a stream that waits
 * goes on, and the kernel behind it must look at the status before it uses the slot's bytes. If the daemon is gone the
 * client does that itself. Requests of a lane that is over are -EPIPE; attach again. CANCEL of such a request ends its lane,
 * with -ECANCELED. The CQE comes when nobody touches the bytes any more, so no deadline ends it earlier.
 * The request as a whole fails with -EBADF (no such lane of this session, a handle that is no lease), -EXDEV (a lease in
 * another pool than the lane's), -EBUSY (a lease that another such request has, or that is named twice), -EROFS (GPU_SPILL
 * to a lease for reading), -EINVAL (more bytes than a slot has, or past the end of the allocation, no lease at all, `results`
 * or flags that are not 0, arg[1] is not the direction's next sequence, arg[2] is not 0 but the lane is not direct), -EBUSY with SPW_LIMIT_REQUESTS (of this direction, 2 * slots uses are on their way,
 * or uses of 16384 leases together). Then nothing has happened, and the sequence stays. Once it is begun, it is used up.
 * A lease for writing that was spilled into ends as if dirty, unless it is discarded. After a GPU_SPILL that failed its range
 * is not known: a RELEASE without DISCARD leaves it torn (in a shared pool: fails with -EIO, and changes nothing), unless
 * another GPU_SPILL to the same lease did not fail. What a reservation holds is up to the client, who may write it anew.
 */
#define SPW_GPU_SEQ_OVER (UINT64_C(1) << 62)

struct spw_gpu_fence {
    uint64_t client_seq;
    uint64_t reserved0[7];
    uint64_t daemon_seq;
    uint64_t status; /* 0, or a positive errno; stored before daemon_seq */
    uint64_t reserved1[6];
};
SPW_ASSERT_SIZE(spw_gpu_fence, 128);
SPW_ASSERT_OFFSET(spw_gpu_fence, daemon_seq, 64);
SPW_ASSERT_OFFSET(spw_gpu_fence, status, 72);

struct spw_gpu_fences {
    struct spw_gpu_fence spill;
    struct spw_gpu_fence fetch;
};
SPW_ASSERT_SIZE(spw_gpu_fences, 256);
SPW_ASSERT_OFFSET(spw_gpu_fences, fetch, 128);

struct spw_handle {
    uint64_t lease;
    uint32_t flags;
    uint32_t reserved;
};
SPW_ASSERT_SIZE(spw_handle, 16);
SPW_ASSERT_OFFSET(spw_handle, flags, 8);

enum spw_tier {
    SPW_TIER_NONE = 0,
    SPW_TIER_GPU = 1,
    SPW_TIER_DRAM = 2,
    SPW_TIER_CXL = 3,
    SPW_TIER_NVME = 4,
};

enum {
    SPW_RESULT_PENDING = 1 << 0, /* LOOKUP: being written by someone, or being read from a device */
    SPW_RESULT_FETCHED = 1 << 1, /* ACQUIRE: came from a device for this request */
};

struct spw_result {
    int32_t status;  /* 0 or a negative errno */
    uint16_t detail; /* enum spw_limit */
    uint8_t tier;    /* enum spw_tier: where it was found */
    uint8_t flags;
    uint64_t lease; /* handle, 0 if none; of a handle that failed: the same if it is a lease still */
    uint32_t chunk, epoch;
    uint64_t offset_bytes; /* in the chunk */
    uint64_t length_bytes; /* of this extent; LOOKUP: of the whole object */
};
SPW_ASSERT_SIZE(spw_result, 40);
SPW_ASSERT_OFFSET(spw_result, detail, 4);
SPW_ASSERT_OFFSET(spw_result, tier, 6);
SPW_ASSERT_OFFSET(spw_result, lease, 8);
SPW_ASSERT_OFFSET(spw_result, chunk, 16);
SPW_ASSERT_OFFSET(spw_result, offset_bytes, 24);
SPW_ASSERT_OFFSET(spw_result, length_bytes, 32);

/*
 * Hints, and never more than that: leases, limits and durability hold whatever they say.
 *   NOT_AGAIN   it leaves memory now or, if it is leased or must be written first, as soon as nothing holds it; a use
 *               before that takes the advice back
 *   USES_LEFT   value: uses to come. Each lease that ACQUIRE grants and each GET_RANGE is one. When none is left and the
 *               last lease has ended, a `cache` or `scratch` object is freed, and a `durable` one leaves memory. Where an
 *               object has parts, each has its own count, and the object goes when all of them are spent. A value of 2^32
 *               or more: no longer counted
 *   KEEP_UNTIL  value: ms from now, as PIN
 *   SCORE       value: the caller's score. It counts by powers of two (0, 1, 2 to 3, 4 to 7, 8 to 15, 16 to 31, 32 and
 *               above), and says how often the object is passed over when the policy would evict it; each time uses up one
 *               step, so a score fades unless it is given again
 */
enum spw_advice {
    SPW_ADVICE_NOT_AGAIN = 1,
    SPW_ADVICE_USES_LEFT = 2,
    SPW_ADVICE_KEEP_UNTIL = 3,
    SPW_ADVICE_SCORE = 4,
};

/*
 * A plan: the order in which the space's objects will be asked for, again and again, from the next access on. A pool's policy
 * `plan` then evicts what is used farthest in the future, and reads ahead, as if it had learned the order. It takes the place
 * of what was learned of the spaces of the pool that have the space's class, and of what was declared for the space before;
 * other spaces' plans go on beside it. Accesses to the space that it does not foretell are counted, and if they are many it is
 * dropped. It outlives the session, not the daemon, and goes with the last object of the space; one of a space that never had
 * any may be dropped when another space needs its place.
 *   An item is a range of an object, and means its pieces one after the other; length 0: all pieces of an object that is there,
 * or the first of one that is not there yet. No object need be there. An object may be named more than once.
 *   More items than fit a list come in several, one after the other on one ring; with the last of them the plan begins. The
 * answer's value is how many accesses the plan has: 0 before the last list, where the pool's policy makes no plans, and of
 * a plan of less than 8 accesses, which is dropped. n_items = 0 and arg[] 0 takes the plan back. There are no results, and
 * `results` is 0. If it fails nothing has happened, but what came of the plan before is forgotten:
 *     -ESTALE     other items than arg[0] says came before: another session has begun a plan; begin anew
 *     -E2BIG      SPW_LIMIT_PLAN
 *     -ENOSPC     SPW_LIMIT_PLANS
 *     -EINVAL     arg[0] + n_items is more than arg[1]
 *   and with what an item would fail with.
 */

/* STAT: of the space's pool. All sizes in bytes. */
struct spw_stat {
    uint64_t dram_budget, dram_used;
    uint64_t cxl_budget, cxl_used;
    uint64_t nvme_budget, nvme_used;
    uint64_t gpu_budget, gpu_used; /* staging memory, on all GPUs */
    uint64_t leased, dirty;        /* of what is in memory, in DRAM or CXL */
    uint64_t objects, resident;    /* in all tiers; in memory */
    uint64_t hits_dram, hits_cxl, hits_nvme, misses;
    uint64_t bytes_read, bytes_written; /* device I/O of this engine */
    uint64_t reserved[14];
};
SPW_ASSERT_SIZE(spw_stat, 256);
SPW_ASSERT_OFFSET(spw_stat, leased, 64);
SPW_ASSERT_OFFSET(spw_stat, objects, 80);
SPW_ASSERT_OFFSET(spw_stat, hits_dram, 96);
SPW_ASSERT_OFFSET(spw_stat, bytes_read, 128);
SPW_ASSERT_OFFSET(spw_stat, reserved, 144);
