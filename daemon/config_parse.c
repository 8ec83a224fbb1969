/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the way from a file's text to a config: the reader that feeds inih, headings, and the assignment of keys.
 *
 * inih splits `key = value ; comment`. The rest of its behaviour, as Debian builds it, would lose what an admin wrote:
 * lines beyond 200 bytes and section names beyond 49 are cut, an indented line overwrites the key above it, a section is
 * never announced, and only the first error is kept. So its settings are changed where they can be, and it is read
 * through reader_next(), which hands it nothing but lines that it cannot misunderstand. Headings, and lines with a
 * mistake, never reach it: it sees an empty line in their place.
 *
 * Main thread only: inih's settings are process-wide.
 */
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <string.h>

#include "daemon/config_keys.h"
#include "daemon/suggest.h"

/* inih's buffer: "this must be 3 more than the longest line" (ini.h). */
#define INIH_LINE_BYTES (CONFIG_LINE_BYTES_MAX + 3)

struct reader {
    struct spillway_config *config;
    const struct config_env *env;
    struct config_errors *errors;
    const char *next, *end; /* the text that is not read yet */
    uint32_t line;          /* of what inih was given last */
    enum config_kind kind;
    struct config_section *section; /* where keys go; NULL: nowhere */
    bool skips;                     /* the heading was wrong: its keys are passed over, to give one error, not twenty */
};

#define reader_error(r, ...) config_error_add((r)->errors, (r)->config->path, (r)->line, __VA_ARGS__)

