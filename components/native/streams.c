/* Manifold-constrained hyper-connections on the CPU: reading, balancing and writing of residual streams, fused.
 *
 * The same mathematics as components/residual/{mhc,sinkhorn,streams}.py, which define it. One pass over a token's
 * streams replaces some forty small tensor operations per site. Tokens are taken LANES at a time for everything that
 * has no channel axis, so that those loops become vector instructions. No threads, no state, no allocation of tensors.
 *
 * Layout, all float32 and contiguous: m tokens, n streams, d channels, o = (2 + n) n logits.
 *   x [m, n, d]   raw [m, o]   base [o]   scale [3]   u [m, d]   mix [m, n, n + 1]: row k is new stream k; its columns
 *   are the old streams j (the balanced C[j, k]) and, last, the branch (post k).
 */
#include "common.h"

#include <stdlib.h>

#define LANES 16
#define MAX_STREAMS 8

typedef struct {
    int n, iterations;
    float hc_eps;
    const float *base, *scale;
} Maps;

/* The maps of LANES tokens and what their backward needs. */
typedef struct {
    float z[(2 + MAX_STREAMS) * MAX_STREAMS][LANES];
    float pre[MAX_STREAMS][LANES], post[MAX_STREAMS][LANES]; /* sigmoids, before eps and factor 2 */
    float soft[MAX_STREAMS][MAX_STREAMS][LANES];             /* softmax over outputs */
    float comb[MAX_STREAMS][MAX_STREAMS][LANES];
} Lanes;

/* Sums that one balancing step divides by, and their reciprocals. */
typedef struct {
    float sum[MAX_STREAMS][LANES], inverse[MAX_STREAMS][LANES];
} Divisors;

INLINE void maps(const Maps *m, int n, Lanes *t, Divisors *divisors) {
    for (int k = 0; k < n; k++)
        for (int l = 0; l < LANES; l++) {
            t->pre[k][l] = sigmoid(m->scale[0] * t->z[k][l] + m->base[k]);
            t->post[k][l] = sigmoid(m->scale[1] * t->z[n + k][l] + m->base[n + k]);
        }
    for (int j = 0; j < n; j++) {
        float top[LANES], sum[LANES];
        for (int k = 0; k < n; k++)
            for (int l = 0; l < LANES; l++) {
                int at = 2 * n + j * n + k;
                float logit = m->scale[2] * t->z[at][l] + m->base[at];
                t->soft[j][k][l] = logit;
                top[l] = k == 0 || logit > top[l] ? logit : top[l];
            }
        for (int l = 0; l < LANES; l++) sum[l] = 0.0f;
        for (int k = 0; k < n; k++)
            for (int l = 0; l < LANES; l++) {
                float e = exponential(t->soft[j][k][l] - top[l]);
                t->soft[j][k][l] = e;
                sum[l] += e;
            }
        for (int k = 0; k < n; k++)
            for (int l = 0; l < LANES; l++) {
                t->soft[j][k][l] /= sum[l];
                t->comb[j][k][l] = t->soft[j][k][l] + m->hc_eps;
            }
    }
    for (int step = 0; step < 2 * m->iterations - 1; step++)
        for (int a = 0; a < n; a++) { /* a: output of even steps, input of odd ones */
            float sum[LANES];
            for (int l = 0; l < LANES; l++) sum[l] = m->hc_eps;
            for (int b = 0; b < n; b++)
                for (int l = 0; l < LANES; l++) sum[l] += step % 2 ? t->comb[a][b][l] : t->comb[b][a][l];
            float inverse[LANES];
            for (int l = 0; l < LANES; l++) inverse[l] = 1.0f / sum[l];
            for (int b = 0; b < n; b++)
                for (int l = 0; l < LANES; l++) {
                    if (step % 2) t->comb[a][b][l] *= inverse[l];
                    else t->comb[b][a][l] *= inverse[l];
                }
            if (divisors)
                for (int l = 0; l < LANES; l++) {
                    divisors[step].sum[a][l] = sum[l];
                    divisors[step].inverse[a][l] = inverse[l];
                }
        }
}

