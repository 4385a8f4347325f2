/* What all kernels share: how they are exported, and an exponential that compilers turn into vector instructions. */
#include <math.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define EXPORT __attribute__((visibility("default"), target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define INLINE static inline __attribute__((always_inline))

/* exp by 2^k * polynomial, within 2 ulp; not a number stays one. */
INLINE float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float k = rintf(x * 1.44269504088896341f);
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int i; float f; } two;
    two.i = ((int)k + 127) << 23;
    return p * two.f;
}

/* The largest of n values; numbers only. Lanes, because compilers keep the order of comparisons. */
INLINE float largest(long n, const float *x) {
    float lane[16];
    for (int l = 0; l < 16; l++) lane[l] = -INFINITY;
    long i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (; i < n; i++) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
    float top = lane[0];
    for (int l = 1; l < 16; l++) top = lane[l] > top ? lane[l] : top;
    return top;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
