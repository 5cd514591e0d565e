/* What the C tests share: poisoned buffers with guards, random numbers, and a comparison against double.
 *
 * A fresh buffer is all 0xff, which is a NaN in every dtype: an element that a kernel does not write fails the comparison.
 * Before and after the elements lie guard bytes, checked when the buffer is freed; under AddressSanitizer the buffer has its
 * exact size instead, so that one element too far is reported where it happens.                                     */
#ifndef HARNESS_H
#define HARNESS_H
#include "liger.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SANITIZE_ADDRESS__
enum { GUARD = 0 };
#else
enum { GUARD = 64 };
#endif

typedef struct {
  unsigned char *raw;
  void *p;
  int64_t n;
  liger_dtype t;
} buf;

static int n_checks, n_failures;
static char where[256]; /* what is being tested, for the messages */

static const char *const dtype_names[] = {"fp32", "fp16", "bf16", "fp64"};
static size_t size_of(liger_dtype t) { return t == LIGER_F64 ? 8 : t == LIGER_F32 ? 4 : 2; }
static double eps_of(liger_dtype t) {
  return t == LIGER_F64 ? 0x1p-52 : t == LIGER_F32 ? 0x1p-23 : t == LIGER_F16 ? 0x1p-10 : 0x1p-7;
}
/* the dtype of statistics: "real" in liger.h */
static inline liger_dtype real_of(liger_dtype t) { return t == LIGER_F64 ? LIGER_F64 : LIGER_F32; }

static void fail(const char *what) {
  n_failures++;
  fprintf(stderr, "FAILED %s: %s\n", where, what);
}
static inline void expect(int ok, const char *what) {
  n_checks++;
  if (!ok) fail(what);
}

static buf buf_new(int64_t n, liger_dtype t) {
  const size_t bytes = (size_t)n * size_of(t);
  buf b = {malloc(bytes + 2 * GUARD), NULL, n, t};
  b.p = b.raw + GUARD;
  memset(b.raw, 0xa5, GUARD);
  memset(b.p, 0xff, bytes);
  memset((char *)b.p + bytes, 0xa5, GUARD);
  return b;
}
static void buf_free(buf b) {
  for (int i = 0; i < GUARD; i++)
    if (b.raw[i] != 0xa5 || ((unsigned char *)b.p)[(size_t)b.n * size_of(b.t) + (size_t)i] != 0xa5) {
      fail("wrote outside its buffer");
      break;
    }
  free(b.raw);
}

static double get(buf b, int64_t i) {
  if (b.t == LIGER_F64) return ((double *)b.p)[i];
  if (b.t == LIGER_F32) return ((float *)b.p)[i];
  if (b.t == LIGER_F16) return (double)((_Float16 *)b.p)[i];
  const uint32_t u = (uint32_t)((uint16_t *)b.p)[i] << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static void put(buf b, int64_t i, double v) {
  if (b.t == LIGER_F64) ((double *)b.p)[i] = v;
  else if (b.t == LIGER_F32) ((float *)b.p)[i] = (float)v;
  else if (b.t == LIGER_F16) ((_Float16 *)b.p)[i] = (_Float16)v;
  else { /* to nearest even */ const float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, 4);
    ((uint16_t *)b.p)[i] = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  }
}

static uint64_t random_state = 1;
static inline double uniform(void) { /* in (-1, 1) */
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (double)(int64_t)(random_state >> 11) * 0x1p-52 - 1.0;
}
static buf buf_random(int64_t n, liger_dtype t, double scale) {
  buf b = buf_new(n, t);
  for (int64_t i = 0; i < n; i++) put(b, i, scale * uniform());
  return b;
}

/* rows x cols of `got`, rows `stride` apart, against `want` (dense): the largest error in units in the last place of the
 * largest value. What lies between the rows has to be poison still. */
static void close_rows(const char *name, buf got, int64_t stride, const double *want, int64_t rows,
                       int64_t cols, double ulps) {
  double worst = 0, scale = 0;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++) {
      const double w = want[r * cols + c], e = fabs(get(got, r * stride + c) - w);
      worst = isfinite(e) ? fmax(worst, e) : INFINITY;
      scale = fmax(scale, fabs(w));
    }
  char text[160];
  snprintf(text, sizeof text, "%s is off by %.3g, at most %.3g", name, worst, ulps * eps_of(got.t) * scale);
  expect(worst <= ulps * eps_of(got.t) * scale, text);
  for (int64_t r = 0; r + 1 < rows && stride > cols; r++)
    for (int64_t c = cols; c < stride; c++)
      if (!isnan(get(got, r * stride + c))) {
        fail("wrote between two rows");
        return;
      }
}
static inline void close_to(const char *name, buf got, const double *want, double ulps) {
  close_rows(name, got, got.n, want, 1, got.n, ulps);
}

static inline int finish(const char *name) {
  printf("%s %s checks=%d failures=%d\n", name, liger_cpu_isa(), n_checks, n_failures);
  return n_failures != 0;
}
#endif