INLINE void read_forward(const Maps *m, int n, long tokens, int d, float norm_eps, const float *x, const float *raw,
                         float *u, float *mix, float *inverse) {
    const int o = (2 + n) * n;
    for (long start = 0; start < tokens; start += LANES) {
        const int live = tokens - start < LANES ? (int)(tokens - start) : LANES;
        Lanes t;
        for (int l = 0; l < LANES; l++) {
            const long token = start + (l < live ? l : 0);
            const float *row = x + token * n * d;
            float sum = 0.0f;
            for (int i = 0; i < n * d; i++) sum += row[i] * row[i];
            const float inv = 1.0f / sqrtf(sum / (float)(n * d) + norm_eps);
            if (l < live) inverse[token] = inv;
            for (int i = 0; i < o; i++) t.z[i][l] = raw[token * o + i] * inv;
        }
        maps(m, n, &t, NULL);
        for (int l = 0; l < live; l++) {
            const long token = start + l;
            const float *row = x + token * n * d;
            float *to = u + token * d;
            for (int j = 0; j < n; j++) {
                const float w = t.pre[j][l] + m->hc_eps;
                const float *stream = row + j * d;
                if (j == 0) for (int i = 0; i < d; i++) to[i] = w * stream[i];
                else for (int i = 0; i < d; i++) to[i] += w * stream[i];
            }
            float *out = mix + token * n * (n + 1);
            for (int k = 0; k < n; k++) {
                for (int j = 0; j < n; j++) out[k * (n + 1) + j] = t.comb[j][k][l];
                out[k * (n + 1) + n] = 2.0f * t.post[k][l];
            }
        }
    }
}

INLINE void read_backward(const Maps *m, int n, long tokens, int d, const float *x, const float *raw,
                          const float *inverse, const float *du, const float *dmix, float *dx, float *draw,
                          float *dbase, float *dscale, Divisors *divisors) {
    const int o = (2 + n) * n;
    for (long start = 0; start < tokens; start += LANES) {
        const int live = tokens - start < LANES ? (int)(tokens - start) : LANES;
        Lanes t;
        float dz[(2 + MAX_STREAMS) * MAX_STREAMS][LANES];
        float g[MAX_STREAMS][MAX_STREAMS][LANES];
        for (int l = 0; l < LANES; l++) {
            const long token = start + (l < live ? l : 0);
            for (int i = 0; i < o; i++) t.z[i][l] = raw[token * o + i] * inverse[token];
            const float *row = x + token * n * d, *grad = du + token * d, *gm = dmix + token * n * (n + 1);
            for (int j = 0; j < n; j++) {
                float dot = 0.0f;
                for (int i = 0; i < d; i++) dot += grad[i] * row[j * d + i];
                dz[j][l] = dot;
                dz[n + j][l] = 2.0f * gm[j * (n + 1) + n];
                for (int k = 0; k < n; k++) g[j][k][l] = gm[k * (n + 1) + j];
            }
        }
        maps(m, n, &t, divisors);
        for (int k = 0; k < n; k++)
            for (int l = 0; l < LANES; l++) {
                dz[k][l] *= t.pre[k][l] * (1.0f - t.pre[k][l]);
                dz[n + k][l] *= t.post[k][l] * (1.0f - t.post[k][l]);
            }
        for (int step = 2 * m->iterations - 2; step >= 0; step--)
            for (int a = 0; a < n; a++) { /* y = x / (sum x + eps), so dx = (dy - sum(dy y)) / (sum x + eps) */
                float dot[LANES];
                for (int l = 0; l < LANES; l++) dot[l] = 0.0f;
                for (int b = 0; b < n; b++)
                    for (int l = 0; l < LANES; l++)
                        dot[l] += step % 2 ? g[a][b][l] * t.comb[a][b][l] : g[b][a][l] * t.comb[b][a][l];
                for (int b = 0; b < n; b++)
                    for (int l = 0; l < LANES; l++) {
                        if (step % 2) {
                            g[a][b][l] = (g[a][b][l] - dot[l]) * divisors[step].inverse[a][l];
                            t.comb[a][b][l] *= divisors[step].sum[a][l];
                        } else {
                            g[b][a][l] = (g[b][a][l] - dot[l]) * divisors[step].inverse[a][l];
                            t.comb[b][a][l] *= divisors[step].sum[a][l];
                        }
                    }
            }
        for (int j = 0; j < n; j++) { /* softmax */
            float dot[LANES];
            for (int l = 0; l < LANES; l++) dot[l] = 0.0f;
            for (int k = 0; k < n; k++)
                for (int l = 0; l < LANES; l++) dot[l] += g[j][k][l] * t.soft[j][k][l];
            for (int k = 0; k < n; k++)
                for (int l = 0; l < LANES; l++)
                    dz[2 * n + j * n + k][l] = t.soft[j][k][l] * (g[j][k][l] - dot[l]);
        }
        for (int i = 0; i < o; i++) { /* dz holds the gradient of scale * z + base until here */
            const int gate = i < n ? 0 : i < 2 * n ? 1 : 2;
            float db = 0.0f, ds = 0.0f;
            for (int l = 0; l < live; l++) {
                db += dz[i][l];
                ds += dz[i][l] * t.z[i][l];
            }
            dbase[i] += db;
            dscale[gate] += ds;
            for (int l = 0; l < LANES; l++) dz[i][l] *= m->scale[gate];
        }
        for (int l = 0; l < live; l++) {
            const long token = start + l;
            const float inv = inverse[token];
            float dinv = 0.0f;
            for (int i = 0; i < o; i++) {
                dinv += dz[i][l] * raw[token * o + i];
                draw[token * o + i] = dz[i][l] * inv;
            }
            const float through_norm = -dinv * inv * inv * inv / (float)(n * d);
            const float *row = x + token * n * d, *grad = du + token * d;
            float *to = dx + token * n * d;
            for (int j = 0; j < n; j++) {
                const float w = t.pre[j][l] + m->hc_eps;
                for (int i = 0; i < d; i++) to[j * d + i] = w * grad[i] + through_norm * row[j * d + i];
            }
        }
    }
}

