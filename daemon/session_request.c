/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns what the control messages mean. Each handler gets the whole message in private memory, checks it field by field,
 * and answers, or sends an engine a call whose return answers. Reserved fields that are not zero and messages of the
 * wrong size end the session; mistakes in values are answered with a text. Control thread.
 */
#include <errno.h>
#include <string.h>

#include "daemon/admin.h"
#include "daemon/control.h"
#include "daemon/fdstore.h"
#include "daemon/gpu.h"
#include "daemon/handover.h"
#include "daemon/log.h"
#include "daemon/session.h"
#include "daemon/session_kept.h"
#include "include/base/kill_point.h"

static void violation(struct session *session, const char *why)
{
    session_end(session, why, true);
}

static bool all_zero(const void *mem, size_t size)
{
    const unsigned char *bytes = mem;

    for (size_t i = 0; i < size; i++)
        if (bytes[i] != 0)
            return false;
    return true;
}

/* A name as a client sent it: terminated, and harmless to whoever prints it. */
static bool name_copy(char ret_name[static SPW_NAME_BYTES], const char *name)
{
    size_t len = strnlen(name, SPW_NAME_BYTES);

    if (len == SPW_NAME_BYTES)
        return false;
    for (size_t i = 0; i < len; i++)
        ret_name[i] = name[i] > ' ' && name[i] < 0x7f ? name[i] : '?';
    memset(ret_name + len, 0, SPW_NAME_BYTES - len);
    return true;
}

/* --- HELLO ------------------------------------------------------------------------------------------------------- */

static const char *refusal_text(uint32_t limit)
{
    switch (limit) {
    case SPW_LIMIT_SESSIONS:
        return "the daemon serves as many connections as it may: raise max_sessions in [daemon]";
    case SPW_LIMIT_DESCRIPTORS:
        return "the service manager keeps as many descriptors as it may, so that a connection's memory would not "
               "survive a "
               "restart: raise FileDescriptorStoreMax=";
    case SPW_LIMIT_UID_FDS:
        return "this user's connections take as many descriptors as they may: raise uid_descriptors in [daemon]";
    default:
        return "this user has as many connections as it may: raise uid_sessions in [daemon]";
    }
}

static bool hello_join(struct session *session, const struct spw_msg_hello *hello)
{
    int r = owner_join(session->control, session->account, hello->owner_token, &session->owner);

    if (r == 0)
        return true;
    if (r == -ENOENT)
        session_reply_error(session, r, 0, "no job of this user has that owner token (its linger time may be over)");
    else
        session_reply_error(session, r, SPW_LIMIT_OWNERS,
                            "this user has %d jobs, or the daemon %d: wait until some have lingered, or lower linger",
                            UID_OWNERS_MAX, OWNERS_MAX);
    return false;
}

static void hello_welcome(struct session *session)
{
    const struct control *control = session->control;
    struct spw_msg_welcome welcome = {
        .version = SPW_ABI_VERSION,
        .engines = control->n_engines,
        .features = control->config->n_devices > 0 ? SPW_FEATURE_NVME : 0,
        .session = session->number,
        .rings_max = control->config->daemon.session_rings,
        .ring_entries_max = RING_ENTRIES_MAX,
        .list_max = SPW_LIST_MAX,
        .scratch_bytes_max = SCRATCH_BYTES_MAX,
        .memory_id = kept_memory_id(control->kept),
        .reattach_ms = session->kept && fdstore_is_kept(control->fdstore) ? session_reattach_ms(control) : 0,
    };

    for (uint32_t i = 0; i < control->n_engines; i++)
        if (load_relaxed(&control->engines[i]->is_degraded))
            welcome.features |= SPW_FEATURE_DEGRADED_MEMLOCK;
    if (gpus_are_served(control->gpus))
        welcome.features |= SPW_FEATURE_GPU;
    memcpy(welcome.session_token, session->token, sizeof(welcome.session_token));
    memcpy(welcome.owner_token, session->owner->token, sizeof(welcome.owner_token));
    kill_point("session.welcome");
    session_reply(session, &welcome, sizeof(welcome), NULL, 0);
}

/* For the next process. Where there is no row for it the session ends with this one. */
static void hello_keep(struct session *session)
{
    struct kept_session *row =
        session_reattach_ms(session->control) > 0 ? kept_session_new(session->control->kept) : NULL;

    if (!row)
        return;
    row->owner = session->owner->number;
    row->uid = session->who.uid;
    row->gid = session->who.gid;
    row->pid = session->who.pid;
    memcpy(row->token, session->token, sizeof(row->token));
    memcpy(row->name, session->name, sizeof(row->name));
    kept_session_use(row, session->number);
    session->kept = row;
}

