/* Attention around its matrix products: softmax over what is seen, and the keys that blocks of queries read.
 *
 * The same mathematics as components/attention/core.py, which defines it. All tensors are contiguous; numbers are float32,
 * masks one byte.
 */
#include "common.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* In place: weights = softmax over [scale * scores where seen, sink] without the sink's share. scores [groups, queries,
 * heads, keys]; seen [masks, queries, keys], group g has mask g % masks; sink [groups or 1, heads] or NULL; share [groups,
 * queries, heads] is the sink's. A query sees at least one key. */
EXPORT void masked_softmax_forward(long groups, long queries, long heads, long keys, long masks, int one_sink,
                                   float scale, float *restrict scores, const uint8_t *restrict seen,
                                   const float *restrict sink, float *restrict share) {
    for (long g = 0; g < groups; g++)
        for (long q = 0; q < queries; q++) {
            const uint8_t *mask = seen + (g % masks * queries + q) * keys;
            const float *extra = sink ? sink + (one_sink ? 0 : g) * heads : NULL;
            for (long h = 0; h < heads; h++, scores += keys) {
                for (long k = 0; k < keys; k++) scores[k] = mask[k] ? scale * scores[k] : -INFINITY;
                float top = largest(keys, scores);
                if (extra && extra[h] > top) top = extra[h];
                float sum = 0.0f;
                for (long k = 0; k < keys; k++) {
                    const float e = exponential(scores[k] - top);
                    scores[k] = mask[k] ? e : 0.0f;
                    sum += scores[k];
                }
                const float own = extra ? exponential(extra[h] - top) : 0.0f;
                const float inv = 1.0f / (sum + own);
                for (long k = 0; k < keys; k++) scores[k] *= inv;
                if (extra) *share++ = own * inv;
            }
        }
}

/* In place: dscores = scale w (dw - sum w dw); dsink = - sum over queries of share * sum w dw. */
EXPORT void masked_softmax_backward(long groups, long queries, long heads, long keys, int one_sink, float scale,
                                    const float *restrict weights, const float *restrict share, float *restrict dw,
                                    float *restrict dsink) {
    for (long g = 0; g < groups; g++)
        for (long q = 0; q < queries; q++)
            for (long h = 0; h < heads; h++, weights += keys, dw += keys) {
                float dot = 0.0f;
                for (long k = 0; k < keys; k++) dot += weights[k] * dw[k];
                for (long k = 0; k < keys; k++) dw[k] = scale * weights[k] * (dw[k] - dot);
                if (share) dsink[(one_sink ? 0 : g) * heads + h] -= *share++ * dot;
            }
}

/* Tokens [first, first + read) of a sequence, as far as it has them: how many there are, from which one, and after how many
 * that there are not. */
typedef struct {
    long begin, count, before;
} Span;

INLINE Span span(long first, long read, long length) {
    const long begin = first > 0 ? first : 0, end = first + read < length ? first + read : length;
    const Span s = {begin, end > begin ? end - begin : 0, begin - first};
    return s;
}

/* keys [batch, count, (back + 1) size + t, c]: what each block of `size` queries reads: tokens of its own block and of
 * `back` before it, zeros where there are none, then all t entries. kv [batch, length, c]; entries [batch, t, c]. */
EXPORT void block_keys_forward(long batch, long length, long count, long size, long back, long t, long c,
                               const float *restrict kv, const float *restrict entries, float *restrict keys) {
    const long read = (back + 1) * size;
    for (long b = 0; b < batch; b++, kv += length * c, entries += t * c)
        for (long n = 0; n < count; n++, keys += (read + t) * c) {
            const Span s = span((n - back) * size, read, length);
            memset(keys, 0, sizeof(float) * (size_t)(read * c));
            if (s.count) memcpy(keys + s.before * c, kv + s.begin * c, sizeof(float) * (size_t)(s.count * c));
            if (t) memcpy(keys + read * c, entries, sizeof(float) * (size_t)(t * c));
        }
}

/* Adds to dkv and dentries, which begin as zeros. */
EXPORT void block_keys_backward(long batch, long length, long count, long size, long back, long t, long c,
                                const float *restrict dkeys, float *restrict dkv, float *restrict dentries) {
    const long read = (back + 1) * size;
    for (long b = 0; b < batch; b++, dkv += length * c, dentries += t * c)
        for (long n = 0; n < count; n++, dkeys += (read + t) * c) {
            const Span s = span((n - back) * size, read, length);
            const float *tokens = dkeys + s.before * c, *own = dkeys + read * c;
            float *to = dkv + s.begin * c;
            for (long i = 0; i < s.count * c; i++) to[i] += tokens[i];
            for (long i = 0; i < t * c; i++) dentries[i] += own[i];
        }
}

/* mask [batch, count, size, (back + 1) size + t]: which of these keys a query sees: the last `window` tokens, itself
 * included, and entries by seen [batch, length, t]. Queries after the end see their window alone. */
EXPORT void block_mask(long batch, long length, long count, long size, long back, long t, long window,
                       const uint8_t *restrict seen, uint8_t *restrict mask) {
    const long read = (back + 1) * size;
    for (long b = 0; b < batch; b++)
        for (long query = 0; query < count * size; query++, mask += read + t) {
            const long first = (query / size - back) * size;
            long begin = query - window + 1;
            begin = begin > 0 ? begin : 0;
            begin = begin > first ? begin - first : 0;
            memset(mask, 0, (size_t)(read + t));
            memset(mask + begin, 1, (size_t)(query - first + 1 - begin));
            if (t && query < length) memcpy(mask + read, seen + (b * length + query) * t, (size_t)t);
        }
}
