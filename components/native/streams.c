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

#include <stdint.h>
#include <stdlib.h>

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wpsabi" /* wide vectors are never passed: every function that takes one is inlined */
#endif

#define LANES 16
#define MAX_STREAMS 8

/* One value of each of LANES tokens. Left to itself the compiler keeps sums over streams in scalar registers. */
typedef float Lane __attribute__((vector_size(4 * LANES), may_alias));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* anywhere in memory */

typedef struct {
    int n, iterations;
    float hc_eps;
    const float *base, *scale;
} Maps;

/* The maps of LANES tokens and what their backward needs. */
typedef struct {
    Lane z[(2 + MAX_STREAMS) * MAX_STREAMS];
    Lane pre[MAX_STREAMS], post[MAX_STREAMS]; /* sigmoids, before eps and factor 2 */
    Lane soft[MAX_STREAMS][MAX_STREAMS];      /* softmax over outputs */
    Lane comb[MAX_STREAMS][MAX_STREAMS];
} Lanes;

/* Sums that one balancing step divides by, and their reciprocals. */
typedef struct {
    Lane sum[MAX_STREAMS], inverse[MAX_STREAMS];
} Divisors;

typedef union {
    Lane all;
    float each[LANES];
} Values;

INLINE Lane exponentials(Lane x) {
    Values v = {x};
    for (int l = 0; l < LANES; l++) v.each[l] = exponential(v.each[l]);
    return v.all;
}

INLINE Lane sigmoids(Lane x) { return 1.0f / (1.0f + exponentials(-x)); }

INLINE Lane larger(Lane x, Lane y) {
    Values a = {x}, b = {y};
    for (int l = 0; l < LANES; l++) a.each[l] = a.each[l] > b.each[l] ? a.each[l] : b.each[l];
    return a.all;
}

/* What is summed over with number b for row a, or for column a. */
INLINE Lane *at(Lane (*m)[MAX_STREAMS], int rows, int a, int b) { return rows ? &m[a][b] : &m[b][a]; }

/* Divide by the sums of columns, or of rows. */
INLINE void divide(int n, int rows, float eps, Lane (*m)[MAX_STREAMS], Divisors *kept) {
    for (int a = 0; a < n; a++) {
        Lane sum = *at(m, rows, a, 0) + eps;
        for (int b = 1; b < n; b++) sum += *at(m, rows, a, b);
        const Lane inverse = 1.0f / sum;
        for (int b = 0; b < n; b++) *at(m, rows, a, b) *= inverse;
        if (kept) {
            kept->sum[a] = sum;
            kept->inverse[a] = inverse;
        }
    }
}

/* Gradient before a division from that after it: y = x / (sum x + eps), so dx = (dy - sum(dy y)) / (sum x + eps). */
INLINE void undivide(int n, int rows, const Divisors *kept, Lane (*m)[MAX_STREAMS], Lane (*g)[MAX_STREAMS]) {
    for (int a = 0; a < n; a++) {
        Lane dot = *at(g, rows, a, 0) * *at(m, rows, a, 0);
        for (int b = 1; b < n; b++) dot += *at(g, rows, a, b) * *at(m, rows, a, b);
        for (int b = 0; b < n; b++) {
            Lane *grad = at(g, rows, a, b);
            *grad = (*grad - dot) * kept->inverse[a];
            *at(m, rows, a, b) *= kept->sum[a];
        }
    }
}