static void handle_hello(struct session *session, const void *message)
{
    struct spw_msg_hello hello;

    memcpy(&hello, message, sizeof(hello));
    if (session->state != SESSION_HELLO) {
        violation(session, "a second HELLO");
        return;
    }
    if (hello.flags != 0 || !all_zero(hello.reserved, sizeof(hello.reserved)) ||
        !name_copy(session->name, hello.name)) {
        violation(session, "a reserved field of HELLO is not zero, or its name has no end");
        return;
    }
    loop_timer_cancel(&session->timer);
    bool speaks = hello.version_min <= SPW_ABI_VERSION && hello.version_max >= SPW_ABI_VERSION, ok = false;

    if (speaks && !all_zero(hello.session_token, sizeof(hello.session_token))) {
        session = session_reattach(session, &hello); /* it counts already: no limit stops it */
        if (session)
            hello_welcome(session);
        return;
    }
    if (session->refusal)
        session_reply_error(session, session->refusal, session->refusal_detail, "%s",
                            refusal_text(session->refusal_detail));
    else if (!speaks)
        session_reply_error(session, -EPROTONOSUPPORT, 0,
                            "the client speaks versions %u to %u of the protocol, this spillwayd speaks %d",
                            hello.version_min, hello.version_max, SPW_ABI_VERSION);
    else
        ok = hello_join(session, &hello);
    if (!ok) {
        session_end(session, "it was refused", false);
        return;
    }
    session_set_state(session, SESSION_OPEN);
    hello_keep(session);
    hello_welcome(session);
}

/* --- POOL_OPEN --------------------------------------------------------------------------------------------------- */

static uint32_t pool_find(const struct spillway_config *config, const char *name)
{
    uint32_t i = 0;

    while (i < config->n_pools && strcmp(config->pools[i].section.name, name) != 0)
        i++;
    return i;
}

static uint32_t pool_handle(const struct session *session, uint32_t pool)
{
    return session->pool_generation << 16 | pool;
}

uint32_t session_pool(const struct session *session, uint32_t handle)
{
    uint32_t pool = handle & UINT16_MAX;

    if (handle >> 16 != session->pool_generation || pool >= session->control->config->n_pools || !session->pools[pool])
        return POOLS_MAX;
    return pool;
}

static void handle_pool_open(struct session *session, const void *message)
{
    struct spw_msg_pool_open open;
    const struct spillway_config *config = session->control->config;
    const char *why;
    char name[SPW_NAME_BYTES];

    memcpy(&open, message, sizeof(open));
    if (!name_copy(name, open.name)) {
        violation(session, "the name of a pool has no end");
        return;
    }
    uint32_t pool = pool_find(config, name);

    if (pool == config->n_pools) {
        session_reply_error(session, -ENOENT, 0, "there is no [pool %s] in the configuration", name);
        return;
    }
    if (access_pool(&session->who, &config->pools[pool], &why) < 0) {
        log_print_limited(LOG_LEVEL_NOTICE, "session %llu (uid %u) may not open pool %s: %s",
                          (unsigned long long)session->number, session->who.uid, name, why);
        session_reply_error(session, -EACCES, 0, "pool %s: %s", name, why);
        return;
    }
    session->pools[pool] = true;
    owner_linger(session->owner, config->pools[pool].linger_ns);

    struct spw_msg_pool reply = {
        .pool = pool_handle(session, pool),
        .flags = config->pools[pool].is_trusted ? SPW_POOL_TRUSTED : 0,
        .dram_bytes = config_pool_budget_bytes(config, pool, CONFIG_TIER_DRAM, config->dram.size_bytes),
        .cxl_bytes = config_pool_budget_bytes(config, pool, CONFIG_TIER_CXL, config->cxl.size_bytes),
        .nvme_bytes = config_pool_budget_bytes(config, pool, CONFIG_TIER_NVME, control_nvme_bytes(session->control)),
        .gpu_bytes = gpus_pool_budget(config, pool),
    };
    kill_point("session.pool");
    session_reply(session, &reply, sizeof(reply), NULL, 0);
}

/* --- SPACE_OPEN -------------------------------------------------------------------------------------------------- */

