/* Clipping of many gradients by the norm of all of them together. Float32, each contiguous. */
#include "common.h"

#include <stddef.h>
#include <stdint.h>

/* Scales every tensor by limit / norm where the norm of all is above the limit. */
EXPORT void clip_norm(long count, float limit, float *const *tensors, const int64_t *sizes) {
    double total = 0.0;
    for (long t = 0; t < count; t++)
        for (int64_t begin = 0; begin < sizes[t]; begin += 4096) { /* short sums lose no digits */
            const int64_t end = begin + 4096 < sizes[t] ? begin + 4096 : sizes[t];
            const float *x = tensors[t];
            float sum = 0.0f;
            for (int64_t i = begin; i < end; i++) sum += x[i] * x[i];
            total += (double)sum;
        }
    const float factor = limit / ((float)sqrt(total) + 1e-6f);
    if (factor >= 1.0f) return;
    for (long t = 0; t < count; t++)
        for (int64_t i = 0; i < sizes[t]; i++) tensors[t][i] *= factor; /* also by what is no number */
}
