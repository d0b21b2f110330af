/* Counts, indices and 128-bit names. */
#ifndef CLOVIS_INCLUDE_LIB_TYPES_H
#define CLOVIS_INCLUDE_LIB_TYPES_H

#include "lib/cdefs.h"
#include <limits.h>
#include <sys/types.h>
#include <sys/time.h>
#include <unistd.h>
#include <pthread.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes or blocks, as the call says. */
typedef uint64_t m0_bcount_t;
typedef uint64_t m0_bindex_t;
typedef uint64_t m0_version_t;

#define M0_BCOUNT_MAX UINT64_MAX
#define M0_BINDEX_MAX (UINT64_MAX - 1)
#define M0_BSIGNED_MAX INT64_MAX

struct m0_uint128 {
	uint64_t u_hi;
	uint64_t u_lo;
};

#ifdef __cplusplus
#define M0_UINT128(hi, lo) (m0_uint128{(uint64_t)(hi), (uint64_t)(lo)})
#else
#define M0_UINT128(hi, lo) ((struct m0_uint128){(uint64_t)(hi), (uint64_t)(lo)})
#endif

#define U128X_F "%" PRIx64 ":%" PRIx64
#define U128X_F_SAFE "%s%" PRIx64 ":%" PRIx64
#define U128D_F "%" PRId64 ":%" PRId64
#define U128_P(x) (x)->u_hi, (x)->u_lo
#define U128_S(x) &(x)->u_hi, &(x)->u_lo
#define U128_P_SAFE(x) ((x) != NULL ? "" : "(null) "), ((x) != NULL ? (x)->u_hi : 0), ((x) != NULL ? (x)->u_lo : 0)

/* -1, 0 or 1, the upper half counts first. */
static inline int m0_uint128_cmp(const struct m0_uint128 *left, const struct m0_uint128 *right)
{
	if (left->u_hi != right->u_hi)
		return left->u_hi < right->u_hi ? -1 : 1;
	if (left->u_lo != right->u_lo)
		return left->u_lo < right->u_lo ? -1 : 1;
	return 0;
}

static inline bool m0_uint128_eq(const struct m0_uint128 *left, const struct m0_uint128 *right)
{
	return left->u_hi == right->u_hi && left->u_lo == right->u_lo;
}

static inline void m0_uint128_init(struct m0_uint128 *number, const char *sixteen_bytes)
{
	int i;

	number->u_hi = number->u_lo = 0;
	for (i = 0; i < 8; ++i) {
		number->u_hi = number->u_hi << 8 | (unsigned char)sixteen_bytes[i];
		number->u_lo = number->u_lo << 8 | (unsigned char)sixteen_bytes[8 + i];
	}
}

/* *sum = left + right modulo 2^128; any of them may be the same. */
static inline void m0_uint128_add(struct m0_uint128 *sum, const struct m0_uint128 *left, const struct m0_uint128 *right)
{
	uint64_t low = left->u_lo + right->u_lo;

	sum->u_hi = left->u_hi + right->u_hi + (low < left->u_lo);
	sum->u_lo = low;
}

/* Instance of the library. Its content is the library's own. */
struct m0 {
	uint64_t i_opaque[16];
};

#ifdef __cplusplus
}
#endif

#endif
