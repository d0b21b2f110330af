/* A reference count that calls back at zero. */
#ifndef CLOVIS_INCLUDE_LIB_REFS_H
#define CLOVIS_INCLUDE_LIB_REFS_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_ref {
	int64_t ref_cnt;
	void (*release)(struct m0_ref *ref);
};

static inline void m0_ref_init(struct m0_ref *ref, int count, void (*release)(struct m0_ref *))
{
	ref->ref_cnt = count;
	ref->release = release;
}

static inline void m0_ref_get(struct m0_ref *ref)
{
	__atomic_add_fetch(&ref->ref_cnt, 1, __ATOMIC_SEQ_CST);
}

static inline void m0_ref_put(struct m0_ref *ref)
{
	if (__atomic_sub_fetch(&ref->ref_cnt, 1, __ATOMIC_SEQ_CST) == 0)
		ref->release(ref);
}

#ifdef __cplusplus
}
#endif

#endif
