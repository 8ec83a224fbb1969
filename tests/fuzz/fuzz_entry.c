/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One entry of a device's log, raw bytes: what decodes is encoded again and decoded once more, to the same; and it is within
 * the bounds that the rest of the store takes for granted.
 */
#include "include/base/checked.h"
#include "io/log.h"
#include "tests/fuzz/fuzz.h"

#define SEGMENTS 8

static const struct log limits = {.n_segments = SEGMENTS, .segment_sectors = MIB / SECTOR_BYTES};

static uint32_t encode(const struct log_record *rec, uint8_t *out)
{
    switch (rec->type) {
    case FORMAT_ENTRY_SPACE:
        return log_encode_space(out, &rec->space);
    case FORMAT_ENTRY_PUT:
        return log_encode_put(out, &rec->put.entry, rec->put.txn);
    case FORMAT_ENTRY_DELETE:
        return log_encode_delete(out, &rec->delete.id, rec->delete.generation);
    default:
        return 0;
    }
}

static void put_check(const struct store_entry *e)
{
    fuzz_check(e->loc.segment < SEGMENTS && e->generation != 0 && e->durability <= STORE_DURABLE);
    fuzz_check(e->size_bytes > 0 && e->size_bytes <= PIECE_BYTES_MAX && e->id.key_len <= KEY_BYTES_MAX);
    fuzz_check(range_ok(e->loc.sector, sectors_of(e->size_bytes), limits.segment_sectors));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t first[FORMAT_ENTRY_BYTES_MAX + 8], again[FORMAT_ENTRY_BYTES_MAX + 8];
    struct log_record rec, rec_again;
    uint32_t bytes, bytes_again;

    if (size == 0 || log_decode(&limits, data, (uint32_t)size, &rec, &bytes) < 0)
        return 0;
    fuzz_check(bytes > 0 && bytes <= size && bytes % 8 == 0);
    if (rec.type == FORMAT_ENTRY_PUT)
        put_check(&rec.put.entry);
    uint32_t n = encode(&rec, first);

    if (n == 0)
        return 0;
    fuzz_check(n == bytes, "%u bytes, then %u", bytes, n);
    fuzz_check(log_decode(&limits, first, n, &rec_again, &bytes_again) == 0 && bytes_again == n);
    fuzz_check(encode(&rec_again, again) == n && memcmp(first, again, n) == 0, "it reads back as something else");
    return 0;
}
