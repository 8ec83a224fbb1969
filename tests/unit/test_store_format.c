/* SPDX-License-Identifier: Apache-2.0 */
/* Formatting, identifying and refusing devices; damaged superblocks, headers and logs. */
#include "tests/unit/support/store_fixture.h"

static int identify(struct store_identity *id)
{
    why = NULL;
    return store_identify(simdisk_backend(disk), 0, o->device_bytes, id, &why);
}

/* --- Formatting, identifying, refusing --- */

START_TEST(identify_tells_what_was_formatted)
{
    struct store_identity id;

    start(1, DEVICE_BYTES + 12345 * SECTOR_BYTES / 100, MIB, 4);
    ck_assert_int_eq(identify(&id), 0);
    ck_assert_uint_eq(id.version, FORMAT_VERSION);
    ck_assert_uint_eq(id.format.segment_bytes, MIB);
    ck_assert_uint_eq(id.format.device_bytes, o->device_bytes / MIB * MIB);
    ck_assert_uint_eq(id.format.partitions, 1);
    ck_assert_str_eq(id.format.label, "test");
    ck_assert_uint_eq(id.format.created_s, 1700000000);
    ck_assert_uint_eq(id.clean, 1);
    ck_assert_int_eq(owner_open(o, &why), 0);
    ck_assert_int_eq(identify(&id), 0);
    ck_assert_uint_eq(id.clean, 0);
    ck_assert_int_eq(owner_close(o), 0);
    ck_assert_int_eq(identify(&id), 0);
    ck_assert_uint_eq(id.clean, 1);
    end();
}
END_TEST

START_TEST(foreign_device_is_refused)
{
    struct store_identity id;

    disk = simdisk_new(2);
    o = owner_new(disk, simdisk_device_add(disk, DEVICE_BYTES), DEVICE_BYTES, 4);
    ck_assert_int_eq(identify(&id), -EMEDIUMTYPE);
    ck_assert_ptr_nonnull(why);
    memset(simdisk_bytes(disk, 0), 0x5a, DEVICE_BYTES);
    ck_assert_int_eq(identify(&id), -EMEDIUMTYPE);
    ck_assert_int_eq(owner_open(o, &why), -EMEDIUMTYPE);
    end();
}
END_TEST

/* A whole superblock of a given version and incompatible features, in both places. */
static void super_rewrite(uint32_t version, uint64_t incompat, bool seal)
{
    struct format_super *s = (struct format_super *)(void *)simdisk_bytes(disk, 0);

    s->version = version;
    s->incompat = incompat;
    if (seal)
        s->checksum = checksum_bytes(s, offsetof(struct format_super, checksum), 0);
    memcpy(simdisk_bytes(disk, 0) + s->device_bytes - SECTOR_BYTES, s, sizeof(*s));
}

START_TEST(other_versions_are_refused)
{
    struct store_identity id;

    start(3, DEVICE_BYTES, MIB, 4);
    super_rewrite(FORMAT_VERSION + 1, 0, true);
    ck_assert_int_eq(identify(&id), -EPROTONOSUPPORT);
    ck_assert_ptr_nonnull(strstr(why, "version"));
    ck_assert_int_eq(owner_open(o, &why), -EPROTONOSUPPORT);
    super_rewrite(0, 0, true);
    ck_assert_int_eq(identify(&id), -EPROTONOSUPPORT);
    super_rewrite(FORMAT_VERSION + 7, 0, false); /* a version whose checksum we cannot know */
    ck_assert_int_eq(identify(&id), -EPROTONOSUPPORT);
    super_rewrite(FORMAT_VERSION, 1, true);
    ck_assert_int_eq(identify(&id), -EPROTONOSUPPORT);
    ck_assert_ptr_nonnull(strstr(why, "feature"));
    super_rewrite(FORMAT_VERSION, 0, true);
    ck_assert_int_eq(identify(&id), 0);
    end();
}
END_TEST

START_TEST(one_damaged_superblock_is_survived)
{
    struct store_identity id;

    start(4, DEVICE_BYTES, MIB, 4);
    for (uint32_t at = 0; at < SECTOR_BYTES; at += 7) {
        simdisk_flip(disk, 0, at, at % 8);
        ck_assert_int_eq(identify(&id), 0);
        ck_assert_uint_eq(id.version, FORMAT_VERSION);
        simdisk_flip(disk, 0, at, at % 8);
    }
    simdisk_flip(disk, 0, 60, 1);
    simdisk_flip(disk, 0, DEVICE_BYTES - SECTOR_BYTES + 60, 1);
    ck_assert_int_eq(identify(&id), -EUCLEAN);
    end();
}
END_TEST

