/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns how a value of each type is read and written. A value is built whole in a local and then stored, so a failed
 * parse leaves the default. A message names what was found and what would do; file and line are the caller's to add.
 */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdarg.h>
#include <string.h>

#include "daemon/config_keys.h"
#include "include/base/units.h"

#define ID_OVERFLOW 65534 /* what the kernel shows for an id that has no name in our namespace */

static int refuse(char message[static CONFIG_VALUE_BYTES_MAX + 1], const char *format, ...) printf_like(2, 3);
static int refuse(char message[static CONFIG_VALUE_BYTES_MAX + 1], const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(message, CONFIG_VALUE_BYTES_MAX + 1, format, args);
    va_end(args);
    return -EINVAL;
}

/* The unit that was probably meant. KB is near KiB, and so on; for a duration `m` is near both ms and min. */
static int refuse_unit(const char *what, const char *text, const struct unit *units, size_t n_units, char *message)
{
    const char *names[16];
    const char *tail = units_tail(text);
    size_t n = 0;

    for (size_t i = 0; i < n_units && n < ARRAY_LEN(names); i++)
        if (strlen(units[i].name) > 1)
            names[n++] = units[i].name;
    if (*tail == '\0')
        refuse(message, "'%.80s' needs a unit, as in '%.80s %s'", text, text, names[0]);
    else
        refuse(message, "'%.80s' is not a unit of %s (those are %s)", tail, what,
               units == units_size ? "B, KiB, MiB, GiB, TiB" : "us, ms, s, min, h, d");
    if (*tail != '\0')
        config_suggest(message, CONFIG_VALUE_BYTES_MAX + 1, tail, names, n);
    return -EINVAL;
}

static int parse_size(const char *text, uint64_t *ret_bytes, char *message)
{
    switch (size_parse(text, ret_bytes)) {
    case 0:
        return 0;
    case -EDOM:
        return refuse_unit("size", text, units_size, ARRAY_LEN(units_size), message);
    case -ERANGE:
        return refuse(message, "'%.80s' is too large or has too many decimals", text);
    default:
        return refuse(message, "'%.80s' is not a size such as '64 KiB' or '12 GiB'", text);
    }
}

static int parse_amount(const char *text, struct config_amount *ret_amount, char *message)
{
    struct config_amount amount = {.kind = CONFIG_AMOUNT_PERCENT};

    if (strcmp(text, "auto") == 0) {
        *ret_amount = (struct config_amount){.kind = CONFIG_AMOUNT_AUTO};
        return 0;
    }
    int r = percent_parse(text, &amount.percent_milli);
    if (r == -ERANGE && strchr(text, '%'))
        return refuse(message, "'%.80s' is more than 100 %%, or has too many decimals", text);
    if (r < 0) {
        amount.kind = CONFIG_AMOUNT_BYTES;
        if (parse_size(text, &amount.bytes, message) < 0)
            return -EINVAL;
    }
    *ret_amount = amount;
    return 0;
}

static int parse_duration(const char *text, uint64_t *ret_ns, char *message)
{
    if (strcmp(text, "0") == 0) {
        *ret_ns = 0;
        return 0;
    }
    switch (duration_parse(text, ret_ns)) {
    case 0:
        return 0;
    case -EDOM:
        return refuse_unit("time", text, units_duration, ARRAY_LEN(units_duration), message);
    case -ERANGE:
        return refuse(message, "'%.80s' is too long or has too many decimals", text);
    default:
        return refuse(message, "'%.80s' is not a time such as '250 ms' or '5 min'", text);
    }
}

/* `50 MiB/s`, `4 TiB/day`. */
static int parse_rate(const struct config_key *key, const char *text, struct config_rate *ret_rate, char *message)
{
    char size[CONFIG_VALUE_BYTES_MAX + 1];
    struct config_rate rate = {0};
    const char *names[ARRAY_LEN(units_rate)];
    const char *slash = strchr(text, '/');

    if (key->zero && strcmp(text, key->zero) == 0) {
        *ret_rate = rate;
        return 0;
    }
    if (!slash)
        return refuse(message, "'%.80s' is not a rate such as '50 MiB/s' or '4 TiB/day'", text);
    snprintf(size, sizeof(size), "%.*s", (int)(slash - text), text);
    if (parse_size(size, &rate.bytes, message) < 0)
        return -EINVAL;
    if (rate.bytes == 0)
        return refuse(message, "'%.80s' would let nothing through; '%s' is without a limit", text, key->zero);
    const char *period = slash + 1 + strspn(slash + 1, " \t");
    const struct unit *unit = units_find(period, units_rate, ARRAY_LEN(units_rate));
    if (!unit) {
        for (size_t i = 0; i < ARRAY_LEN(units_rate); i++)
            names[i] = units_rate[i].name;
        refuse(message, "'%.80s' is not a time that a rate has (those are s, min, h, day)", period);
        config_suggest(message, CONFIG_VALUE_BYTES_MAX + 1, period, names, ARRAY_LEN(names));
        return -EINVAL;
    }
    rate.period_ns = unit->factor;
    *ret_rate = rate;
    return 0;
}

