/* A 64-bit counter that threads share. */
#ifndef CLOVIS_INCLUDE_LIB_ATOMIC_H
#define CLOVIS_INCLUDE_LIB_ATOMIC_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_atomic64 {
	int64_t a_value;
};

static inline void m0_atomic64_set(struct m0_atomic64 *a, int64_t value)
{
	__atomic_store_n(&a->a_value, value, __ATOMIC_SEQ_CST);
}
static inline int64_t m0_atomic64_get(const struct m0_atomic64 *a)
{
	return __atomic_load_n(&a->a_value, __ATOMIC_SEQ_CST);
}
static inline void m0_atomic64_inc(struct m0_atomic64 *a)
{
	__atomic_add_fetch(&a->a_value, 1, __ATOMIC_SEQ_CST);
}
static inline void m0_atomic64_dec(struct m0_atomic64 *a)
{
	__atomic_sub_fetch(&a->a_value, 1, __ATOMIC_SEQ_CST);
}
static inline void m0_atomic64_add(struct m0_atomic64 *a, int64_t by)
{
	__atomic_add_fetch(&a->a_value, by, __ATOMIC_SEQ_CST);
}
static inline void m0_atomic64_sub(struct m0_atomic64 *a, int64_t by)
{
	__atomic_sub_fetch(&a->a_value, by, __ATOMIC_SEQ_CST);
}
static inline int64_t m0_atomic64_add_return(struct m0_atomic64 *a, int64_t by)
{
	return __atomic_add_fetch(&a->a_value, by, __ATOMIC_SEQ_CST);
}
static inline bool m0_atomic64_dec_and_test(struct m0_atomic64 *a)
{
	return __atomic_sub_fetch(&a->a_value, 1, __ATOMIC_SEQ_CST) == 0;
}
static inline bool m0_atomic64_cas(int64_t *location, int64_t expected, int64_t value)
{
	return __atomic_compare_exchange_n(location, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

#ifdef __cplusplus
}
#endif

#endif