INLINE void maps(const Maps *m, int n, Lanes *t, Divisors *divisors) {
    for (int k = 0; k < n; k++) {
        t->pre[k] = sigmoids(m->scale[0] * t->z[k] + m->base[k]);
        t->post[k] = sigmoids(m->scale[1] * t->z[n + k] + m->base[n + k]);
    }
    Lane comb[MAX_STREAMS][MAX_STREAMS]; /* local, to be kept in registers */
    for (int j = 0; j < n; j++) {
        const Lane *z = t->z + 2 * n + j * n;
        const float *base = m->base + 2 * n + j * n;
        Lane logit[MAX_STREAMS], top, sum;
        for (int k = 0; k < n; k++) {
            logit[k] = m->scale[2] * z[k] + base[k];
            if (k == 0) top = logit[k];
            else top = larger(logit[k], top);
        }
        for (int k = 0; k < n; k++) {
            logit[k] = exponentials(logit[k] - top);
            if (k == 0) sum = logit[k];
            else sum += logit[k];
        }
        for (int k = 0; k < n; k++) {
            t->soft[j][k] = logit[k] / sum;
            comb[j][k] = t->soft[j][k] + m->hc_eps;
        }
    }
    divide(n, 0, m->hc_eps, comb, divisors);
    for (int i = 1; i < m->iterations; i++) {
        divide(n, 1, m->hc_eps, comb, divisors ? divisors + 2 * i - 1 : NULL);
        divide(n, 0, m->hc_eps, comb, divisors ? divisors + 2 * i : NULL);
    }
    for (int j = 0; j < n; j++)
        for (int k = 0; k < n; k++) t->comb[j][k] = comb[j][k];
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
            float w[MAX_STREAMS];
            for (int j = 0; j < n; j++) w[j] = t.pre[j][l] + m->hc_eps;
            for (int i = 0; i < d; i++) {
                float sum = w[0] * row[i];
                for (int j = 1; j < n; j++) sum += w[j] * row[j * d + i];
                to[i] = sum;
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
        Lane dz[(2 + MAX_STREAMS) * MAX_STREAMS];
        Lane g[MAX_STREAMS][MAX_STREAMS];
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
        for (int k = 0; k < n; k++) {
            dz[k] *= t.pre[k] * (1.0f - t.pre[k]);
            dz[n + k] *= t.post[k] * (1.0f - t.post[k]);
        }
        Lane comb[MAX_STREAMS][MAX_STREAMS], grad[MAX_STREAMS][MAX_STREAMS]; /* local, as above */
        for (int j = 0; j < n; j++)
            for (int k = 0; k < n; k++) {
                comb[j][k] = t.comb[j][k];
                grad[j][k] = g[j][k];
            }
        for (int i = m->iterations - 1; i > 0; i--) {
            undivide(n, 0, divisors + 2 * i, comb, grad);
            undivide(n, 1, divisors + 2 * i - 1, comb, grad);
        }
        undivide(n, 0, divisors, comb, grad);
        for (int j = 0; j < n; j++) { /* softmax */
            Lane dot = grad[j][0] * t.soft[j][0];
            for (int k = 1; k < n; k++) dot += grad[j][k] * t.soft[j][k];
            for (int k = 0; k < n; k++) dz[2 * n + j * n + k] = t.soft[j][k] * (grad[j][k] - dot);
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
            dz[i] *= m->scale[gate];
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

INLINE float total(Lane x) {
    Values v = {x};
    float sum = 0.0f;
    for (int l = 0; l < LANES; l++) sum += v.each[l];
    return sum;
}

/* All dot products of a token run along its channels together, so that each of them is read once. */
INLINE void write_backward(int n, long tokens, int d, const float *x, const float *y, const float *mix,
                           const float *dout, float *dx, float *dy, float *dmix) {
    for (long token = 0; token < tokens; token++) {
        const float *row = x + token * n * d, *branch = y + token * d, *w = mix + token * n * (n + 1);
        const float *grad = dout + token * n * d;
        float *to = dx + token * n * d, *ty = dy + token * d, *tm = dmix + token * n * (n + 1);
        Lane dots[MAX_STREAMS][MAX_STREAMS + 1];
        for (int k = 0; k < n; k++)
            for (int j = 0; j <= n; j++) dots[k][j] = (Lane){0};
        int i = 0;
        for (; i + LANES <= d; i += LANES)
            for (int j = 0; j <= n; j++) {
                const Lane source = *(const Loose *)((j < n ? row + j * d : branch) + i);
                Lane sum = {0};
                for (int k = 0; k < n; k++) {
                    const Lane g = *(const Loose *)(grad + k * d + i);
                    sum += w[k * (n + 1) + j] * g;
                    dots[k][j] += g * source;
                }
                *(Loose *)((j < n ? to + j * d : ty) + i) = sum;
            }
        for (int k = 0; k < n; k++)
            for (int j = 0; j <= n; j++) tm[k * (n + 1) + j] = total(dots[k][j]);
        for (; i < d; i++)
            for (int j = 0; j <= n; j++) {
                const float source = j < n ? row[j * d + i] : branch[i];
                float sum = 0.0f;
                for (int k = 0; k < n; k++) {
                    sum += w[k * (n + 1) + j] * grad[k * d + i];
                    tm[k * (n + 1) + j] += grad[k * d + i] * source;
                }
                *(j < n ? to + j * d + i : ty + i) = sum;
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
    void *memory = malloc(sizeof(Divisors) * (size_t)(2 * iterations) + sizeof(Lane));
    if (!memory) return -1;
    Divisors *divisors = (Divisors *)(((uintptr_t)memory + sizeof(Lane) - 1) / sizeof(Lane) * sizeof(Lane));
    FOR_STREAMS(read_backward(&m, N, tokens, d, x, raw, inverse, du, dmix, dx, draw, dbase, dscale, divisors))
    free(memory);
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
