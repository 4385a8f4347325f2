/* Choosing compressed entries and learning to choose them; pooling of blocks into entries.
 *
 * The same mathematics as components/indexer/{lightning,teaching}.py, attention/core.py (entry_mass) and
 * compressor/gated.py, which define it. All tensors are contiguous; numbers are float32, masks one byte.
 */
#include "common.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* scores[row, t] = sum over heads of weights[row, h] * relu(products[row, h, t]). */
EXPORT void index_scores_forward(long rows, long heads, long t, const float *restrict products,
                                 const float *restrict weights, float *restrict scores) {
    for (long row = 0; row < rows; row++, scores += t) {
        memset(scores, 0, sizeof(float) * (size_t)t);
        for (long h = 0; h < heads; h++, products += t, weights++)
            for (long i = 0; i < t; i++) scores[i] += *weights * (products[i] > 0.0f ? products[i] : 0.0f);
    }
}

EXPORT void index_scores_backward(long rows, long heads, long t, const float *restrict products,
                                  const float *restrict weights, const float *restrict dscores,
                                  float *restrict dproducts, float *restrict dweights) {
    for (long row = 0; row < rows; row++, dscores += t)
        for (long h = 0; h < heads; h++, products += t, dproducts += t) {
            const float w = *weights++;
            float dot = 0.0f;
            for (long i = 0; i < t; i++) {
                const float on = products[i] > 0.0f ? dscores[i] : 0.0f;
                dproducts[i] = w * on;
                dot += products[i] * on;
            }
            *dweights++ = dot;
        }
}

/* Unsigned numbers in the order of floats: both zeros are one, and what is no number is above all. */
INLINE uint32_t rank_of(float x) {
    union { float f; uint32_t u; } bits = {x};
    if ((bits.u << 1) == 0) return 0x80000000u;
    return bits.u >> 31 ? ~bits.u : bits.u | 0x80000000u;
}

/* The value that stands at place k (from 0) when `values` are sorted downwards; reorders them. */
static uint32_t select_highest(uint32_t *values, long n, long k) {
    long low = 0, high = n - 1;
    while (low < high) {
        const uint32_t pivot = values[low + (high - low) / 2];
        long i = low, j = high;
        while (i <= j) {
            while (values[i] > pivot) i++;
            while (values[j] < pivot) j--;
            if (i <= j) {
                const uint32_t swap = values[i];
                values[i++] = values[j];
                values[j--] = swap;
            }
        }
        if (k <= j) high = j;
        else if (k >= i) low = i;
        else break;
    }
    return values[k];
}

/* mask[row, t] marks the k highest of t scores, of equal ones the first. Returns 0, or -1 where memory is not to be had. */
EXPORT int highest(long rows, long t, long k, const float *restrict scores, uint8_t *restrict mask) {
    uint32_t *ranks = malloc(sizeof(uint32_t) * (size_t)(2 * t)), *sorted = ranks + t;
    if (!ranks) return -1;
    for (long row = 0; row < rows; row++, scores += t, mask += t) {
        for (long i = 0; i < t; i++) sorted[i] = ranks[i] = rank_of(scores[i]);
        const uint32_t least = select_highest(sorted, t, k - 1);
        long room = k;
        for (long i = 0; i < t; i++) room -= ranks[i] > least;
        for (long i = 0; i < t; i++) {
            const int equal = ranks[i] == least && room > 0;
            room -= equal;
            mask[i] = (uint8_t)(ranks[i] > least || equal);
        }
    }
    free(ranks);
    return 0;
}

/* KL(p || softmax(scores)) of every row over its candidates, where p is mass over its sum, and its gradient by scores; zeros
 * where there is no candidate. Returns the number of rows that have one. */
EXPORT long divergence(long rows, long t, const float *restrict scores, const float *restrict mass,
                       const uint8_t *restrict candidates, float *restrict terms, float *restrict dscores) {
    long counted = 0;
    for (long row = 0; row < rows; row++, scores += t, mass += t, candidates += t, dscores += t) {
        float top = -INFINITY, total = 0.0f, sum = 0.0f, all = 0.0f, term = 0.0f;
        long any = 0;
        for (long i = 0; i < t; i++) any |= candidates[i];
        terms[row] = 0.0f;
        memset(dscores, 0, sizeof(float) * (size_t)t);
        if (!any) continue;
        counted++;
        for (long i = 0; i < t; i++) {
            const float s = candidates[i] ? scores[i] : -INFINITY;
            top = s > top ? s : top;
            total += candidates[i] ? mass[i] : 0.0f;
        }
        const float inverse = 1.0f / (total > 1.17549435e-38f ? total : 1.17549435e-38f);
        for (long i = 0; i < t; i++) {
            const float e = exponential(scores[i] - top);
            dscores[i] = candidates[i] ? e : 0.0f;
            sum += dscores[i];
            all += candidates[i] ? mass[i] * inverse : 0.0f;
        }
        const float log_sum = top + logf(sum);
        for (long i = 0; i < t; i++) {
            const float p = candidates[i] ? mass[i] * inverse : 0.0f;
            if (p > 0.0f) term += p * (logf(p) - scores[i] + log_sum);
            dscores[i] = all * (dscores[i] / sum) - p;
        }
        terms[row] = term;
    }
    return counted;
}

/* What all heads together give to the entries, the keys from number `first` on: mass [groups, queries, keys - first]. Scores
 * are overwritten; everything else as in masked_softmax_forward. */