static int parse_number(const struct config_key *key, const char *text, uint32_t *ret_value, char *message)
{
    char low[UNITS_TEXT_BYTES], high[UNITS_TEXT_BYTES];
    bool decimal = key->type == CONFIG_TYPE_DECIMAL;
    uint64_t milli, step = decimal ? 1 : 1000; /* thousandths in what is stored */

    if (key->zero && strcmp(text, key->zero) == 0) {
        *ret_value = 0;
        return 0;
    }
    int r = decimal_parse(text, &milli);
    if (r == -EINVAL || r == -EDOM)
        return refuse(message, "'%.80s' is not a number%s%s%s", text, key->zero ? " or '" : "",
                      key->zero ? key->zero : "", key->zero ? "'" : "");
    if (r < 0 || milli < key->min * step || milli > key->max * step)
        return refuse(message, "'%.80s' is not within %s and %s", text, milli_print(key->min * step, low),
                      milli_print(key->max * step, high));
    if (milli % step != 0)
        return refuse(message, "'%.80s' is not a whole number", text);
    *ret_value = (uint32_t)(milli / step);
    return 0;
}

static int parse_word(const char *text, const char *const *words, uint32_t n_words, uint32_t *ret_index, char *message)
{
    for (uint32_t i = 0; i < n_words; i++)
        if (strcmp(text, words[i]) == 0) {
            *ret_index = i;
            return 0;
        }
    refuse(message, "'%.80s' is not one of ", text);
    for (uint32_t i = 0; i < n_words; i++) {
        size_t len = strlen(message);

        snprintf(message + len, CONFIG_VALUE_BYTES_MAX + 1 - len, "%s%s", i ? ", " : "", words[i]);
    }
    config_suggest(message, CONFIG_VALUE_BYTES_MAX + 1, text, words, n_words);
    return -EINVAL;
}

static int parse_path(const char *text, char ret_path[static CONFIG_VALUE_BYTES_MAX + 1], char *message)
{
    if (text[0] != '/')
        return refuse(message, "'%.80s' is not an absolute path", text);
    snprintf(ret_path, CONFIG_VALUE_BYTES_MAX + 1, "%s", text);
    return 0;
}

static int parse_name(const struct config_key *key, const char *text, const struct config_env *env,
                      char ret_name[static NAME_BYTES_MAX + 1], char *message)
{
    uint32_t n = 0, index;

    if (key->type == CONFIG_TYPE_POLICY && env->policy_names) {
        while (env->policy_names[n])
            n++;
        if (parse_word(text, env->policy_names, n, &index, message) < 0)
            return -EINVAL;
    }
    if (strlen(text) > NAME_BYTES_MAX)
        return refuse(message, "a name has at most %d characters", NAME_BYTES_MAX);
    snprintf(ret_name, NAME_BYTES_MAX + 1, "%s", key->zero && strcmp(text, key->zero) == 0 ? "" : text);
    return 0;
}

/* A whole number of at most 32 bits, without sign or blanks. */
static bool number_u32(const char *text, uint32_t *ret_value)
{
    uint64_t value = 0;

    if (*text == '\0')
        return false;
    for (; *text; text++) {
        value = value * 10 + (unsigned)(*text - '0');
        if (!units_is_digit(*text) || value > UINT32_MAX)
            return false;
    }
    *ret_value = (uint32_t)value;
    return true;
}

/* `0,2-3`: bits 0, 2 and 3. */
static int parse_nodes(const char *text, uint64_t *ret_mask, char *message)
{
    char copy[CONFIG_VALUE_BYTES_MAX + 1], *rest = copy, *word;
    uint64_t mask = 0;

    if (strcmp(text, "all") == 0) {
        *ret_mask = 0;
        return 0;
    }
    snprintf(copy, sizeof(copy), "%s", text);
    while ((word = strsep(&rest, ", \t")) != NULL) {
        char *last_text = strchr(word, '-');
        uint32_t first, last;

        if (*word == '\0')
            continue;
        if (last_text)
            *last_text++ = '\0';
        if (!number_u32(word, &first) || !number_u32(last_text ? last_text : word, &last) || first > last ||
            last >= NODES_MAX)
            return refuse(message, "'%.80s' is not 'all' or a list of nodes such as '0,2-3' (at most %d)", text,
                          NODES_MAX - 1);
        for (; first <= last; first++)
            mask |= UINT64_C(1) << first;
    }
    if (mask == 0)
        return refuse(message, "'%.80s' names no node", text);
    *ret_mask = mask;
    return 0;
}

