/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the walks over a whole config: as JSON for `spillctl config show`, key by key against another one, and the mixture
 * of two that a reload runs with. All of them compare and print values as text, exactly as a file would
 * have them. Main thread only.
 */
#include <errno.h>
#include <string.h>

#include "daemon/config_keys.h"
#include "daemon/json.h"

#define TITLE_BYTES (NAME_BYTES_MAX + 16)

/* What the key will be after a restart; NULL: what it is. */
static const char *pending_value(const struct config_changes *pending, const char *title, const char *key)
{
    for (uint32_t i = 0; pending && i < pending->n; i++)
        if (pending->at[i].needs_restart && strcmp(pending->at[i].section, title) == 0 &&
            strcmp(pending->at[i].key, key) == 0)
            return pending->at[i].new_value;
    return NULL;
}

static void section_to_json(struct json_object *sections, const struct spillway_config *config, enum config_kind kind,
                            const struct config_section *s, const struct config_changes *pending)
{
    char value[CONFIG_TEXT_BYTES_MAX + 1], from[CONFIG_VALUE_BYTES_MAX + 16], title[TITLE_BYTES];
    struct json_object *object = json_put_object(sections, config_section_title(kind, s, title));

    for (uint32_t k = 0; k < config_kinds[kind].n_keys; k++) {
        const struct config_key *key = &config_kinds[kind].keys[k];
        const char *later = pending_value(pending, title, key->name);
        struct json_object *entry = json_put_object(object, key->name);

        config_value_print(key, s, value);
        snprintf(from, sizeof(from), "%s:%u", config->path, s->key_lines[k]);
        json_put_text(entry, "value", value);
        json_put_text(entry, "from", s->key_lines[k] ? from : "default");
        json_put_bool(entry, "reloads", key->reloads);
        if (later)
            json_put_text(entry, "after_restart", later);
    }
}

/* Whole sections that the file has and the daemon has not, or the other way round: by their titles. */
static void sections_to_come(struct json_object *array, const struct config_changes *pending, bool added)
{
    for (uint32_t i = 0; pending && i < pending->n; i++)
        if (*pending->at[i].key == '\0' && (*pending->at[i].old_value == '\0') == added)
            json_add_text(array, pending->at[i].section);
}

char *config_print_json(const struct spillway_config *config, const struct config_changes *pending, size_t *ret_size)
{
    struct json_object *root = json_begin(), *sections;
    struct config_section *s;

    json_put_text(root, "file", *config->path ? config->path : NULL);
    sections = json_put_object(root, "sections");
    for (enum config_kind kind = 0; kind < CONFIG_KINDS; kind++)
        for (uint32_t i = 0; (s = config_section_at(config, kind, i)) != NULL; i++)
            section_to_json(sections, config, kind, s, pending);
    sections_to_come(json_put_array(root, "added_after_restart"), pending, true);
    sections_to_come(json_put_array(root, "gone_after_restart"), pending, false);
    return json_end(root, ret_size);
}

static void change_add(struct config_changes *changes, const char *section, const char *key, const char *old_value,
                       const char *new_value, bool needs_restart)
{
    struct config_change *c;

    changes->n_restart += needs_restart;
    if (changes->n == CONFIG_CHANGES_MAX) {
        changes->n_left_out++;
        return;
    }
    c = &changes->at[changes->n++];
    snprintf(c->section, sizeof(c->section), "%s", section);
    snprintf(c->key, sizeof(c->key), "%s", key);
    snprintf(c->old_value, sizeof(c->old_value), "%s", old_value);
    snprintf(c->new_value, sizeof(c->new_value), "%s", new_value);
    c->needs_restart = needs_restart;
}

/*
 * Who may open a pool can change at any time, but not so that its trust changes: chunks that clients map for writing
 * exist already.
 */
static bool key_reloads(enum config_kind kind, const struct config_key *key, const struct config_section *old,
                        const struct config_section *wanted)
{
    if (kind == CONFIG_POOL && (key->type == CONFIG_TYPE_USERS || key->type == CONFIG_TYPE_GROUPS)) {
        const struct config_pool *a = container_of(old, const struct config_pool, section);
        const struct config_pool *b = container_of(wanted, const struct config_pool, section);

        return a->is_trusted == b->is_trusted && !(a->is_trusted && a->users.ids[0] != b->users.ids[0]);
    }
    return key->reloads;
}

static void diff_section(enum config_kind kind, const struct config_section *old, const struct config_section *wanted,
                         struct config_changes *changes)
{
    char title[TITLE_BYTES], old_value[CONFIG_TEXT_BYTES_MAX + 1], new_value[CONFIG_TEXT_BYTES_MAX + 1];

    config_section_title(kind, old, title);
    for (uint32_t k = 0; k < config_kinds[kind].n_keys; k++) {
        const struct config_key *key = &config_kinds[kind].keys[k];

        config_value_print(key, old, old_value);
        config_value_print(key, wanted, new_value);
        if (strcmp(old_value, new_value) != 0)
            change_add(changes, title, key->name, old_value, new_value, !key_reloads(kind, key, old, wanted));
    }
}

/* Sections of `from` that `other` does not have. */
static void diff_missing(enum config_kind kind, const struct spillway_config *from, const struct spillway_config *other,
                         bool added, struct config_changes *changes)
{
    char title[TITLE_BYTES];
    struct config_section *s;

    for (uint32_t i = 0; (s = config_section_at(from, kind, i)) != NULL; i++)
        if (!config_section_find(other, kind, s->name))
            change_add(changes, config_section_title(kind, s, title), "", added ? "" : "present",
                       added ? "present" : "", true);
}

void config_diff(const struct spillway_config *old, const struct spillway_config *wanted,
                 struct config_changes *ret_changes)
{
    struct config_section *s, *w;

    *ret_changes = (struct config_changes){0};
    for (enum config_kind kind = 0; kind < CONFIG_KINDS; kind++) {
        for (uint32_t i = 0; (s = config_section_at(old, kind, i)) != NULL; i++)
            if ((w = config_section_find(wanted, kind, s->name)) != NULL)
                diff_section(kind, s, w, ret_changes);
        diff_missing(kind, old, wanted, false, ret_changes);
        diff_missing(kind, wanted, old, true, ret_changes);
    }
}

int config_merge(const struct spillway_config *old, const struct spillway_config *wanted, const struct config_env *env,
                 struct spillway_config **ret_config, struct config_errors *errors)
{
    cleanup_config struct spillway_config *c = malloc(sizeof(*c));
    struct config_section *s, *w;

    *errors = (struct config_errors){0};
    if (!c)
        return -ENOMEM;
    memcpy(c, old, sizeof(*c));
    memcpy(c->path, wanted->path, sizeof(c->path));
    for (enum config_kind kind = 0; kind < CONFIG_KINDS; kind++)
        for (uint32_t i = 0; (s = config_section_at(c, kind, i)) != NULL; i++) {
            if ((w = config_section_find(wanted, kind, s->name)) == NULL)
                continue;
            s->line = w->line;
            for (uint32_t k = 0; k < config_kinds[kind].n_keys; k++) {
                const struct config_key *key = &config_kinds[kind].keys[k];

                if (!key_reloads(kind, key, config_section_at(old, kind, i), w))
                    continue;
                memcpy((char *)s + key->offset, (const char *)w + key->offset, key->size);
                s->key_lines[k] = w->key_lines[k];
            }
        }
    config_check(c, env, errors);
    if (errors->n > 0)
        return -EINVAL;
    *ret_config = steal_ptr(c);
    return 0;
}