INLINE void write_forward(int n, long tokens, int d, const float *restrict x, const float *restrict y,
                          const float *restrict mix, float *restrict out) {
    for (long token = 0; token < tokens; token++) {
        const float *row = x + token * n * d, *branch = y + token * d, *w = mix + token * n * (n + 1);
        float *to = out + token * n * d;
        for (int i = 0; i < d; i++)
            for (int k = 0; k < n; k++) {
                float sum = w[k * (n + 1) + n] * branch[i];
                for (int j = 0; j < n; j++) sum += w[k * (n + 1) + j] * row[j * d + i];
                to[k * d + i] = sum;
            }
    }
}

INLINE void write_backward(int n, long tokens, int d, const float *x, const float *y, const float *mix,
                           const float *dout, float *dx, float *dy, float *dmix) {
    for (long token = 0; token < tokens; token++) {
        const float *row = x + token * n * d, *branch = y + token * d, *w = mix + token * n * (n + 1);
        const float *grad = dout + token * n * d;
        float *to = dx + token * n * d, *ty = dy + token * d, *tm = dmix + token * n * (n + 1);
        for (int j = 0; j <= n; j++) {
            float *target = j < n ? to + j * d : ty;
            const float *source = j < n ? row + j * d : branch;
            for (int k = 0; k < n; k++) {
                const float *g = grad + k * d;
                const float weight = w[k * (n + 1) + j];
                float dot = 0.0f;
                if (k == 0) for (int i = 0; i < d; i++) { target[i] = weight * g[i]; dot += g[i] * source[i]; }
                else for (int i = 0; i < d; i++) { target[i] += weight * g[i]; dot += g[i] * source[i]; }
                tm[k * (n + 1) + j] = dot;
            }
        }
    }
}

/* A constant number of streams lets the compiler unroll; four is DeepSeek-V4's. */
#define FOR_STREAMS(call) \
    switch (n) { \
    case 1: { enum { N = 1 }; call; break; } \
    case 2: { enum { N = 2 }; call; break; } \
    case 4: { enum { N = 4 }; call; break; } \
    default: { const int N = n; call; } \
    }

EXPORT void streams_read_forward(int n, long tokens, int d, int iterations, float hc_eps, float norm_eps,
                                 const float *x, const float *raw, const float *base, const float *scale, float *u,
                                 float *mix, float *inverse) {
    const Maps m = {n, iterations, hc_eps, base, scale};
    FOR_STREAMS(read_forward(&m, N, tokens, d, norm_eps, x, raw, u, mix, inverse))
}

/* 0, or -1 where memory for the divisors is not to be had. */
EXPORT int streams_read_backward(int n, long tokens, int d, int iterations, float hc_eps, const float *x,
                                 const float *raw, const float *base, const float *scale, const float *inverse,
                                 const float *du, const float *dmix, float *dx, float *draw, float *dbase,
                                 float *dscale) {
    const Maps m = {n, iterations, hc_eps, base, scale};
    Divisors *divisors = malloc(sizeof(Divisors) * (size_t)(2 * iterations));
    if (!divisors) return -1;
    FOR_STREAMS(read_backward(&m, N, tokens, d, x, raw, inverse, du, dmix, dx, draw, dbase, dscale, divisors))
    free(divisors);
    return 0;
}

EXPORT void streams_write_forward(int n, long tokens, int d, const float *x, const float *y, const float *mix,
                                  float *out) {
    FOR_STREAMS(write_forward(N, tokens, d, x, y, mix, out))
}

EXPORT void streams_write_backward(int n, long tokens, int d, const float *x, const float *y, const float *mix,
                                   const float *dout, float *dx, float *dy, float *dmix) {
    FOR_STREAMS(write_backward(N, tokens, d, x, y, mix, dout, dx, dy, dmix))
}