static int system_id_find(const char *name, bool group, uint32_t *ret_id)
{
    char buffer[16384]; /* larger entries (groups of thousands) are looked up by number */
    struct passwd pw, *pw_found = NULL;
    struct group gr, *gr_found = NULL;

    if (group && getgrnam_r(name, &gr, buffer, sizeof(buffer), &gr_found) == 0 && gr_found) {
        *ret_id = gr.gr_gid;
        return 0;
    }
    if (!group && getpwnam_r(name, &pw, buffer, sizeof(buffer), &pw_found) == 0 && pw_found) {
        *ret_id = pw.pw_uid;
        return 0;
    }
    return -ENOENT;
}

static int parse_id(const char *word, bool group, const struct config_env *env, uint32_t *ret_id, char *message)
{
    int (*find)(const char *, uint32_t *) = group ? env->group_find : env->user_find;
    const char *what = group ? "group" : "user";

    if (!number_u32(word, ret_id)) {
        if (units_is_digit(*word))
            return refuse(message, "'%.80s' is not a %s's name or number", word, what);
        int r = find ? find(word, ret_id) : system_id_find(word, group, ret_id);
        if (r < 0)
            return refuse(message, "there is no %s '%.80s' on this machine", what, word);
    }
    if (*ret_id == ID_OVERFLOW || *ret_id == UINT32_MAX)
        return refuse(message, "%s '%.80s' stands for whoever has no id here, and may not open a pool", what, word);
    return 0;
}

static bool ids_has(const struct config_ids *ids, uint32_t id)
{
    for (uint32_t i = 0; i < ids->n; i++)
        if (ids->ids[i] == id)
            return true;
    return false;
}

static int parse_ids(const char *text, bool group, const struct config_env *env, struct config_ids *ret_ids,
                     char *message)
{
    char copy[CONFIG_VALUE_BYTES_MAX + 1], *rest = copy, *word;
    struct config_ids ids = {0};

    snprintf(ids.text, sizeof(ids.text), "%s", text);
    snprintf(copy, sizeof(copy), "%s", text);
    ids.any = !group && strcmp(text, "any") == 0;
    if (ids.any || strcmp(text, "none") == 0)
        rest = NULL;
    while ((word = strsep(&rest, ", \t")) != NULL) {
        uint32_t id = 0;

        if (*word == '\0')
            continue;
        if (strcmp(word, "any") == 0)
            return refuse(message, "'any' stands alone, and only in 'users'");
        if (parse_id(word, group, env, &id, message) < 0)
            return -EINVAL;
        if (ids_has(&ids, id)) /* one person by two names is one person: trust depends on the count */
            continue;
        if (ids.n == CONFIG_IDS_MAX)
            return refuse(message, "more than %d names: use a group", CONFIG_IDS_MAX);
        ids.ids[ids.n++] = id;
    }
    *ret_ids = ids;
    return 0;
}

static int parse_bool(const char *text, bool *ret_value, char *message)
{
    static const char *const words[] = {"no", "yes"};
    uint32_t index;

    if (parse_word(text, words, ARRAY_LEN(words), &index, message) < 0)
        return -EINVAL;
    *ret_value = index == 1;
    return 0;
}

int config_value_parse(const struct config_key *key, const char *text, const struct config_env *env,
                       struct config_section *section, char ret_message[static CONFIG_VALUE_BYTES_MAX + 1])
{
    void *member = (char *)section + key->offset;

