/* SPDX-License-Identifier: Apache-2.0 */
/* The record array: its index against a model, and a SIGKILL between any two stores of a change. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tiering/record.h"

static struct record_table table;
static uint8_t *memory;

static void open_table(uint32_t max)
{
    memory = aligned_alloc(64, round_up(record_table_bytes(max), 64));
    ck_assert_ptr_nonnull(memory);
    memset(memory, 0, record_table_bytes(max));
    record_table_init(&table, memory, max, 42);
}

static void close_table(void)
{
    free(memory);
}

static struct tiering_id id_of(uint32_t n)
{
    struct tiering_id id = {.space = n % 3, .group = n % 5, .n_parts = 1, .key_len = (uint8_t)(4 + n % 29)};

    memcpy(id.key, &n, sizeof(n));
    return id;
}

START_TEST(index_against_a_model)
{
    enum { IDS = 6000, MAX = 4000 };
    uint32_t *at = malloc(IDS * sizeof(*at));
    uint32_t n = 0;

    srand(2);
    open_table(MAX);
    memset(at, 0xff, IDS * sizeof(*at));
    for (int step = 0; step < 300000; step++) {
        uint32_t i = (uint32_t)rand() % IDS;
        struct tiering_id id = id_of(i);
        uint64_t hash = record_hash_id(&table, &id);

        ck_assert_uint_eq(record_find(&table, &id, hash), at[i]);
        if (at[i] != RECORD_NONE) {
            record_unindex(&table, at[i]);
            record_free(&table, at[i]);
            at[i] = RECORD_NONE;
            n--;
        } else {
            int r = record_new(&table, &id, hash, &at[i]);

            ck_assert_int_eq(r, n == MAX ? -ENOSPC : 0);
            n += r == 0;
        }
        ck_assert_uint_eq(table.n_used, n);
    }
    free(at);
    close_table();
}
END_TEST

START_TEST(key_length_is_part_of_the_identity)
{
    struct tiering_id id = {.n_parts = 1, .key_len = 4}, longer;
    uint32_t a, b;

    open_table(16);
    longer = id;
    longer.key_len = 5; /* the same bytes, zero-padded */
    ck_assert_int_eq(record_new(&table, &id, record_hash_id(&table, &id), &a), 0);
    ck_assert_uint_eq(record_find(&table, &longer, record_hash_id(&table, &longer)), RECORD_NONE);
    ck_assert_int_eq(record_new(&table, &longer, record_hash_id(&table, &longer), &b), 0);
    ck_assert_uint_ne(a, b);
    close_table();
}
END_TEST

/*
 * A change is: the redo slot is written (a), marked valid (b), the record is written (c), the mark is taken back (d). A
 * kill within (a) or (c) leaves some bytes new and some old. Whatever was cut off, what the next daemon finds is the
 * whole old record or the whole new one; and from (b) on, the new one.
 */