static void space_opened(struct call *base)
{
    struct session *session = base->at_control_ctx;
    const struct space_call call = session->call.space;

    if (!session_call_over(session))
        return;
    switch (call.result) {
    case 0:
        break;
    case -EINVAL:
        session_reply_error(session, call.result, 0,
                            "this space exists with another item size, class or durability: use another digest");
        return;
    case -ENOENT:
        session_reply_error(session, call.result, 0, "there is no such space");
        return;
    default:
        session_reply_error(session, call.result, SPW_LIMIT_SPACES,
                            "too many spaces: %d in the daemon, %d of one session at one engine", SPACES_MAX,
                            SESSION_SPACES_MAX);
        return;
    }
    struct spw_msg_space reply = {
        .space = call.handle,
        .engine = base->engine->config.number,
        .space_id = call.info.id,
        .piece_bytes = call.info.piece_bytes,
        .shards = 1,
    };
    kill_point("session.space");
    session_reply(session, &reply, sizeof(reply), NULL, 0);
}

/* For a new space: an engine with a device if there is one, then on the wanted node, then with the fewest spaces. */
static uint32_t space_choose_engine(const struct control *control, uint32_t node)
{
    uint32_t best = 0;
    uint64_t best_score = UINT64_MAX;

    for (uint32_t i = 0; i < control->n_engines; i++) {
        const struct engine *engine = control->engines[i]; /* what was fixed before its thread began */
        uint64_t score = spaces_of_engine(control->spaces, i);

        score += engine->n_stores == 0 ? UINT64_C(1) << 62 : 0;
        score += node != UINT32_MAX && engine->config.tiering.node != node ? UINT64_C(1) << 61 : 0;
        if (score < best_score) {
            best = i;
            best_score = score;
        }
    }
    return best;
}

/* The engine that has the space, or that shall have it. */
static int space_engine(struct session *session, uint32_t pool, const struct spw_msg_space_open *open,
                        uint32_t *ret_engine)
{
    struct control *control = session->control;
    int r = spaces_find(control->spaces, pool, open->digest, ret_engine);

    if (r == 0 || (open->flags & SPW_SPACE_MUST_EXIST))
        return r;
    uint32_t engine = space_choose_engine(control, open->node);

    r = spaces_add(control->spaces, control->config->n_pools, pool, open->digest, engine);
    if (r == 0)
        *ret_engine = engine;
    return r;
}

static void handle_space_open(struct session *session, const void *message)
{
    struct spw_msg_space_open open;
    uint32_t engine;

    memcpy(&open, message, sizeof(open));
    if ((open.flags & ~(uint32_t)SPW_SPACE_MUST_EXIST) != 0 || !all_zero(open.reserved0, sizeof(open.reserved0)) ||
        !all_zero(open.reserved, sizeof(open.reserved))) {
        violation(session, "a reserved field of SPACE_OPEN is not zero");
        return;
    }
    uint32_t pool = session_pool(session, open.pool);

    if (pool == POOLS_MAX) {
        session_reply_error(session, -EBADF, 0, "this session has not opened that pool");
        return;
    }
    if (open.class_id >= SPW_CLASSES || open.durability > SPW_DURABLE || open.item_bytes > OBJECT_BYTES_MAX) {
        session_reply_error(session, -EINVAL, open.item_bytes > OBJECT_BYTES_MAX ? SPW_LIMIT_OBJECT_BYTES : 0,
                            "no such class or durability, or an item size above 1 TiB");
        return;
    }
    int r = space_engine(session, pool, &open, &engine);
    struct seat *seat = r == 0 ? session_seat(session, engine) : NULL;

    if (!seat) {
        session_reply_error(session, r < 0 ? r : -ENOMEM, r == -ENOSPC ? SPW_LIMIT_SPACES : 0,
                            r == -ENOENT ? "there is no such space" : "too many spaces in this pool");
        return;
    }
    session->call.space = (struct space_call){
        .peer = &seat->peer,
        .weight = session->control->config->pools[pool].weight,
        .spec = {.pool = pool,
                 .item_bytes = open.item_bytes,
                 .class_id = open.class_id,
                 .durability = open.durability,
                 .must_exist = (open.flags & SPW_SPACE_MUST_EXIST) != 0},
    };
    memcpy(session->call.space.spec.digest, open.digest, sizeof(open.digest));
    session->call.space.call.at_control = space_opened;
    session->call.space.call.at_control_ctx = session;
    session->busy = true;
    engine_space_open(session->control->engines[engine], &session->call.space);
}

/* --- CHUNK_GET --------------------------------------------------------------------------------------------------- */

static uint32_t chunk_page_bytes(const struct memory_chunk *chunk)
{
    return chunk->report.pages == MEMORY_PAGES_HUGE ? (uint32_t)MEMORY_HUGE_BYTES : MEMORY_PAGE_BYTES;
}

