/* Memory that begins as zeros. */
#ifndef CLOVIS_INCLUDE_LIB_MEMORY_H
#define CLOVIS_INCLUDE_LIB_MEMORY_H

#include "lib/types.h"
#include "lib/misc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Zeroed memory, or NULL. */
void *m0_alloc(size_t bytes);
void *m0_calloc(size_t count, size_t bytes);
/* NULL is harmless. */
void m0_free(void *memory);
/* Zeroed memory at a multiple of 1 << shift, or NULL. Give it back with m0_free_aligned. */
void *m0_alloc_aligned(size_t bytes, unsigned shift);
void m0_free_aligned(void *memory, size_t bytes, unsigned shift);
bool m0_addr_is_aligned(const void *address, unsigned shift);
int m0_pagesize_get(void);
int m0_pageshift_get(void);

#define M0_ALLOC_PTR(pointer) ((pointer) = M0_CAST_LIKE_(pointer, m0_alloc(sizeof *(pointer))))
#define M0_ALLOC_ARR(array, count) ((array) = M0_CAST_LIKE_(array, m0_calloc((size_t)(count), sizeof *(array))))
#define M0_ALLOC_PTR_ALIGNED(pointer, shift) \
	((pointer) = M0_CAST_LIKE_(pointer, m0_alloc_aligned(sizeof *(pointer), (shift))))
#define M0_ALLOC_ARR_ALIGNED(array, count, shift) \
	((array) = M0_CAST_LIKE_(array, m0_alloc_aligned((size_t)(count) * sizeof *(array), (shift))))

/* Frees what *pointer names and forgets it. */
#define m0_free0(pointer) \
	do { \
		m0_free(*(pointer)); \
		*(pointer) = NULL; \
	} while (0)

#ifdef __cplusplus
}
#endif

#endif