void config_suggest(char *message, size_t message_bytes, const char *word, const char *const *names, size_t n_names)
{
    const char *near = suggest_nearest(word, names, n_names);
    size_t len = strlen(message);

    if (near && len < message_bytes)
        snprintf(message + len, message_bytes - len, "; did you mean '%s'?", near);
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

static bool is_comment(char c)
{
    return c == ';' || c == '#';
}

static bool name_ok(const char *name)
{
    if (!isalnum((unsigned char)*name))
        return false;
    for (; *name; name++)
        if (!isalnum((unsigned char)*name) && !strchr("._-", *name))
            return false;
    return true;
}

static enum config_kind kind_find(const char *name)
{
    enum config_kind kind = 0;

    while (kind < CONFIG_KINDS && strcmp(config_kinds[kind].name, name) != 0)
        kind++;
    return kind;
}

static void heading_unknown(struct reader *r, const char *name)
{
    const char *names[CONFIG_KINDS];
    char message[256];

    for (unsigned i = 0; i < CONFIG_KINDS; i++)
        names[i] = config_kinds[i].name;
    snprintf(message, sizeof(message), "unknown section [%.80s]", name);
    config_suggest(message, sizeof(message), name, names, ARRAY_LEN(names));
    reader_error(r, "%s", message);
}

/* The section that a heading opens, which for a pool or a device is a new one; NULL after an error. */
static struct config_section *section_open(struct reader *r, enum config_kind kind, const char *name)
{
    struct spillway_config *c = r->config;
    struct config_section *section = config_section_find(c, kind, name);

    if (section && section->line != 0) {
        char title[NAME_BYTES_MAX + 16];
        reader_error(r, "section [%s] was already given on line %u", config_section_title(kind, section, title),
                     section->line);
        return NULL;
    }
    if (section)
        return section;
    if (kind == CONFIG_CLASS) {
        char message[256];
        snprintf(message, sizeof(message), "unknown class '%s' (kv, weights, activation, optimizer, generic)", name);
        config_suggest(message, sizeof(message), name, config_class_names, CONFIG_CLASSES);
        reader_error(r, "%s", message);
        return NULL;
    }
    if (kind == CONFIG_POOL ? c->n_pools == POOLS_MAX : c->n_devices == DEVICES_MAX) {
        reader_error(r, "more than %d %ss", kind == CONFIG_POOL ? POOLS_MAX : DEVICES_MAX, config_kinds[kind].name);
        return NULL;
    }
    if (kind == CONFIG_POOL)
        config_pool_init(&c->pools[c->n_pools++], name, r->env);
    else
        config_device_init(&c->devices[c->n_devices++], name);
    return config_section_find(c, kind, name);
}

/* `[pool chat]`, without leading blanks; may be followed by a comment. */
static void heading_parse(struct reader *r, char *text)
{
    char *close = strchr(text, ']'), *kind_name = text + 1, *name;
    enum config_kind kind;

    r->section = NULL;
    r->skips = true;
    if (!close) {
        reader_error(r, "a section's heading ends in ']'");
        return;
    }
    for (const char *after = close + 1; *after && !is_comment(*after); after++)
        if (!is_blank(*after)) {
            reader_error(r, "'%.40s' after a section's heading", after);
            return;
        }
    *close = '\0';
    while (is_blank(*kind_name))
        kind_name++;
    name = kind_name + strcspn(kind_name, " \t");
    if (*name)
        *name++ = '\0';
    name += strspn(name, " \t");
    for (char *end = name + strlen(name); end > name && is_blank(end[-1]);)
        *--end = '\0';

    kind = kind_find(kind_name);
    if (kind == CONFIG_KINDS)
        heading_unknown(r, kind_name);
    else if (!config_kinds[kind].named && *name)
        reader_error(r, "section [%s] takes no name", kind_name);
    else if (config_kinds[kind].named && !*name)
        reader_error(r, "section [%s] needs a name, as in [%s %s]", kind_name, kind_name,
                     kind == CONFIG_CLASS ? "kv" : "first");
    else if (strlen(name) > NAME_BYTES_MAX)
        reader_error(r, "the name of this %s has %zu characters; at most %d", kind_name, strlen(name), NAME_BYTES_MAX);
    else if (*name && !name_ok(name))
        reader_error(r, "'%.63s' is not a name: letters, digits, '.', '_' and '-', a letter or digit first", name);
    else {
        r->section = section_open(r, kind, name);
        r->kind = kind;
        r->skips = r->section == NULL;
        if (r->section)
            r->section->line = r->line;
    }
}

/* True if inih will see a key and a value here: the same search for '=' or ':' before a comment. */
static bool has_assignment(const char *text)
{
    if (*text == '=' || *text == ':')
        return false;
    for (bool after_blank = false; *text && !(after_blank && *text == ';'); text++) {
        if (*text == '=' || *text == ':')
            return true;
        after_blank = isspace((unsigned char)*text);
    }
    return false;
}

/* Decides what inih gets to see of one line: true if it is an assignment that it can take as it is. */
static bool line_accept(struct reader *r, char *line, size_t line_bytes)
{
    size_t indent = 0;

    if (memchr(line, '\0', line_bytes)) {
        reader_error(r, "a NUL byte: this is not a text file");
        return false;
    }
    while (is_blank(line[indent]))
        indent++;
    if (line[indent] == '\0' || is_comment(line[indent]))
        return false;
    if (indent > 0) {
        reader_error(r, "an indented line: a value stays on its key's line, and keys start at the left margin");
        return false;
    }
    if (*line == '[') {
        heading_parse(r, line);
        return false;
    }
    if (!has_assignment(line)) {
        reader_error(r, "'%.40s' is neither [section] nor key = value", line);
        return false;
    }
    return true;
}

/* fgets() for inih. Every call gives exactly one line, so r->line is the line that key_assign() is called for. */
static char *reader_next(char *buffer, int buffer_bytes, void *stream)
{
    struct reader *r = stream;

    if (r->next == r->end)
        return NULL;
    const char *newline = memchr(r->next, '\n', (size_t)(r->end - r->next));
    size_t bytes = (size_t)((newline ? newline : r->end) - r->next);
    const char *from = r->next;

    r->next = newline ? newline + 1 : r->end;
    r->line++;
    if (r->line == 1 && bytes >= 3 && memcmp(from, "\xEF\xBB\xBF", 3) == 0) { /* an editor's byte order mark */
        from += 3;
        bytes -= 3;
    }
    if (bytes > CONFIG_LINE_BYTES_MAX || bytes + 2 > (size_t)buffer_bytes) {
        reader_error(r, "a line of %zu characters; at most %d", bytes, CONFIG_LINE_BYTES_MAX);
        bytes = 0;
    }
    memcpy(buffer, from, bytes);
    buffer[bytes] = '\0';
    if (!line_accept(r, buffer, bytes))
        bytes = 0;
    memcpy(buffer + bytes, "\n", 2);
    return buffer;
}

static const struct config_key *key_find(enum config_kind kind, const char *name)
{
    for (uint32_t i = 0; i < config_kinds[kind].n_keys; i++)
        if (strcmp(config_kinds[kind].keys[i].name, name) == 0)
            return &config_kinds[kind].keys[i];
    return NULL;
}

static void key_unknown(struct reader *r, const char *name)
{
    const char *names[CONFIG_KEYS_MAX];
    char message[256], title[NAME_BYTES_MAX + 16];
    const struct config_kind_info *info = &config_kinds[r->kind];
    size_t len;

    for (uint32_t i = 0; i < info->n_keys; i++)
        names[i] = info->keys[i].name;
    snprintf(message, sizeof(message), "unknown key '%.63s' in [%s]", name,
             config_section_title(r->kind, r->section, title));
    len = strlen(message);
    config_suggest(message, sizeof(message), name, names, info->n_keys);
    for (unsigned kind = 0; kind < CONFIG_KINDS && message[len] == '\0'; kind++)
        if (key_find(kind, name))
            snprintf(message + len, sizeof(message) - len, "; it belongs in [%s%s]", config_kinds[kind].name,
                     config_kinds[kind].named ? " NAME" : "");
    reader_error(r, "%s", message);
}

/* What inih cannot tell us is wrong with a value; NULL if nothing is. */
static const char *value_complaint(const struct config_key *key, const char *value)
{
    bool is_list = key->type == CONFIG_TYPE_GPUS;

    if (*value == '\0')
        return "has no value";
    if (strlen(value) > (is_list ? CONFIG_TEXT_BYTES_MAX : CONFIG_VALUE_BYTES_MAX))
        return is_list ? "has a value of more than 2687 characters" : "has a value of more than 255 characters";
    if (*value == '"' || *value == '\'')
        return "has a value in quotes: values are written without";
    if (strstr(value, " #") || strstr(value, "\t#"))
        return "has a '#' after its value: there, a comment starts with ';'";
    return NULL;
}

/* inih's handler. It always answers "go on": mistakes are in r->errors. */
static int key_assign(void *stream, const char *inih_section, const char *name, const char *value)
{
    struct reader *r = stream;
    char message[CONFIG_VALUE_BYTES_MAX + 1];

    (void)inih_section; /* never set: it does not see headings */
    if (!r->section) {
        if (!r->skips)
            reader_error(r, "'%.63s' stands before the first [section]", name);
        return 1;
    }
    const struct config_key *key = key_find(r->kind, name);
    if (!key) {
        key_unknown(r, name);
        return 1;
    }
    uint32_t *key_line = &r->section->key_lines[key - config_kinds[r->kind].keys];
    const char *complaint = value_complaint(key, value);
    if (*key_line != 0)
        reader_error(r, "'%s' was already set on line %u", name, *key_line);
    else if (complaint)
        reader_error(r, "'%s' %s", name, complaint);
    else if (config_value_parse(key, value, r->env, r->section, message) < 0)
        reader_error(r, "%s: %s", name, message);
    if (*key_line == 0)
        *key_line = r->line;
    return 1;
}

int config_parse_text(struct spillway_config *config, const char *text, size_t text_bytes, const struct config_env *env,
                      struct config_errors *errors)
{
    struct reader r = {.config = config, .env = env, .errors = errors, .next = text, .end = text + text_bytes};

    ini_use_stack = false;
    ini_allow_realloc = false;
    ini_max_line = INIH_LINE_BYTES;
    ini_initial_alloc = INIH_LINE_BYTES;
    ini_allow_multiline = false;
    ini_allow_no_value = false;
    ini_stop_on_first_error = true;
    int line = ini_parse_stream(reader_next, &r, key_assign, &r);
    if (line == -2)
        return -ENOMEM;
    if (line != 0) { /* a line that we took for an assignment and inih did not */
        r.line = (uint32_t)line;
        reader_error(&r, "not understood");
    }
    return 0;
}
