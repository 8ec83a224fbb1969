/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes, durations, percentages and decimals (include/base/units.h): any text. What is
 * accepted is printed so that it reads back as the same number.
 */
#include "include/base/units.h"

#include "tests/fuzz/fuzz.h"

static void size_check(const char *text)
{
    char printed[UNITS_TEXT_BYTES];
    uint64_t value, again;
    int r = size_parse(text, &value);

    fuzz_check(r == 0 || r == -EINVAL || r == -EDOM || r == -ERANGE);
    if (r < 0)
        return;
    fuzz_check(size_parse(size_print_exact(value, printed), &again) == 0 && again == value, "%s", printed);
    fuzz_check(size_parse(size_print(value, printed), &again) == 0 && again <= value, "%s", printed);
}

static void duration_check(const char *text)
{
    char printed[UNITS_TEXT_BYTES];
    uint64_t value, again;

    if (duration_parse(text, &value) < 0)
        return;
    fuzz_check(duration_parse(duration_print_exact(value, printed), &again) == 0 && again == value, "%s", printed);
    fuzz_check(duration_parse(duration_print(value, printed), &again) == 0 && again <= value, "%s", printed);
}

static void others_check(const char *text)
{
    char printed[UNITS_TEXT_BYTES], with_sign[UNITS_TEXT_BYTES + 1];
    uint64_t milli, again;
    uint32_t percent, percent_again;

    if (decimal_parse(text, &milli) == 0)
        fuzz_check(decimal_parse(milli_print(milli, printed), &again) == 0 && again == milli, "%s", printed);
    if (percent_parse(text, &percent) < 0)
        return;
    fuzz_check(percent <= PERCENT_MILLI_WHOLE && percent_of(percent, UINT64_MAX) <= UINT64_MAX);
    (void)milli_print(percent, printed);
    snprintf(with_sign, sizeof(with_sign), "%s%%", printed);
    fuzz_check(percent_parse(with_sign, &percent_again) == 0 && percent_again == percent, "%s", printed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[64];
    size_t len = MIN(size, sizeof(text) - 1);

    if (len > 0)
        memcpy(text, data, len);
    text[len] = '\0';
    size_check(text);
    duration_check(text);
    others_check(text);
    return 0;
}
