/* One buffer: a length and an address. */
#ifndef CLOVIS_INCLUDE_LIB_BUF_H
#define CLOVIS_INCLUDE_LIB_BUF_H

#include "lib/types.h"
#include "lib/memory.h"
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m0_buf {
	m0_bcount_t b_nob;
	void *b_addr;
};

#ifdef __cplusplus
#define M0_BUF_INIT(bytes, address) (m0_buf{(bytes), (address)})
#else
#define M0_BUF_INIT(bytes, address) ((struct m0_buf){(bytes), (address)})
#endif
#define M0_BUF_INIT0 M0_BUF_INIT(0, NULL)
#define M0_BUF_INITS(text) M0_BUF_INIT(strlen(text), (text))
#define M0_BUF_INIT_PTR(pointer) M0_BUF_INIT(sizeof *(pointer), (pointer))

#define BUF_F "[%p,%llu]"
#define BUF_P(buf) (buf)->b_addr, (unsigned long long)(buf)->b_nob

void m0_buf_init(struct m0_buf *buf, void *address, uint32_t bytes);
int m0_buf_alloc(struct m0_buf *buf, size_t bytes);
/* Frees with m0_free and empties. */
void m0_buf_free(struct m0_buf *buf);
/* -1, 0 or 1 by content, then by length. */
int m0_buf_cmp(const struct m0_buf *left, const struct m0_buf *right);
bool m0_buf_eq(const struct m0_buf *left, const struct m0_buf *right);
/* `to` must be empty: it gets a copy. 0 or -ENOMEM. */
int m0_buf_copy(struct m0_buf *to, const struct m0_buf *from);
int m0_buf_copy_aligned(struct m0_buf *to, const struct m0_buf *from, unsigned shift);
bool m0_buf_is_set(const struct m0_buf *buf);
bool m0_buf_streq(const struct m0_buf *buf, const char *text);
char *m0_buf_strdup(const struct m0_buf *buf);

#ifdef __cplusplus
}
#endif

#endif
