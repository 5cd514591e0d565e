/* The machine's x86-64 level, read once per process, and the texts of the status codes. */
#include "primitives.h"
#if LIGER_BASE_UNIT
#include <stdlib.h>

/* Set before main (and before any thread) runs, so readers need no lock. */
static int cpu_level = LIGER_LOWEST_LEVEL;

__attribute__((constructor)) static void choose_level(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) cpu_level = 4;
  else if (__builtin_cpu_supports("x86-64-v3")) cpu_level = 3;
  const char *cap = getenv("LIGER_ISA_MAX"); /* so that tests can run every level */
  if (cap && atoi(cap) >= LIGER_LOWEST_LEVEL && atoi(cap) < cpu_level) cpu_level = atoi(cap);
#endif
}

int liger_internal_cpu_level(void) { return cpu_level; }

const char *liger_cpu_isa(void) {
#if defined(__x86_64__)
  return cpu_level == 4 ? "x86-64-v4" : cpu_level == 3 ? "x86-64-v3" : "x86-64-v2";
#else
  return "baseline";
#endif
}

const char *liger_error_string(liger_status status) {
  switch (status) {
  case LIGER_OK: return "no error";
  case LIGER_ERR_DTYPE: return "no kernel for this dtype";
  case LIGER_ERR_SIZE: return "a size is negative or larger than a launch can hold";
  case LIGER_ERR_OPTION: return "an option is out of its range";
  default: return "unknown status";
  }
}
#endif
