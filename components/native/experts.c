/* Sorting of token-expert pairs by expert, and rows to and from that order.
 *
 * The same as components/ffn/moe.py, which defines it. All tensors are contiguous; numbers are float32, indices int64.
 */
#include "common.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Pairs by expert, in their own order within one: a counting sort. Pairs of no expert (number `experts`) are left out. */
EXPORT void experts_sort(long pairs, int experts, const int64_t *restrict chosen, int64_t *restrict sizes,
                         int64_t *restrict order) {
    int64_t begin = 0;
    memset(sizes, 0, sizeof(int64_t) * (size_t)experts);
    for (long i = 0; i < pairs; i++)
        if (chosen[i] < experts) sizes[chosen[i]]++;
    for (int e = 0; e < experts; e++) { /* sizes hold each expert's next place while its pairs are placed */
        const int64_t size = sizes[e];
        sizes[e] = begin;
        begin += size;
    }
    for (long i = 0; i < pairs; i++)
        if (chosen[i] < experts) order[sizes[chosen[i]]++] = i;
    for (int e = experts - 1; e > 0; e--) sizes[e] -= sizes[e - 1];
}

/* y[i] = x[order[i] / each], rows of d. */
EXPORT void rows_gather(long rows, long d, long each, const int64_t *restrict order, const float *restrict x,
                        float *restrict y) {
    for (long i = 0; i < rows; i++) memcpy(y + i * d, x + order[i] / each * d, sizeof(float) * (size_t)d);
}

/* y[order[i] / each] += x[i], rows of d. */
EXPORT void rows_add(long rows, long d, long each, const int64_t *restrict order, const float *restrict x,
                     float *restrict y) {
    for (long i = 0; i < rows; i++) {
        const float *from = x + i * d;
        float *to = y + order[i] / each * d;
        for (long j = 0; j < d; j++) to[j] += from[j];
    }
}
