/* SPDX-License-Identifier: Apache-2.0 */
/* Private to config*.c: the table of sections and keys that parsing, printing, diff and merge are all driven by. */
#pragma once

#include "daemon/config.h"

enum config_type {
    CONFIG_TYPE_UINT,     /* uint32_t within min..max */
    CONFIG_TYPE_BOOL,     /* bool, yes or no */
    CONFIG_TYPE_ENUM,     /* uint32_t, index into words */
    CONFIG_TYPE_SIZE,     /* uint64_t, bytes, within min..max */
    CONFIG_TYPE_AMOUNT,   /* struct config_amount */
    CONFIG_TYPE_DURATION, /* uint64_t, nanoseconds */
    CONFIG_TYPE_RATE,     /* struct config_rate */
    CONFIG_TYPE_DECIMAL,  /* uint32_t, thousandths, within min..max thousandths */
    CONFIG_TYPE_PATH,     /* char[CONFIG_VALUE_BYTES_MAX + 1], absolute */
    CONFIG_TYPE_NAME,     /* char[NAME_BYTES_MAX + 1] */
    CONFIG_TYPE_POLICY,   /* the same, one of env->policy_names */
    CONFIG_TYPE_NODES,    /* uint64_t, mask */
    CONFIG_TYPE_USERS,    /* struct config_ids */
    CONFIG_TYPE_GROUPS,
    CONFIG_TYPE_GPUS, /* struct config_gpus; `zero` is the word for all */
};

struct config_key {
    const char *name;
    enum config_type type;
    uint32_t offset, size; /* of the member in the section's struct */
    bool reloads;          /* SIGHUP is enough */
    uint64_t min, max;
    const char *zero;         /* the word for 0, where 0 has a meaning of its own */
    const char *const *words; /* of an enum */
    uint32_t n_words;
};

struct config_kind_info {
    const char *name; /* as in the heading, before the blank */
    bool named;       /* [device NAME], not [daemon] */
    uint32_t n_keys;
    const struct config_key *keys;
};

extern const struct config_kind_info config_kinds[CONFIG_KINDS];
extern const char *const config_class_names[CONFIG_CLASSES];
extern const char *const config_tier_names[CONFIG_TIERS];

/* Section i of a kind, in the order in which sections are shown; NULL at the end. */
struct config_section *config_section_at(const struct spillway_config *config, enum config_kind kind, uint32_t i);
struct config_section *config_section_find(const struct spillway_config *config, enum config_kind kind,
                                           const char *name);
/* `pool chat` */
const char *config_section_title(enum config_kind kind, const struct config_section *section,
                                 char ret_title[static NAME_BYTES_MAX + 16]);

/*
 * Sets a member from its text. On failure (-EINVAL) the member is untouched and ret_message says what is wrong, without
 * file and line.
 */
int config_value_parse(const struct config_key *key, const char *text, const struct config_env *env,
                       struct config_section *section, char ret_message[static CONFIG_VALUE_BYTES_MAX + 1]);
/* The text that would parse to the same value. */
void config_value_print(const struct config_key *key, const struct config_section *section,
                        char ret_text[static CONFIG_TEXT_BYTES_MAX + 1]);

void config_error_add(struct config_errors *errors, const char *path, uint32_t line, const char *format, ...)
    printf_like(4, 5);

/* Appends `; did you mean 'x'?` to a message when a known name is near. */
void config_suggest(char *message, size_t message_bytes, const char *word, const char *const *names, size_t n_names);

/* config_parse.c: applies a file's text to a config that holds the defaults. */
int config_parse_text(struct spillway_config *config, const char *text, size_t text_bytes, const struct config_env *env,
                      struct config_errors *errors);
/* config_gpus.c: `all` is the word for all of them. */
int config_gpus_parse(const char *all, const char *text, struct config_gpus *ret_gpus,
                      char ret_message[static CONFIG_VALUE_BYTES_MAX + 1]);
void config_gpus_print(const char *all, const struct config_gpus *gpus,
                       char ret_text[static CONFIG_TEXT_BYTES_MAX + 1]);
#define CONFIG_GPU_BYTES 41 /* of `GPU-…`, as nvidia-smi prints it */
void config_gpu_print(const struct config_gpu *gpu, char ret_text[static CONFIG_GPU_BYTES]);
/* config_check.c: fills in what is derived, and finds what no single line shows. */
void config_check(struct spillway_config *config, const struct config_env *env, struct config_errors *errors);
/* config.c */
void config_pool_init(struct config_pool *pool, const char *name, const struct config_env *env);
void config_device_init(struct config_device *device, const char *name);