static void chunk_send(struct session *session, const struct chunk_call *call)
{
    int fd = call->writable ? call->chunk->fd : call->chunk->read_only_fd;
    struct spw_msg_chunk reply = {
        .chunk = call->region,
        .epoch = call->epoch,
        .flags = call->writable ? SPW_CHUNK_WRITABLE : 0,
        .page_bytes = chunk_page_bytes(call->chunk),
        .size_bytes = call->chunk->size_bytes,
    };

    kill_point("session.chunk");
    if (fd < 0) /* a shared chunk without its read-only descriptor is never handed out */
        session_reply_error(session, -EACCES, 0, "this chunk is not for clients");
    else
        session_reply(session, &reply, sizeof(reply), &fd, 1);
}

static void chunk_found(struct call *base)
{
    struct session *session = base->at_control_ctx;
    struct chunk_call call = session->call.chunk;

    if (session_call_over(session)) {
        if (call.result == 0 && !session->pools[call.pool])
            call.result = -EACCES;
        if (call.result == 0)
            chunk_send(session, &call);
        else
            session_reply_error(session, call.result, 0, "chunk %u, epoch %u: %s", call.region, call.epoch,
                                call.result == -EACCES ? "not this session's" : "there is none");
    }
    memory_chunk_unref(call.chunk);
}

static void handle_chunk_get(struct session *session, const void *message)
{
    struct spw_msg_chunk_get wanted;

    memcpy(&wanted, message, sizeof(wanted));
    if (wanted.reserved0 != 0) {
        violation(session, "a reserved field of CHUNK_GET is not zero");
        return;
    }
    if (wanted.engine >= session->control->n_engines) {
        session_reply_error(session, -EINVAL, 0, "there is no engine %u", wanted.engine);
        return;
    }
    session->call.chunk =
        (struct chunk_call){.region = wanted.chunk, .epoch = wanted.epoch, .session = session->number};
    session->call.chunk.call.at_control = chunk_found;
    session->call.chunk.call.at_control_ctx = session;
    session->busy = true;
    engine_chunk_get(session->control->engines[wanted.engine], &session->call.chunk);
}

/* --- Which is which ---------------------------------------------------------------------------------------------- */

static void handle_admin(struct session *session, const void *message, size_t size)
{
    const struct control *control = session->control;

    if (!access_admin(&session->who, control->uid, control->admin_gid, control->has_admin_gid)) {
        session_reply_error(session, -EACCES, 0,
                            "this takes root, the daemon's own user, or a member of admin_group in [daemon]");
        return;
    }
    admin_begin(session, (const char *)message + sizeof(struct spw_msg), size - sizeof(struct spw_msg));
}

void session_handle(struct session *session, const void *message, size_t size)
{
    static const struct {
        size_t size;
        void (*handle)(struct session *session, const void *message);
    } handlers[] = {
        [SPW_MSG_HELLO] = {sizeof(struct spw_msg_hello), handle_hello},
        [SPW_MSG_POOL_OPEN] = {sizeof(struct spw_msg_pool_open), handle_pool_open},
        [SPW_MSG_SPACE_OPEN] = {sizeof(struct spw_msg_space_open), handle_space_open},
        [SPW_MSG_RING_NEW] = {sizeof(struct spw_msg_ring_new), session_ring_new},
        [SPW_MSG_RING_FREE] = {sizeof(struct spw_msg_ring_free), session_ring_free_asked},
        [SPW_MSG_CHUNK_GET] = {sizeof(struct spw_msg_chunk_get), handle_chunk_get},
        [SPW_MSG_GPU_ATTACH] = {sizeof(struct spw_msg_gpu_attach), session_gpu_attach},
        [SPW_MSG_GPU_DETACH] = {sizeof(struct spw_msg_gpu_detach), session_gpu_detach},
    };
    uint16_t type = session->request.type;

    if (session->state == SESSION_HELLO && type != SPW_MSG_HELLO) {
        violation(session, "its first message is not HELLO");
    } else if (type == SPW_MSG_ADMIN) {
        handle_admin(session, message, size);
    } else if (type == SPW_MSG_HANDOVER && size == sizeof(struct spw_msg)) {
        handover_asked(session);
    } else if (type == SPW_MSG_MANIFEST) {
        session_manifest(session, message, size);
    } else if (type == SPW_MSG_UNANSWERED) {
        session_unanswered(session, message, size);
    } else if (type >= ARRAY_LEN(handlers) || !handlers[type].handle) {
        violation(session, "a message of an unknown type");
    } else if (size != handlers[type].size) {
        violation(session, "a message of the wrong size");
    } else {
        handlers[type].handle(session, message);
    }
}