START_TEST(a_shorter_device_is_refused)
{
    struct store_identity id;

    start(5, DEVICE_BYTES, MIB, 4);
    o->device_bytes = DEVICE_BYTES - MIB;
    ck_assert_int_eq(identify(&id), -EUCLEAN);
    ck_assert_ptr_nonnull(strstr(why, "smaller"));
    end();
}
END_TEST

START_TEST(impossible_formats_are_refused)
{
    struct store_format f = {.device_bytes = DEVICE_BYTES, .segment_bytes = MIB, .partitions = 1};
    struct io_backend *be;

    disk = simdisk_new(6);
    simdisk_device_add(disk, DEVICE_BYTES);
    be = simdisk_backend(disk);
    f.segment_bytes = 3 * MIB;
    ck_assert_int_eq(store_format_write(be, 0, &f), -EINVAL);
    f.segment_bytes = 32 * MIB;
    ck_assert_int_eq(store_format_write(be, 0, &f), -EINVAL);
    f.segment_bytes = MIB;
    f.partitions = 0;
    ck_assert_int_eq(store_format_write(be, 0, &f), -EINVAL);
    f.partitions = 8;
    ck_assert_int_eq(store_format_write(be, 0, &f), -EINVAL);
    f.partitions = 2;
    ck_assert_int_eq(store_format_write(be, 0, &f), 0);
    f.partitions = 1;
    f.device_bytes = 5 * MIB;
    ck_assert_int_eq(store_format_write(be, 0, &f), -EINVAL);
    end();
}
END_TEST

START_TEST(the_log_is_made_for_the_objects)
{
    struct store_format f = {.device_bytes = DEVICE_BYTES, .segment_bytes = MIB, .partitions = 1};
    struct store_identity id;
    uint64_t per_object = FORMAT_LOG_BYTES_PER_OBJECT;

    ck_assert_uint_eq(per_object, 5 * (sizeof(struct format_put) + KEY_BYTES_MAX));
    ck_assert_uint_eq(store_log_bytes(&f, 0), store_log_bytes(&f, 64 * KIB));
    f.device_bytes = GIB;
    ck_assert_uint_ge(store_log_bytes(&f, 4096), (GIB / 4096 - 1024) * per_object);
    ck_assert_uint_eq(store_log_bytes(&f, 4096) % (64 * KIB), 0);
    f.device_bytes = DEVICE_BYTES;
    ck_assert_uint_eq(store_log_bytes(&f, 8 * MIB), MIB); /* never less */

    start(7, DEVICE_BYTES, MIB, 4);
    ck_assert_int_eq(identify(&id), 0);
    ck_assert_uint_eq(id.format.log_bytes, store_log_bytes(&f, 0));
    f.log_bytes = 2 * MIB;
    ck_assert_int_eq(store_format_write(simdisk_backend(disk), 0, &f), 0);
    ck_assert_int_eq(identify(&id), 0);
    ck_assert_uint_eq(id.format.log_bytes, 2 * MIB);
    f.log_bytes = MIB + SECTOR_BYTES;
    ck_assert_int_eq(store_format_write(simdisk_backend(disk), 0, &f), -EINVAL);
    f.log_bytes = MIB / 2;
    ck_assert_int_eq(store_format_write(simdisk_backend(disk), 0, &f), -EINVAL);
    f.log_bytes = DEVICE_BYTES;
    ck_assert_int_eq(store_format_write(simdisk_backend(disk), 0, &f), -EINVAL);
    end();
}
END_TEST

int main(void)
{
    const struct test_case tests[] = {
        {"format", identify_tells_what_was_formatted}, {"format", foreign_device_is_refused},
        {"format", other_versions_are_refused},        {"format", one_damaged_superblock_is_survived},
        {"format", a_shorter_device_is_refused},       {"format", impossible_formats_are_refused},
        {"format", the_log_is_made_for_the_objects},
    };

    return run_suite("store_format", tests, ARRAY_LEN(tests));
}
