/* Norm, rotation, gate and loss: one pass over memory each, where PyTorch takes many.
 *
 * The same mathematics as components/functional.py, position/rotary.py, ffn/activation.py and PyTorch's cross entropy, which
 * define it. All tensors are float32 and contiguous; no threads, no state.
 */
#include "common.h"

#include <stddef.h>
#include <stdint.h>

/* y = weight * x / rms(x); weight may be NULL. */
EXPORT void rms_norm_forward(long rows, int d, float eps, const float *restrict x, const float *restrict weight,
                             float *restrict y, float *restrict inverse) {
    for (long row = 0; row < rows; row++, x += d, y += d) {
        float sum = 0.0f;
        for (int i = 0; i < d; i++) sum += x[i] * x[i];
        const float inv = 1.0f / sqrtf(sum / (float)d + eps);
        inverse[row] = inv;
        if (weight) for (int i = 0; i < d; i++) y[i] = weight[i] * x[i] * inv;
        else for (int i = 0; i < d; i++) y[i] = x[i] * inv;
    }
}

EXPORT void rms_norm_backward(long rows, int d, const float *restrict x, const float *restrict weight,
                              const float *restrict inverse, const float *restrict dy, float *restrict dx,
                              float *restrict dweight) {
    for (long row = 0; row < rows; row++, x += d, dy += d, dx += d) {
        const float inv = inverse[row];
        float dot = 0.0f;
        if (weight) {
            for (int i = 0; i < d; i++) {
                dot += dy[i] * weight[i] * x[i];
                dweight[i] += dy[i] * x[i] * inv;
            }
        } else for (int i = 0; i < d; i++) dot += dy[i] * x[i];
        const float back = dot * inv * inv * inv / (float)d;
        if (weight) for (int i = 0; i < d; i++) dx[i] = dy[i] * weight[i] * inv - back * x[i];
        else for (int i = 0; i < d; i++) dx[i] = dy[i] * inv - back * x[i];
    }
}

/* Rows [outer, length, inner] of c channels; pairs of the last 2 * pairs channels turn by the angle of their position:
 * turns [length, pairs, 2] holds cosine and sine. A negative direction turns back, which is also the gradient. */
EXPORT void rotate(long outer, long length, long inner, int c, int pairs, float direction, const float *restrict x,
                   const float *restrict turns, float *restrict y) {
    const int still = c - 2 * pairs;
    for (long o = 0; o < outer; o++)
        for (long s = 0; s < length; s++) {
            const float *turn = turns + s * pairs * 2;
            for (long k = 0; k < inner; k++, x += c, y += c) {
                for (int i = 0; i < still; i++) y[i] = x[i];
                const float *from = x + still;
                float *to = y + still;
                for (int p = 0; p < pairs; p++) {
                    const float cosine = turn[2 * p], sine = direction * turn[2 * p + 1];
                    to[2 * p] = from[2 * p] * cosine - from[2 * p + 1] * sine;
                    to[2 * p + 1] = from[2 * p] * sine + from[2 * p + 1] * cosine;
                }
            }
        }
}

/* h = weight * silu(min(gate, limit)) * clip(up, -limit, limit); gate_up [rows, 2f], gate first; one weight per row, or
 * NULL for ones. */
EXPORT void swiglu_forward(long rows, int f, float limit, const float *restrict gate_up, const float *restrict weight,
                           float *restrict h) {
    for (long row = 0; row < rows; row++, gate_up += 2 * f, h += f) {
        const float w = weight ? weight[row] : 1.0f;
        for (int i = 0; i < f; i++) {
            float g = gate_up[i], u = gate_up[f + i];
            g = g > limit ? limit : g;
            u = u > limit ? limit : u;
            u = u < -limit ? -limit : u;
            h[i] = w * (g * sigmoid(g) * u);
        }
    }
}

EXPORT void swiglu_backward(long rows, int f, float limit, const float *restrict gate_up, const float *restrict weight,
                            const float *restrict dh, float *restrict dgate_up, float *restrict dweight) {
    for (long row = 0; row < rows; row++, gate_up += 2 * f, dh += f, dgate_up += 2 * f) {
        const float *gate = gate_up, *up = gate_up + f;
        float *dgate = dgate_up, *dup = dgate_up + f;
        const float w = weight ? weight[row] : 1.0f;
        float dot = 0.0f;
        for (int i = 0; i < f; i++) { /* two loops over disjoint outputs, so that each is vectorised */
            const float g = gate[i] > limit ? limit : gate[i];
            float u = up[i] > limit ? limit : up[i];
            u = u < -limit ? -limit : u;
            const float s = sigmoid(g), slope = w * dh[i] * u * s * (1.0f + g * (1.0f - s));
            dgate[i] = gate[i] > limit ? 0.0f : slope;
            dot += dh[i] * (g * s * u);
        }
        for (int i = 0; i < f; i++) {
            const float g = gate[i] > limit ? limit : gate[i];
            const float slope = w * dh[i] * g * sigmoid(g);
            dup[i] = (up[i] > limit) | (up[i] < -limit) ? 0.0f : slope;
        }
        if (dweight) dweight[row] = dot;
    }
}

/* Per-row loss ln(sum exp) - logit of the label, and the logarithm of the sum; labels below 0 are left out. */
EXPORT void cross_entropy_forward(long rows, long v, const float *restrict logits, const int64_t *restrict labels,
                                  float *restrict loss, float *restrict total) {
    for (long row = 0; row < rows; row++, logits += v) {
        const float top = largest(v, logits);
        float sum = 0.0f;
        for (long i = 0; i < v; i++) sum += exponential(logits[i] - top);
        total[row] = top + logf(sum);
        loss[row] = labels[row] < 0 ? 0.0f : total[row] - logits[labels[row]];
    }
}

/* dlogits = scale * (softmax - one at the label). */
EXPORT void cross_entropy_backward(long rows, long v, float scale, const float *restrict logits,
                                   const int64_t *restrict labels, const float *restrict total,
                                   float *restrict dlogits) {
    for (long row = 0; row < rows; row++, logits += v, dlogits += v) {
        const float factor = labels[row] < 0 ? 0.0f : scale, sum = total[row];
        for (long i = 0; i < v; i++) dlogits[i] = factor * exponential(logits[i] - sum);
        if (labels[row] >= 0) dlogits[labels[row]] -= scale;
    }
}
