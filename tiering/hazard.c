/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the tables of one chain policy. One engine's thread, no memory of its own.
 *
 * For each class and bin of age the chance of a use there is `used / reached`, drawn towards a prior as long as little
 * was seen: for cold classes what all of them have in common, scaled to the class; for hot ones that their uses come at
 * random, once every gap. What is worth keeping is then a known problem with a known answer (Gittins, 1979): at age a,
 * with S the chance of having to wait until bin b,
 *
 *   index(a) = max over j of   sum S·q  /  sum S·(1 - q/2)·width    from a to j
 *
 * the uses that holding the block until j gains, over the time that it takes. The block with the least index goes.
 *
 * Weights stand for blocks: those of one request live and die together, so a long request counts for less than its length
 * (who calls says how much). Every class has its turn once in HAZARD_PERIOD requests; what waits there moves on to the
 * bins that it has reached by then, and what was learned fades.
 */
#include "tiering/hazard.h"

#include <math.h>
#include <string.h>

#define FADE 0.98F
#define MEAN_WEIGHT 200.0F /* of the prior of `mean`: so much was seen, and 30 % of it was used again */
#define MEAN_USED 0.3F
#define SCALE_WEIGHT 20.0F /* a class is like the mean */
#define COLD_WEIGHT 500.0F
#define HOT_WEIGHT 20.0F
#define LEFT_MIN 1e-6F /* what comes after that changes nothing, and denormal numbers are slow */

/* The youngest age of a bin: 1, 1.5, 2, 3, 4, 6, ... */
static float bin_start(uint32_t bin)
{
    float octave = (float)(UINT64_C(1) << (bin / 2));

    return bin % 2 ? octave * 1.5F : octave;
}

static float bin_width(uint32_t bin)
{
    return bin_start(bin + 1) - bin_start(bin);
}

/* What came back cannot be more than what was there, though the first is known at once and the second when it is due. */
static float reached(const struct hazard_class *c, uint32_t bin)
{
    return MAX(c->reached[bin], c->used[bin]);
}

static void class_age(struct hazard_class *c)
{
    float moved = 0;

    for (uint32_t b = 0; b < HAZARD_BINS; b++) {
        float share = b == HAZARD_BINS - 1 ? 0 : MIN((float)HAZARD_PERIOD / bin_width(b), 1.0F);

        c->waiting[b] += moved;
        c->reached[b] += moved;
        moved = c->waiting[b] * share;
        c->waiting[b] -= moved;
        c->used[b] *= FADE;
        c->reached[b] *= FADE;
    }
}

static void mean_update(struct hazard *h)
{
    for (uint32_t b = 0; b < HAZARD_BINS; b++) {
        float used = MEAN_WEIGHT * MEAN_USED / HAZARD_BINS, seen = MEAN_WEIGHT;

        for (uint32_t c = 0; c < HAZARD_HOT; c++) {
            used += h->classes[c].used[b];
            seen += reached(&h->classes[c], b);
        }
        h->mean[b] = used / seen;
    }
}

/* The chance of a use in each bin. */
static void class_chances(const struct hazard *h, uint32_t class, float ret_chances[HAZARD_BINS])
{
    const struct hazard_class *c = &h->classes[class];
    bool hot = class >= HAZARD_HOT;
    float used = SCALE_WEIGHT, expected = SCALE_WEIGHT, weight = hot ? HOT_WEIGHT : COLD_WEIGHT;

    for (uint32_t b = 0; b < HAZARD_BINS; b++) {
        used += c->used[b];
        expected += reached(c, b) * h->mean[b];
    }
    for (uint32_t b = 0; b < HAZARD_BINS; b++) {
        float prior = hot ? h->poisson[class - HAZARD_HOT][b] : used / expected * h->mean[b];
        float q = (c->used[b] + weight * prior) / (reached(c, b) + weight);

        ret_chances[b] = MIN(q, 1.0F);
    }
}

static void class_index(struct hazard *h, uint32_t class)
{
    float q[HAZARD_BINS], cost[HAZARD_BINS];

    class_chances(h, class, q);
    for (uint32_t b = 0; b < HAZARD_BINS; b++)
        cost[b] = (1 - q[b] / 2) * bin_width(b);
    for (uint32_t a = 0; a < HAZARD_BINS; a++) {
        float left = 1, uses = 0, time = 0, best_uses = 0, best_time = 1;

        for (uint32_t b = a; b < HAZARD_BINS && left > LEFT_MIN; b++) {
            uses += left * q[b];
            time += left * cost[b];
            left *= 1 - q[b];
            if (uses * best_time > best_uses * time) { /* a quotient is larger, without dividing */
                best_uses = uses;
                best_time = time;
            }
        }
        h->classes[class].index[a] = best_uses / best_time;
        if (a == 0)
            h->classes[class].ever = 1 - left;
    }
}

void hazard_init(struct hazard *h)
{
    memset(h, 0, sizeof(*h));
    for (uint32_t k = 0; k < HAZARD_CLASSES - HAZARD_HOT; k++) {
        for (uint32_t b = 0; b < HAZARD_BINS; b++)
            h->poisson[k][b] = 1 - expf(-bin_width(b) / exp2f((float)k + 0.5F));
    }
    mean_update(h);
    for (uint32_t c = 0; c < HAZARD_CLASSES; c++)
        class_index(h, c);
}

void hazard_enter(struct hazard *h, uint32_t class, float weight)
{
    h->classes[class].waiting[0] += weight;
    h->classes[class].reached[0] += weight;
}

void hazard_leave(struct hazard *h, uint32_t class, uint32_t age, float weight)
{
    struct hazard_class *c = &h->classes[class];

    /* Classes move on by turns, so it may still be counted among the younger. */
    for (uint32_t b = hazard_bin(age) + 1; b-- > 0 && weight > 0;) {
        float taken = MIN(c->waiting[b], weight);

        c->waiting[b] -= taken;
        weight -= taken;
    }
}

void hazard_use(struct hazard *h, uint32_t class, uint32_t age, float weight)
{
    h->classes[class].used[hazard_bin(age)] += weight;
    hazard_leave(h, class, age, weight);
}

void hazard_tick(struct hazard *h, uint32_t clock)
{
    if (clock % HAZARD_PERIOD == 0)
        mean_update(h);
    for (uint32_t c = clock % HAZARD_PERIOD; c < HAZARD_CLASSES; c += HAZARD_PERIOD) {
        class_age(&h->classes[c]);
        class_index(h, c);
    }
}