    switch (key->type) {
    case CONFIG_TYPE_UINT:
    case CONFIG_TYPE_DECIMAL:
        return parse_number(key, text, member, ret_message);
    case CONFIG_TYPE_BOOL:
        return parse_bool(text, member, ret_message);
    case CONFIG_TYPE_ENUM:
        return parse_word(text, key->words, key->n_words, member, ret_message);
    case CONFIG_TYPE_SIZE:
        if (key->zero && strcmp(text, key->zero) == 0)
            text = "0";
        return parse_size(text, member, ret_message);
    case CONFIG_TYPE_AMOUNT:
        return parse_amount(text, member, ret_message);
    case CONFIG_TYPE_DURATION:
        return parse_duration(text, member, ret_message);
    case CONFIG_TYPE_RATE:
        return parse_rate(key, text, member, ret_message);
    case CONFIG_TYPE_PATH:
        return parse_path(text, member, ret_message);
    case CONFIG_TYPE_NAME:
    case CONFIG_TYPE_POLICY:
        return parse_name(key, text, env, member, ret_message);
    case CONFIG_TYPE_NODES:
        return parse_nodes(text, member, ret_message);
    case CONFIG_TYPE_USERS:
    case CONFIG_TYPE_GROUPS:
        return parse_ids(text, key->type == CONFIG_TYPE_GROUPS, env, member, ret_message);
    case CONFIG_TYPE_GPUS:
        return config_gpus_parse(key->zero, text, member, ret_message);
    }
    return refuse(ret_message, "unknown type");
}

static void print_nodes(uint64_t mask, char *text, size_t text_bytes)
{
    size_t len = 0;

    if (mask == 0)
        snprintf(text, text_bytes, "all");
    for (unsigned first = 0; first < NODES_MAX; first++) {
        unsigned last = first;

        if (!(mask >> first & 1))
            continue;
        while (last + 1 < NODES_MAX && (mask >> (last + 1) & 1))
            last++;
        len += (size_t)snprintf(text + len, text_bytes - len, first == last ? "%s%u" : "%s%u-%u", len ? "," : "", first,
                                last);
        first = last;
    }
}

static const char *rate_print(const struct config_key *key, const struct config_rate *rate,
                              char text[static CONFIG_VALUE_BYTES_MAX + 1])
{
    char size[UNITS_TEXT_BYTES];
    const struct unit *unit = units_rate;

    if (rate->bytes == 0)
        return key->zero;
    while (unit->factor != rate->period_ns)
        unit++;
    snprintf(text, CONFIG_VALUE_BYTES_MAX + 1, "%s/%s", size_print_exact(rate->bytes, size), unit->name);
    return text;
}

static const char *amount_print(const struct config_amount *amount, char text[static UNITS_TEXT_BYTES])
{
    if (amount->kind == CONFIG_AMOUNT_AUTO)
        return "auto";
    if (amount->kind == CONFIG_AMOUNT_BYTES)
        return size_print_exact(amount->bytes, text);
    milli_print(amount->percent_milli, text);
    size_t len = strlen(text);
    snprintf(text + len, UNITS_TEXT_BYTES - len, " %%");
    return text;
}

void config_value_print(const struct config_key *key, const struct config_section *section,
                        char ret_text[static CONFIG_TEXT_BYTES_MAX + 1])
{
    const void *member = (const char *)section + key->offset;
    const uint32_t *u32 = member;
    const uint64_t *u64 = member;
    char number[UNITS_TEXT_BYTES], rate[CONFIG_VALUE_BYTES_MAX + 1];
    const char *text = member;

    switch (key->type) {
    case CONFIG_TYPE_UINT:
        snprintf(number, sizeof(number), "%u", *u32);
        text = *u32 == 0 && key->zero ? key->zero : number;
        break;
    case CONFIG_TYPE_DECIMAL:
        text = *u32 == 0 && key->zero ? key->zero : milli_print(*u32, number);
        break;
    case CONFIG_TYPE_BOOL:
        text = *(const bool *)member ? "yes" : "no";
        break;
    case CONFIG_TYPE_ENUM:
        text = key->words[*u32];
        break;
    case CONFIG_TYPE_SIZE:
        text = *u64 == 0 && key->zero ? key->zero : size_print_exact(*u64, number);
        break;
    case CONFIG_TYPE_AMOUNT:
        text = amount_print(member, number);
        break;
    case CONFIG_TYPE_DURATION:
        text = duration_print_exact(*u64, number);
        break;
    case CONFIG_TYPE_RATE:
        text = rate_print(key, member, rate);
        break;
    case CONFIG_TYPE_PATH:
    case CONFIG_TYPE_POLICY:
        break;
    case CONFIG_TYPE_NAME:
        text = *text == '\0' && key->zero ? key->zero : text;
        break;
    case CONFIG_TYPE_NODES:
        print_nodes(*u64, ret_text, CONFIG_VALUE_BYTES_MAX + 1);
        return;
    case CONFIG_TYPE_USERS:
    case CONFIG_TYPE_GROUPS:
        text = ((const struct config_ids *)member)->text;
        text = *text == '\0' ? "none" : text;
        break;
    case CONFIG_TYPE_GPUS:
        config_gpus_print(key->zero, member, ret_text);
        return;
    }
    snprintf(ret_text, CONFIG_VALUE_BYTES_MAX + 1, "%s", text);
}