START_TEST(a_kill_leaves_old_or_new)
{
    struct tiering_id id = id_of(1);
    uint32_t index;
    size_t bytes = record_table_bytes(16);
    uint8_t *before = malloc(bytes), *begun = malloc(bytes), *after = malloc(bytes);
    struct record old, new;

    open_table(16);
    ck_assert_int_eq(record_new(&table, &id, record_hash_id(&table, &id), &index), 0);
    memcpy(before, memory, bytes);
    old = *record_at(&table, index);
    struct record *edit = record_begin(&table, index);
    memset(&edit->generation, 0xab, sizeof(edit->generation));
    edit->size_bytes = 12345;
    edit->state = RECORD_COMMITTED;
    edit->flags = RECORD_HAS_DEV;
    memcpy(begun, memory, bytes);
    record_end(&table);
    memcpy(after, memory, bytes);
    new = *record_at(&table, index);
    ck_assert_int_ne(memcmp(&old, &new, sizeof(old)), 0);

    size_t at = TIERING_RECORD_HEADER_BYTES + (size_t)index * TIERING_OBJECT_BYTES;
    /* Within (a): the first k bytes that record_begin() and the caller changed are there. */
    for (size_t k = 0; k <= TIERING_RECORD_HEADER_BYTES; k++) {
        memcpy(memory, before, bytes);
        memcpy(memory, begun, k);
        record_table_init(&table, memory, 16, 42);
        ck_assert_int_eq(memcmp(record_at(&table, index), &old, sizeof(old)), 0);
    }
    /* Within (c), with the mark of (b): the first k bytes of the record are new. */
    size_t mark = 0;
    for (size_t i = 0; i < TIERING_RECORD_HEADER_BYTES; i++) {
        uint8_t saved = begun[i];

        /* The mark is found by what it does: with it set, the redo slot is put over the record. */
        memcpy(memory, begun, bytes);
        memory[i] = 1;
        record_table_init(&table, memory, 16, 42);
        if (saved == 0 && memcmp(record_at(&table, index), &new, sizeof(new)) == 0) {
            mark = i;
            break;
        }
    }
    ck_assert_uint_gt(mark, 0);
    for (size_t k = 0; k <= sizeof(new); k++) {
        memcpy(memory, begun, bytes);
        memory[mark] = 1;
        memcpy(memory + at, after + at, k);
        record_table_init(&table, memory, 16, 42);
        ck_assert_int_eq(memcmp(record_at(&table, index), &new, sizeof(new)), 0);
    }
    free(before);
    free(begun);
    free(after);
    free(memory);
}
END_TEST

/* The records survive a daemon, what is derived from them does not. */
START_TEST(what_is_derived_starts_afresh)
{
    struct tiering_id id = id_of(1);
    uint32_t index;

    open_table(1000);
    ck_assert_int_eq(record_new(&table, &id, record_hash_id(&table, &id), &index), 0);
    table.objects[index].hot.pins = 3;
    table.objects[index].node.state[1] = 1;
    record_table_init(&table, memory, 1000, 42);
    ck_assert_uint_eq(record_at(&table, index)->state, RECORD_RESERVED);
    ck_assert_uint_eq(table.objects[index].hot.pins, 0);
    ck_assert_uint_eq(table.objects[index].node.state[1], 0);
    ck_assert_uint_eq(record_find(&table, &id, record_hash_id(&table, &id)), RECORD_NONE);
    close_table();
}
END_TEST

/* Every number fits below the bits that a slot has from the hash, up to the last record of a full table. */
START_TEST(full_tables_of_all_sizes)
{
    static const uint32_t sizes[] = {1, 2, 3, 63, 64, 65, 1023, 1024, 1365, 1366, 4095, 4096, 5461, 5462, 8191, 8193};

    for (size_t k = 0; k < ARRAY_LEN(sizes); k++) {
        open_table(sizes[k]);
        for (uint32_t i = 0; i < sizes[k]; i++) {
            struct tiering_id id = id_of(i);
            uint32_t index;

            ck_assert_int_eq(record_new(&table, &id, record_hash_id(&table, &id), &index), 0);
        }
        for (uint32_t i = 0; i < sizes[k]; i++) {
            struct tiering_id id = id_of(i);
            uint32_t index = record_find(&table, &id, record_hash_id(&table, &id));
            uint32_t at = (uint32_t)record_hash_id(&table, &id);

            ck_assert_uint_lt(index, sizes[k]);
            ck_assert_uint_eq(record_find_low(&table, at, &at), index);
        }
        close_table();
    }
}
END_TEST

START_TEST(metadata_is_128_bytes)
{
    ck_assert_uint_eq(sizeof(struct record_object), 128);
    open_table(1 << 20);
    ck_assert_uint_le(record_index_bytes(&table), (uint64_t)12 << 20);
    close_table();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("record");
    TCase *tc = tcase_create("all");
    SRunner *runner = srunner_create(suite);

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, index_against_a_model);
    tcase_add_test(tc, key_length_is_part_of_the_identity);
    tcase_add_test(tc, a_kill_leaves_old_or_new);
    tcase_add_test(tc, what_is_derived_starts_afresh);
    tcase_add_test(tc, full_tables_of_all_sizes);
    tcase_add_test(tc, metadata_is_128_bytes);
    suite_add_tcase(suite, tc);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
