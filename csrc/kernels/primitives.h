/* What every CPU kernel is built from.
 *
 * Each kernels/<op>.c is compiled once per ISA level with REAL float and once, for the lowest level, with REAL
 * double: LIGER_ISA is f_v2, f_v3, f_v4 or d_v2. A kernel is named LIGER_KERNEL(op) in the file and op_f_v3 and
 * so on in the object. LIGER_CPU_ENTRY emits the public function, in the base unit alone, which picks the level
 * of the machine, and `double` for fp64 tensors, which are for checking gradients and have no need of speed. All
 * arithmetic is in `real`; a row passes through small `real` buffers, so that one body serves every dtype. */
#ifndef LIGER_PRIMITIVES_H
#define LIGER_PRIMITIVES_H
#include "../liger.h"
#include <math.h>
#include <stddef.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
#ifndef LIGER_BASE_UNIT
#define LIGER_BASE_UNIT 0
#endif
#ifndef LIGER_LEVELS
#define LIGER_LEVELS 2
#endif
#define LIGER_LOWEST_LEVEL 2
typedef REAL real;

#define LIGER_CAT_(a, b) a##_##b
#define LIGER_CAT(a, b) LIGER_CAT_(a, b)
#define LIGER_KERNEL(name) LIGER_CAT(name, LIGER_ISA)

/* columns of a row that pass through the buffers at once: wide enough that common rows are read a single
 * time */
enum { LIGER_TILE = 8192 };

int liger_internal_cpu_level(void);

/* The public function of a kernel: LIGER_CPU_ENTRY(rms_norm_fwd, liger_norm_fwd_args, x_dtype) */
#if !LIGER_BASE_UNIT
#define LIGER_CPU_ENTRY(name, args_t, dtype_field) _Static_assert(sizeof(args_t) > 0, "")
#elif LIGER_LEVELS == 234
#define LIGER_CPU_ENTRY(name, args_t, dtype_field)                                                           \
  liger_status name##_d_v2(const args_t *, int64_t, int64_t), name##_f_v2(const args_t *, int64_t, int64_t); \
  liger_status name##_f_v3(const args_t *, int64_t, int64_t), name##_f_v4(const args_t *, int64_t, int64_t); \
  liger_status liger_##name##_cpu(const args_t *a, int64_t begin, int64_t end) {                             \
    if (a->dtype_field == LIGER_F64) return name##_d_v2(a, begin, end);                                      \
    switch (liger_internal_cpu_level()) {                                                                    \
    case 4: return name##_f_v4(a, begin, end);                                                               \
    case 3: return name##_f_v3(a, begin, end);                                                               \
    default: return name##_f_v2(a, begin, end);                                                              \
    }                                                                                                        \
  }                                                                                                          \
  _Static_assert(sizeof(args_t) > 0, "")
#else
#define LIGER_CPU_ENTRY(name, args_t, dtype_field)                                                           \
  liger_status name##_d_v2(const args_t *, int64_t, int64_t), name##_f_v2(const args_t *, int64_t, int64_t); \
  liger_status liger_##name##_cpu(const args_t *a, int64_t begin, int64_t end) {                             \
    return a->dtype_field == LIGER_F64 ? name##_d_v2(a, begin, end) : name##_f_v2(a, begin, end);            \
  }                                                                                                          \
  _Static_assert(sizeof(args_t) > 0, "")
#endif

/* ---- bits and 16-bit floats ---------------------------------------------------------------------------- */
static inline float f32_of_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
static inline uint32_t bits_of_f32(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}
static inline float f32_of_bf16(uint16_t h) { return f32_of_bits((uint32_t)h << 16); }
static inline uint16_t bf16_of_f32(float f) { /* to nearest even; a NaN stays a quiet NaN */
  const uint32_t u = bits_of_f32(f);
  const uint32_t r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (uint16_t)(f != f ? 0x7fc0u : r);
}

/* gcc 12 does not vectorise _Float16 conversions: F16C eight at a time where the level has it, integer
 * arithmetic below */
