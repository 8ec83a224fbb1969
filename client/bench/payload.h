/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a block holds: bytes that follow from its key, so that whoever reads a block knows what must be in it. Each 4 KiB
 * page has its own stream, so a range can be checked without the bytes before it, and a page in the wrong place shows.
 */
#pragma once

#include "include/base/base.h"
#include "include/spillway/spillway.h"

#define PAYLOAD_OK UINT64_MAX

/* Mixes two numbers into one that looks random; also the seed of everything here. */
uint64_t payload_mix(uint64_t a, uint64_t b);

/* A 32-byte key for a number. */
void payload_key(uint64_t seed, uint64_t id, struct spw_key *ret_key);
/* The stream of a key's bytes. */
uint64_t payload_stream(const struct spw_key *key);

/* Writes size_bytes of a stream from offset_bytes on, a multiple of SECTOR_BYTES. */
void payload_fill(void *to, uint64_t size_bytes, uint64_t stream, uint64_t offset_bytes);
/* Compares; returns the offset of the first wrong byte within the stream, or PAYLOAD_OK. */
uint64_t payload_check(const void *from, uint64_t size_bytes, uint64_t stream, uint64_t offset_bytes);

/* A wrong byte, in words for a person: what was found where, and which other page it might come from. */
void payload_report(const struct spw_key *key, const void *from, uint64_t size_bytes, uint64_t stream,
                    uint64_t offset_bytes, uint64_t wrong_at);