EXPORT void entry_mass(long groups, long queries, long heads, long keys, long first, long masks, int one_sink,
                       float scale, float *restrict scores, const uint8_t *restrict seen, const float *restrict sink,
                       float *restrict mass) {
    const long t = keys - first;
    for (long g = 0; g < groups; g++)
        for (long q = 0; q < queries; q++, mass += t) {
            const uint8_t *mask = seen + (g % masks * queries + q) * keys;
            const float *extra = sink ? sink + (one_sink ? 0 : g) * heads : NULL;
            memset(mass, 0, sizeof(float) * (size_t)t);
            for (long h = 0; h < heads; h++, scores += keys) {
                for (long k = 0; k < keys; k++) scores[k] = mask[k] ? scale * scores[k] : -INFINITY;
                float top = largest(keys, scores), sum = 0.0f;
                if (extra && extra[h] > top) top = extra[h];
                for (long k = 0; k < keys; k++) {
                    const float e = exponential(scores[k] - top);
                    scores[k] = mask[k] ? e : 0.0f;
                    sum += scores[k];
                }
                const float inv = 1.0f / (sum + (extra ? exponential(extra[h] - top) : 0.0f));
                for (long i = 0; i < t; i++) mass[i] += scores[first + i] * inv;
            }
        }
}

#define CHANNELS 64

/* Entries [batch, t, c] from values and gates [batch, t, m, o c], o = 2 with overlap: for each channel the mean of the values
 * of a block's m tokens, weighted by the softmax of gates + ape. With overlap the second c channels are a block's own, the
 * first are for the entry of the block after it, and the first entry has none before. */
typedef struct {
    long t, m, c;
    int overlap;
    const float *values, *gates, *ape;
} Pool;

/* Places of one slot of an entry: in values and gates, and in ape. */
INLINE long slot_at(const Pool *p, long entry, long slot, long *in_ape) {
    const long wide = p->overlap ? 2 * p->c : p->c;
    const int own = !p->overlap || slot >= p->m;
    const long token = slot % p->m, half = p->overlap && own ? p->c : 0;
    *in_ape = token * wide + half;
    return ((own ? entry : entry - 1) * p->m + token) * wide + half;
}

/* Softmax over slots and its mean for `n` channels of an entry from `from` on; `entry` counts over all sequences. */
INLINE void pool(const Pool *p, long entry, long from, long n, float *restrict top, float *restrict inverse,
                 float *restrict mean) {
    const long slots = p->overlap ? 2 * p->m : p->m, first = p->overlap && entry % p->t == 0 ? p->m : 0;
    long in_ape;
    for (long i = 0; i < n; i++) top[i] = -INFINITY, inverse[i] = mean[i] = 0.0f;
    for (long slot = first; slot < slots; slot++) {
        const float *gate = p->gates + slot_at(p, entry, slot, &in_ape) + from, *add = p->ape + in_ape + from;
        for (long i = 0; i < n; i++) top[i] = gate[i] + add[i] > top[i] ? gate[i] + add[i] : top[i];
    }
    for (long slot = first; slot < slots; slot++) {
        const long place = slot_at(p, entry, slot, &in_ape) + from;
        const float *gate = p->gates + place, *value = p->values + place, *add = p->ape + in_ape + from;
        for (long i = 0; i < n; i++) {
            const float e = exponential(gate[i] + add[i] - top[i]);
            inverse[i] += e;
            mean[i] += e * value[i];
        }
    }
    for (long i = 0; i < n; i++) {
        inverse[i] = 1.0f / inverse[i];
        mean[i] *= inverse[i];
    }
}

EXPORT void gated_pool_forward(long batch, long t, long m, long c, int overlap, const float *values,
                               const float *gates, const float *ape, float *entries) {
    const Pool p = {t, m, c, overlap, values, gates, ape};
    float top[CHANNELS], inverse[CHANNELS];
    for (long entry = 0; entry < batch * t; entry++)
        for (long from = 0; from < c; from += CHANNELS)
            pool(&p, entry, from, c - from < CHANNELS ? c - from : CHANNELS, top, inverse, entries + entry * c + from);
}

/* Adds to dape; dvalues and dgates begin as zeros, because nothing pools what the last block gives to the next. */
EXPORT void gated_pool_backward(long batch, long t, long m, long c, int overlap, const float *values,
                                const float *gates, const float *ape, const float *dentries, float *dvalues,
                                float *dgates, float *dape) {
    const Pool p = {t, m, c, overlap, values, gates, ape};
    const long slots = overlap ? 2 * m : m;
    float top[CHANNELS], inverse[CHANNELS], mean[CHANNELS];
    for (long entry = 0; entry < batch * t; entry++)
        for (long from = 0; from < c; from += CHANNELS) {
            const long n = c - from < CHANNELS ? c - from : CHANNELS;
            const float *grad = dentries + entry * c + from;
            pool(&p, entry, from, n, top, inverse, mean);
            for (long slot = overlap && entry % t == 0 ? m : 0; slot < slots; slot++) {
                long in_ape;
                const long place = slot_at(&p, entry, slot, &in_ape) + from;
                const float *gate = gates + place, *value = values + place, *add = ape + in_ape + from;
                float *dvalue = dvalues + place, *dgate = dgates + place, *dadd = dape + in_ape + from;
                for (long i = 0; i < n; i++) {
                    const float w = exponential(gate[i] + add[i] - top[i]) * inverse[i] * grad[i];
                    const float through = w * (value[i] - mean[i]);
                    dvalue[i] = w;
                    dgate[i] = through;
                    dadd[i] += through;
                }
            }
        }
}
