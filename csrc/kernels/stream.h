/* Moving large results past the caches, and asking for what is read next, on a CPU. */
#ifndef LIGER_STREAM_H
#define LIGER_STREAM_H
#include "primitives.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* n bytes of src (in cache) to dst past the caches: a store that first reads the line it will overwrite
 * costs half as much again. For results so large that the next reader finds little of them in cache
 * anyway; stream_end() once all is written, before another thread may read. */
enum { LIGER_STREAM_BYTES = 16 << 20 };
static inline void stream_bytes(void *dst, const void *src, size_t n) {
#if defined(__SSE2__)
  char *d = (char *)dst;
  const char *s = (const char *)src;
  size_t head = (64 - (uintptr_t)d % 64) % 64;
  head = head < n ? head : n;
  memcpy(d, s, head);
  for (d += head, s += head, n -= head; n >= 64; d += 64, s += 64, n -= 64) {
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i *)(void *)d, _mm512_loadu_si512(s));
#else
    for (int i = 0; i < 64; i += 16)
      _mm_stream_si128((__m128i *)(void *)(d + i), _mm_loadu_si128((const __m128i *)(const void *)(s + i)));
#endif
  }
  memcpy(d, s, n);
#else
  memcpy(dst, src, n);
#endif
}
static inline void stream_end(void) {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}
/* asks for n bytes that are read soon */
static inline void prefetch_bytes(const void *p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + i, 0, 2);
}
#endif
