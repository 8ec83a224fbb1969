/* SPDX-License-Identifier: Apache-2.0 */
/* See sqe.h. */
#include "tests/fuzz/support/sqe.h"

#define MADE_ITEMS 6 /* of a list: as many are of the input's bytes */

static const uint8_t op_flags[SPW_OPS] = {
    [SPW_OP_LOOKUP] = SPW_SQE_CHAIN,
    [SPW_OP_RESERVE] = SPW_SQE_CHAIN | SPW_SQE_ALL,
    [SPW_OP_COMMIT] = SPW_SQE_CHAIN,
    [SPW_OP_ACQUIRE] = SPW_SQE_CHAIN | SPW_SQE_ALL | SPW_SQE_WRITE | SPW_SQE_NO_WAIT,
    [SPW_OP_TOUCH] = SPW_SQE_CHAIN,
    [SPW_OP_PREFETCH] = SPW_SQE_CHAIN,
    [SPW_OP_ADVISE] = SPW_SQE_CHAIN,
    [SPW_OP_PIN] = SPW_SQE_CHAIN,
    [SPW_OP_DELETE] = SPW_SQE_CHAIN,
    [SPW_OP_SYNC] = SPW_SQE_CHAIN,
    [SPW_OP_PUT_RANGE] = SPW_SQE_CHAIN,
    [SPW_OP_GET_RANGE] = SPW_SQE_CHAIN,
};

static bool is_gpu(uint8_t op)
{
    return op == SPW_OP_GPU_SPILL || op == SPW_OP_GPU_FETCH;
}

static bool takes_handles(uint8_t op)
{
    return op == SPW_OP_COMMIT || op == SPW_OP_ABORT || op == SPW_OP_RELEASE || is_gpu(op);
}

static bool takes_list(uint8_t op)
{
    return op != SPW_OP_NOP && op != SPW_OP_CANCEL && op != SPW_OP_STAT;
}

/* --- Lists -------------------------------------------------------------------------------------------------------- */

static void item_make(uint8_t name, uint8_t range, struct spw_item *ret_item)
{
    static const uint64_t lengths[16] = {0,
                                         4096,
                                         5000,
                                         100000,
                                         WORLD_PIECE_BYTES,
                                         2 * WORLD_PIECE_BYTES + 77,
                                         65536,
                                         1,
                                         WORLD_PIECE_BYTES - 1,
                                         3 * WORLD_PIECE_BYTES,
                                         SQE_OBJECT_BYTES,
                                         64,
                                         UINT64_C(4097) * WORLD_PIECE_BYTES,
                                         OBJECT_BYTES_MAX,
                                         OBJECT_BYTES_MAX + 1,
                                         UINT64_MAX};
    static const uint64_t offsets[8] = {
        1, 4096, 5000, WORLD_PIECE_BYTES - 1, WORLD_PIECE_BYTES, 2 * WORLD_PIECE_BYTES, OBJECT_BYTES_MAX, UINT64_MAX};

    *ret_item = (struct spw_item){.key = {(uint8_t)('a' + name % 16)}, .key_len = 1, .group = name >> 4 & 1};
    if (name & 32)
        ret_item->key_len = 2; /* and a zero */
    if (name & 64)
        ret_item->n_parts = 2;
    ret_item->part = name >> 7; /* of an object that has no parts: a mistake */
    ret_item->length_bytes = lengths[range % 16];
    ret_item->offset_bytes = range < 128 ? 0 : offsets[range >> 4 & 7];
}

/* The newest is 0. */
static uint64_t lease_named(const struct sqe_names *names, uint32_t which)
{
    return which < names->n_leases ? names->leases[names->n_leases - 1 - which] : names->ended;
}

static void handles_write(struct fuzz *f, const struct sqe_names *names, const struct spw_sqe *sqe)
{
    uint8_t what = 0;

    for (uint32_t i = 0; i < sqe->n_items; i++) {
        what = i < MADE_ITEMS ? fuzz_u8(f) : (uint8_t)(what + 1);
        struct spw_handle handle = {.lease = what & 32 ? names->ended : lease_named(names, what % 32),
                                    .flags = sqe->opcode == SPW_OP_RELEASE ? what >> 6 : 0};

        memcpy(names->scratch + sqe->items + i * sizeof(handle), &handle, sizeof(handle));
    }
}

static void items_write(struct fuzz *f, const struct sqe_names *names, const struct spw_sqe *sqe)
{
    uint8_t name = 0, range = 0;

    for (uint32_t i = 0; i < sqe->n_items; i++) {
        struct spw_item item;

        name = i < MADE_ITEMS ? fuzz_u8(f) : (uint8_t)(name + 1);
        if (i < MADE_ITEMS)
            range = fuzz_u8(f);
        item_make(name, range, &item);
        if (sqe->opcode == SPW_OP_TENSOR && item.length_bytes == OBJECT_BYTES_MAX)
            item.length_bytes /= 1024; /* each of its pieces is looked at: of the largest there are millions */
        memcpy(names->scratch + sqe->items + i * sizeof(item), &item, sizeof(item));
    }
}

/* --- Arguments ---------------------------------------------------------------------------------------------------- */