#if defined(__F16C__)
#include <immintrin.h>
static inline void load_f16(float *restrict d, const uint16_t *restrict s, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(d + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(s + i))));
  for (; i < n; i++) d[i] = _cvtsh_ss(s[i]);
}
static inline void store_f16(uint16_t *restrict d, const float *restrict s, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm_storeu_si128((__m128i *)(d + i), _mm256_cvtps_ph(_mm256_loadu_ps(s + i), 0));
  for (; i < n; i++) d[i] = _cvtss_sh(s[i], 0);
}
#else
static inline float f32_of_f16(uint16_t h) {
  const uint32_t m = (uint32_t)(h & 0x7fff) << 13, s = (uint32_t)(h & 0x8000) << 16;
  const float v = f32_of_bits(m) * 0x1p112f; /* rebias the exponent; right for denormals too */
  return f32_of_bits((m >= 0x0f800000u ? m | 0x7f800000u : bits_of_f32(v)) | s);
}
static inline uint16_t f16_of_f32(float f) {
  const uint32_t x = bits_of_f32(f), s = x & 0x80000000u, a = x ^ s;
  const uint32_t denormal = bits_of_f32(f32_of_bits(a) + 0.5f) -
                            0x3f000000u; /* the adder does the rounding */
  const uint32_t normal = (a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13;
  uint32_t r = a < 0x38800000u ? denormal : normal;
  r = a >= 0x47800000u ? (a > 0x7f800000u ? 0x7e00u : 0x7c00u) : r;
  return (uint16_t)(r | (s >> 16));
}
static inline void load_f16(float *restrict d, const uint16_t *restrict s, int64_t n) {
  for (int64_t i = 0; i < n; i++) d[i] = f32_of_f16(s[i]);
}
static inline void store_f16(uint16_t *restrict d, const float *restrict s, int64_t n) {
  for (int64_t i = 0; i < n; i++) d[i] = f16_of_f32(s[i]);
}
#endif

/* ---- rows ---------------------------------------------------------------------------------------------- */
static inline size_t dtype_size(liger_dtype t) { return t == LIGER_F64 ? 8 : t == LIGER_F32 ? 4 : 2; }

/* d[0..n) = the n elements of p from `offset` on */
static inline void load_row(real *restrict d, const void *p, int64_t offset, int64_t n, liger_dtype t) {
  switch (t) {
  case LIGER_F32: {
    const float *restrict s = (const float *)p + offset;
    for (int64_t i = 0; i < n; i++) d[i] = (real)s[i];
    break;
  }
  case LIGER_BF16: {
    const uint16_t *restrict s = (const uint16_t *)p + offset;
    for (int64_t i = 0; i < n; i++) d[i] = (real)f32_of_bf16(s[i]);
    break;
  }
  case LIGER_F16:
    if (sizeof(real) == sizeof(float)) {
      load_f16((float *)d, (const uint16_t *)p + offset, n);
    } else {
      float block[64];
      for (int64_t i = 0; i < n; i += 64) {
        const int64_t m = n - i < 64 ? n - i : 64;
        load_f16(block, (const uint16_t *)p + offset + i, m);
        for (int64_t j = 0; j < m; j++) d[i + j] = (real)block[j];
      }
    }
    break;
  case LIGER_F64: {
    const double *restrict s = (const double *)p + offset;
    for (int64_t i = 0; i < n; i++) d[i] = (real)s[i];
    break;
  }
  }
}

/* the n elements of p from `offset` on = s[0..n), each rounded once, to nearest even */
static inline void store_row(void *p, int64_t offset, const real *restrict s, int64_t n, liger_dtype t) {
  switch (t) {
  case LIGER_F32: {
    float *restrict d = (float *)p + offset;
    for (int64_t i = 0; i < n; i++) d[i] = (float)s[i];
    break;
  }
  case LIGER_BF16: {
    uint16_t *restrict d = (uint16_t *)p + offset;
    for (int64_t i = 0; i < n; i++) d[i] = bf16_of_f32((float)s[i]);
    break;
  }
  case LIGER_F16:
    if (sizeof(real) == sizeof(float)) {
      store_f16((uint16_t *)p + offset, (const float *)s, n);
    } else {
      float block[64];
      for (int64_t i = 0; i < n; i += 64) {
        const int64_t m = n - i < 64 ? n - i : 64;
        for (int64_t j = 0; j < m; j++) block[j] = (float)s[i + j];
        store_f16((uint16_t *)p + offset + i, block, m);
      }
    }
    break;
  case LIGER_F64: {
    double *restrict d = (double *)p + offset;
    for (int64_t i = 0; i < n; i++) d[i] = (double)s[i];
    break;
  }
  }
}

/* One element, for loops whose dtype is a constant at the call, so that the conversion is part of the
 * vectorised loop and the data need not pass through a buffer: `real` itself and bf16, as `element_direct`
 * says. Everything else goes by load_row and store_row. */
#define LIGER_REAL (sizeof(real) == 4 ? LIGER_F32 : LIGER_F64)
#define LIGER_INLINE static inline __attribute__((always_inline))
static inline int element_direct(liger_dtype t) {
  return t == LIGER_REAL || (t == LIGER_BF16 && sizeof(real) == 4);
}
LIGER_INLINE real load_element(const void *p, int64_t i, liger_dtype t) {
  return t == LIGER_BF16 ? (real)f32_of_bf16(((const uint16_t *)p)[i]) : ((const real *)p)[i];
}
LIGER_INLINE void store_element(void *p, int64_t i, real v, liger_dtype t) {
  if (t == LIGER_BF16) ((uint16_t *)p)[i] = bf16_of_f32((float)v);
  else ((real *)p)[i] = v;
}
/* v as it comes back from a store in t */
LIGER_INLINE real round_element(real v, liger_dtype t) {
  return t == LIGER_BF16 ? (real)f32_of_bf16(bf16_of_f32((float)v)) : v;
}
static inline const void *elements_at(const void *p, int64_t offset, liger_dtype t) {
  return (const char *)p + offset * (int64_t)dtype_size(t);
}

/* n elements for such a loop: in place, or as `real` in buf. Their dtype there is direct_dtype(t). */
static inline liger_dtype direct_dtype(liger_dtype t) { return element_direct(t) ? t : LIGER_REAL; }
static inline const void *view_row(real *restrict buf, const void *p, int64_t offset, int64_t n,
                                   liger_dtype t) {
  if (element_direct(t)) return elements_at(p, offset, t);
  load_row(buf, p, offset, n, t);
  return buf;
}

/* x[0..n) as they come back from a store in dtype t: where the reference rounds in the middle of a row */
static inline void round_row(real *restrict x, int64_t n, liger_dtype t) {
  if (t == LIGER_BF16) {
    for (int64_t i = 0; i < n; i++) x[i] = (real)f32_of_bf16(bf16_of_f32((float)x[i]));
  } else if (t == LIGER_F16) {
    uint16_t block[64];
    for (int64_t i = 0; i < n; i += 64) {
      const int64_t m = n - i < 64 ? n - i : 64;
      store_row(block, 0, x + i, m, t);
      load_row(x + i, block, 0, m, t);
    }
  }
}

/* dst[c0..c1) (dtype t) = sum over blocks of partial[b][c], in block order: the same bits however the
 * blocks were computed */
static inline void column_sum(void *dst, const real *partial, int64_t n_blocks, int64_t n_cols, int64_t c0,
                              int64_t c1, liger_dtype t) {
  real acc[512];
  for (int64_t c = c0; c < c1; c += 512) {
    const int64_t n = c1 - c < 512 ? c1 - c : 512;
    memset(acc, 0, sizeof acc);
    for (int64_t b = 0; b < n_blocks; b++) {
      const real *restrict p = partial + b * n_cols + c;
      for (int64_t i = 0; i < n; i++) acc[i] += p[i];
    }
    store_row(dst, c, acc, n, t);
  }
}

/* Long sums are sums of runs, then the sum of those: a long row loses no more digits than a short one,
 * whatever the vectoriser makes of a run. */
enum { LIGER_RUN = 512 };
static inline int64_t run_end(int64_t begin, int64_t n, int64_t run) {
  return n - begin < run ? n : begin + run;
}

/* rows [first, last) of block b when n_rows are dealt out to n_blocks as evenly as whole rows allow */
static inline void block_rows(int64_t b, int64_t n_blocks, int64_t n_rows, int64_t *first, int64_t *last) {
  const int64_t q = n_rows / n_blocks, m = n_rows % n_blocks;
  *first = b * q + (b < m ? b : m);
  *last = *first + q + (b < m);
}

/* ---- functions that the compiler can vectorise --------------------------------------------------------- */
/* e^x = 2^n * e^r with r = x - n ln 2 in [-.347, .347] and a minimax polynomial of degree 6 for e^r;
 * relative error under 1.7 * 2^-24. exp_reduce: `factor` (a power of two) times e^r, and n + magic's bits in
 * *n_bits, for |x| < 2^22 ln 2 */
#define EXP_MAGIC 0x1.8p23f /* adding it rounds to an integer in the low mantissa bits */
static inline float exp_reduce(float x, float magic, float factor, uint32_t *n_bits) {
  const float k = x * 0x1.715476p0f + magic, n = k - magic;
  const float r = (x - n * 0x1.62e400p-1f) - n * 0x1.7f7d1cp-20f;
  float p = factor * 0x1.6a2434p-10f;
  p = p * r + factor * 0x1.1239e0p-7f;
  p = p * r + factor * 0x1.5558f2p-5f;
  p = p * r + factor * 0x1.555492p-3f;
  p = p * r + factor * 0x1.fffffcp-2f;
  p = p * r + factor;
  *n_bits = bits_of_f32(k);
  return p * r + factor;
}
/* x, or what has its sign and the size `most`, if that is less; so does a NaN. On integers, which have a
 * minimum that the compiler does not turn into branches (it may not for floats, whose minimum of a NaN is
 * not symmetric). */
static inline float clamp_f32(float x, float most) {
  const uint32_t u = bits_of_f32(x), size = u & 0x7fffffffu, m = bits_of_f32(most);
  return f32_of_bits((size < m ? size : m) | (u & 0x80000000u));
}
/* for x in [-87, 88], where the result is a normal number; a NaN gives anything */
static inline float exp_normal_f32(float x) {
  uint32_t n;
  const float p = exp_reduce(x, EXP_MAGIC, 1, &n);
  return f32_of_bits(bits_of_f32(p) + (n << 23)); /* into p's exponent; the shift drops the magic */
}
/* for any x: 0 below -87.3 (no denormals), inf above 88.7 */
static inline float exp_f32(float x) {
  uint32_t n_bits;
  const float p = exp_reduce(clamp_f32(x, 88.72f), EXP_MAGIC, 1, &n_bits);
  /* 2^n in two factors, so that n = 128 does not overflow before p < 1 is applied */
  const int32_t n = (int32_t)(n_bits - bits_of_f32(EXP_MAGIC)), h = n >> 1;
  const float y = p * f32_of_bits((uint32_t)(h + 127) << 23) * f32_of_bits((uint32_t)(n - h + 127) << 23);
  return x < -87.336f ? 0.0f : x > 88.7228f ? INFINITY : x != x ? x : y;
}
static inline real exp_real(real x) {
  return sizeof(real) == 4 ? (real)exp_f32((float)x) : (real)exp((double)x);
}
/* e^x for x <= 0, the exponent of every softmax: half the work of the above; 0 below -87 (no denormals); a
 * NaN stays. The magic carries an exponent's bias, so that its integer, shifted into place, is 2^(n-1), and 0
 * at n = -126, where x is held. */
static inline float exp_nonpos_f32(float x) {
  uint32_t n_bits;
  const float held = -87.4f > x ? -87.4f : x; /* in this order a NaN stays, and the product keeps it */
  const float p = exp_reduce(held, EXP_MAGIC + 126, 2, &n_bits);
  return p * f32_of_bits(n_bits << 23);
}
static inline real exp_nonpos(real x) {
  return sizeof(real) == 4 ? (real)exp_nonpos_f32((float)x) : (real)exp((double)x);
}

static inline real sigmoid(real x) { return 1 / (1 + exp_real(-x)); }

/* sigmoid, and 1 - sigmoid in *complement without the cancellation. Faster than the above: where e^-x
 * would leave the range of normal numbers it is held at its border, so no result is exact 0 or 1 there. A
 * NaN gives anything: multiply by x. */
static inline real sigmoid_and_complement(real x, real *complement) {
  real e;
  if (sizeof(real) == 4) e = (real)exp_normal_f32(clamp_f32(-(float)x, 87.0f));
  else e = (real)exp(-(double)(x < -700 ? -700 : x > 700 ? 700 : x));
  const real s = 1 / (1 + e);
  *complement = e * s;
  return s;
}

/* tanh x for |x| below TANH_NEAR, where 1 - 2/(e^2x + 1) would cancel: an odd polynomial */
#define TANH_NEAR 0.625f
static inline float tanh_near_f32(float x) {
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  return p * z * x + x;
}
static inline float tanh_f32(float x) {
  const float near = tanh_near_f32(x), a = fabsf(x);
  const float far = 1.0f - 2.0f / (exp_f32(2.0f * a) + 1.0f);
  return a < TANH_NEAR ? near : x < 0 ? -far : x != x ? x : far;
}
static inline real tanh_real(real x) {
  return sizeof(real) == 4 ? (real)tanh_f32((float)x) : (real)tanh((double)x);
}

/* ---- online softmax ------------------------------------------------------------------------------------ */
/* m: the largest element so far, d: sum of e^(z - m). Nothing but -inf so far: m = -inf, d = 0, and lse =
 * -inf without a NaN. */
typedef struct {
  real m, d;
} softmax_state;
static const softmax_state softmax_empty = {-INFINITY, 0};

/* what is subtracted before exp: m, except that -inf - -inf must not arise */
static inline real softmax_ref(real m) { return m == -INFINITY ? 0 : m; }

static inline softmax_state softmax_merge(softmax_state a, softmax_state b) {
  const real m = a.m > b.m ? a.m : b.m, ref = softmax_ref(m);
  const softmax_state s = {m, a.d * exp_real(a.m - ref) + b.d * exp_real(b.m - ref)};
  return s;
}
/* the largest of m and z[0..n); a NaN loses. Four chains, or each maximum would wait for the last. */
static inline real max_row(real m, const real *z, int64_t n) {
#pragma omp simd reduction(max : m)
  for (int64_t i = 0; i < n; i++) m = z[i] > m ? z[i] : m;
  return m;
}
/* s with the n elements of z, m = max_row(s.m, z, n). e, which may be z, or NULL: their e^(z - ref(m)) */
LIGER_INLINE softmax_state softmax_add(softmax_state s, const real *z, real *e, int64_t n, real m) {
  const real ref = softmax_ref(m);
  real d = 0;
  if (e) {
#pragma omp simd reduction(+ : d)
    for (int64_t i = 0; i < n; i++) {
      const real v = exp_nonpos(z[i] - ref);
      e[i] = v;
      d += v;
    }
  } else {
#pragma omp simd reduction(+ : d)
    for (int64_t i = 0; i < n; i++) d += exp_nonpos(z[i] - ref);
  }
  const softmax_state t = {m, s.d * exp_real(s.m - ref) + d};
  return t;
}
/* s with the n elements of z (a tile that stays in cache: it is read twice) */
static inline softmax_state softmax_push(softmax_state s, const real *z, int64_t n) {
  return softmax_add(s, z, NULL, n, max_row(s.m, z, n));
}
static inline real log_real(real x) { return (real)log((double)x); }
static inline real softmax_lse(softmax_state s) { return s.m + log_real(s.d); }
#endif
