/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line. Options mean the same in every command; each command names those that it takes.
 */
#pragma once

#include <argp.h>

#include "include/base/base.h"

struct options {
    const char *trace_path, *policy, *socket_path, *pool, *only, *devices;
    uint64_t n_requests, n_objects, n_parameters, block_bytes, dram_bytes, device_bytes, seed;
    double seconds, dram_percent;
    uint32_t list_max, n_sizes, depth;
    bool json, keep, no_lookup, private_daemon, quiet, quick, figures;
};

enum {
    OPTION_TRACE = 256,
    OPTION_REQUESTS,
    OPTION_BLOCK,
    OPTION_DRAM,
    OPTION_DRAM_PERCENT,
    OPTION_DEVICE,
    OPTION_POLICY,
    OPTION_KEEP,
    OPTION_SECONDS,
    OPTION_SEED,
    OPTION_PRIVATE,
    OPTION_SOCKET,
    OPTION_POOL,
    OPTION_LIST,
    OPTION_NO_LOOKUP,
    OPTION_SIZES,
    OPTION_OBJECTS,
    OPTION_PARAMETERS,
    OPTION_QUIET,
    OPTION_QUICK,
    OPTION_FIGURES,
    OPTION_ONLY,
    OPTION_DEVICES,
    OPTION_DEPTH,
    OPTION_OUTPUT = 'o',
};

#define ROW_TRACE                                                                                                      \
    {                                                                                                                  \
        "trace", OPTION_TRACE, "FILE", 0, "Mooncake's format: JSON objects with hash_ids, one a line", 0               \
    }
#define ROW_REQUESTS                                                                                                   \
    {                                                                                                                  \
        "requests", OPTION_REQUESTS, "N", 0, "requests to generate", 0                                                 \
    }
#define ROW_BLOCK                                                                                                      \
    {                                                                                                                  \
        "block", OPTION_BLOCK, "SIZE", 0, "bytes of a block (64 KiB)", 0                                               \
    }
#define ROW_DRAM                                                                                                       \
    {                                                                                                                  \
        "dram", OPTION_DRAM, "SIZE", 0, "the daemon's memory (256 MiB)", 0                                             \
    }
#define ROW_DRAM_PERCENT                                                                                               \
    {                                                                                                                  \
        "dram-percent", OPTION_DRAM_PERCENT, "P", 0, "the daemon's memory, as a share of the distinct blocks (10)", 0  \
    }
#define ROW_DEVICE                                                                                                     \
    {                                                                                                                  \
        "device", OPTION_DEVICE, "SIZE", 0, "the device file's size (what the blocks need); 0: none", 0                \
    }
#define ROW_POLICY                                                                                                     \
    {                                                                                                                  \
        "policy", OPTION_POLICY, "NAME", 0, "eviction: lru, s3-fifo, arc, chain", 0                                    \
    }
#define ROW_KEEP                                                                                                       \
    {                                                                                                                  \
        "keep", OPTION_KEEP, NULL, 0, "leave the daemon's folder behind", 0                                            \
    }
#define ROW_SECONDS                                                                                                    \
    {                                                                                                                  \
        "seconds", OPTION_SECONDS, "S", 0, "stop after so long", 0                                                     \
    }
#define ROW_SEED                                                                                                       \
    {                                                                                                                  \
        "seed", OPTION_SEED, "N", 0, "of whatever is random (1)", 0                                                    \
    }
#define ROW_PRIVATE                                                                                                    \
    {                                                                                                                  \
        "private", OPTION_PRIVATE, NULL, 0, "start a daemon for it", 0                                                 \
    }
#define ROW_SOCKET                                                                                                     \
    {                                                                                                                  \
        "socket", OPTION_SOCKET, "PATH", 0, "of the daemon", 0                                                         \
    }
#define ROW_POOL                                                                                                       \
    {                                                                                                                  \
        "pool", OPTION_POOL, "NAME", 0, "to work in (default)", 0                                                      \
    }
#define ROW_LIST                                                                                                       \
    {                                                                                                                  \
        "list", OPTION_LIST, "N", 0, "blocks of one call at most (the whole chain)", 0                                 \
    }
#define ROW_NO_LOOKUP                                                                                                  \
    {                                                                                                                  \
        "no-lookup", OPTION_NO_LOOKUP, NULL, 0, "acquire at once, without looking up what is there", 0                 \
    }
#define ROW_SIZES                                                                                                      \
    {                                                                                                                  \
        "sizes", OPTION_SIZES, "N", 0, "different sizes of blocks (8)", 0                                              \
    }
#define ROW_OBJECTS                                                                                                    \
    {                                                                                                                  \
        "objects", OPTION_OBJECTS, "N", 0, "with so many alone (1,000,000, then 10,000,000)", 0                        \
    }
#define ROW_QUIET                                                                                                      \
    {                                                                                                                  \
        "quiet", OPTION_QUIET, NULL, 0, "no progress", 0                                                               \
    }
#define ROW_QUICK                                                                                                      \
    {                                                                                                                  \
        "quick", OPTION_QUICK, NULL, 0, "fewer sizes, short samples: to see that it works", 0                          \
    }
#define ROW_FIGURES                                                                                                    \
    {                                                                                                                  \
        "figures", OPTION_FIGURES, NULL, 0, "measure speed under load instead", 0                                      \
    }
#define ROW_ONLY(words)                                                                                                \
    {                                                                                                                  \
        "only", OPTION_ONLY, "WORD", 0, "only these rows: " words, 0                                                   \
    }
#define ROW_DEVICES                                                                                                    \
    {                                                                                                                  \
        "devices", OPTION_DEVICES, "WORD", 0, "only on these: file, loop, files, loops (two of a kind)", 0             \
    }
#define ROW_DEPTH                                                                                                      \
    {                                                                                                                  \
        "depth", OPTION_DEPTH, "N", 0, "only with so many requests outstanding, 1 to 32", 0                            \
    }
#define ROW_PARAMETERS                                                                                                 \
    {                                                                                                                  \
        "parameters", OPTION_PARAMETERS, "N", 0, "of the model", 0                                                     \
    }
#define ROW_OUTPUT                                                                                                     \
    {                                                                                                                  \
        "output", OPTION_OUTPUT, "json", 0, "print figures as JSON", 0                                                 \
    }

/* Fills `options`, which hold the defaults. Ends the process on a mistake (status 64) and after --help. */
void options_parse(int argc, char **argv, const struct argp_option *rows, const char *doc, struct options *options);

/* Whether what was chosen (NULL: everything) leaves this in. */
bool options_choose(const char *chosen, const char *word);
/* Ends the process (status 64) unless all or one of the words was chosen; the last of them is NULL. */
void options_check_choice(const char *option, const char *chosen, const char *const *words);