static void plan_args(uint8_t what, struct sqe_names *names, struct spw_sqe *sqe)
{
    bool goes_on = what % 8 < 6, more = what / 8 % 4 == 3;

    if (what >= 240) { /* takes it back */
        sqe->n_items = 0;
        return;
    }
    sqe->arg[0] = goes_on ? names->plan_items : 0;
    sqe->arg[1] = sqe->arg[0] + sqe->n_items + more;
    names->plan_items = more ? sqe->arg[0] + sqe->n_items : 0;
}

static void gpu_args(uint8_t what, const struct sqe_names *names, struct spw_sqe *sqe)
{
    const struct peer_lane *lane = &names->peer->lanes[what % 4];
    uint64_t room = lane->spec.alloc_bytes;
    const uint64_t offsets[4] = {0, room / 2, room ? room - 1 : 0, room + 1};

    sqe->arg[0] = lane->spec.lane;
    sqe->arg[1] = lane->next_seq[sqe->opcode == SPW_OP_GPU_SPILL ? LANE_SPILL : LANE_FETCH] + (what >= 240);
    sqe->arg[2] = offsets[what >> 2 & 3];
}

static void args_make(struct fuzz *f, struct sqe_names *names, struct spw_sqe *sqe)
{
    static const uint64_t deadlines_ms[4] = {0, 1, 20, UINT64_MAX};
    static const uint64_t pins_ms[8] = {1000, 0, 1, 20, PIN_MS_MAX, PIN_MS_MAX + 1, UINT64_MAX, 100};
    static const uint64_t values[8] = {1, 0, 2, 20, 1000, UINT32_MAX, UINT64_C(1) << 32, UINT64_MAX};
    static const uint64_t offsets[8] = {0, 4096, 64, 5000, 1, WORLD_PIECE_BYTES - 1, UINT64_MAX, UINT64_MAX - 4095};

    switch (sqe->opcode) {
    case SPW_OP_PREFETCH:
        sqe->arg[0] = deadlines_ms[fuzz_below(f, 4)];
        break;
    case SPW_OP_ADVISE:
        sqe->arg[0] = fuzz_below(f, 6); /* 0 and 5 are none */
        sqe->arg[1] = values[fuzz_below(f, 8)];
        break;
    case SPW_OP_PIN:
        sqe->arg[0] = pins_ms[fuzz_below(f, 8)];
        break;
    case SPW_OP_CANCEL:
        sqe->arg[0] = fuzz_below(f, 4);
        break;
    case SPW_OP_PUT_RANGE:
    case SPW_OP_GET_RANGE: {
        uint8_t what = fuzz_u8(f);

        sqe->arg[0] = lease_named(names, what % 32);
        sqe->arg[1] = offsets[what >> 5];
        break;
    }
    case SPW_OP_GPU_SPILL:
    case SPW_OP_GPU_FETCH:
        gpu_args(fuzz_u8(f), names, sqe);
        break;
    case SPW_OP_PLAN:
        plan_args(fuzz_u8(f), names, sqe);
        break;
    default:
        break;
    }
}

/* --- The whole ---------------------------------------------------------------------------------------------------- */

static void list_make(uint8_t what, struct spw_sqe *sqe)
{
    static const uint8_t counts[16] = {1, 1, 2, 3, 4, 5, 8, 0, 1, 0, 2, 16, 17, 6, 12, 48};
    static const uint8_t flags[4] = {SPW_SQE_ALL, SPW_SQE_WRITE, SPW_SQE_NO_WAIT, SPW_SQE_RETRY};

    sqe->n_items = sqe->opcode == SPW_OP_TENSOR && what % 16 < 15 ? 1 : counts[what % 16];
    for (uint32_t i = 0; i < ARRAY_LEN(flags); i++)
        if (what & 16U << i)
            sqe->flags |= flags[i];
}

void sqe_make(struct fuzz *f, struct sqe_names *names, struct spw_sqe *ret_sqe)
{
    static const uint32_t timeouts_ms[4] = {0, 20, 1, 100000};
    uint8_t op = (uint8_t)fuzz_below(f, SPW_OPS), shape = fuzz_u8(f);
    bool has_space = op != SPW_OP_NOP && op != SPW_OP_CANCEL && !takes_handles(op);

    *ret_sqe = (struct spw_sqe){.opcode = op,
                                .user_data = shape >> 2 & 3,
                                .timeout_ms = timeouts_ms[shape >> 4 & 3],
                                .results = shape & 64 ? SQE_SCRATCH_BYTES - 128 : SQE_RESULTS,
                                .flags = shape & 128 ? SPW_SQE_CHAIN : 0};
    if (has_space && names->n_spaces)
        ret_sqe->space = names->spaces[shape % 4 % names->n_spaces];
    if (op == SPW_OP_NOP || op == SPW_OP_PLAN || is_gpu(op))
        ret_sqe->results = 0;
    if (takes_list(op))
        list_make(fuzz_u8(f), ret_sqe);
    ret_sqe->flags &= op_flags[op] | SPW_SQE_RETRY; /* which only a session that came back has */
    args_make(f, names, ret_sqe);
    if (takes_handles(op))
        handles_write(f, names, ret_sqe);
    else
        items_write(f, names, ret_sqe);
}
