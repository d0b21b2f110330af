/*
 * Vectors of counts, extents and buffers.
 *
 * m0_bufvec_alloc takes its segments from memory that the library registers with the network once: reads and writes move bytes
 * to and from there without a copy by the processor. Other memory may be put into a bufvec by hand; it works the same.
 */
#ifndef CLOVIS_INCLUDE_LIB_VEC_H
#define CLOVIS_INCLUDE_LIB_VEC_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
	/* Alignment that devices like best: 4 KiB. */
	M0_0VEC_SHIFT = 12,
	M0_0VEC_ALIGN = 1 << M0_0VEC_SHIFT,
	M0_0VEC_MASK = M0_0VEC_ALIGN - 1
};

struct m0_vec {
	uint32_t v_nr;
	m0_bcount_t *v_count;
};

struct m0_indexvec {
	struct m0_vec iv_vec;
	m0_bindex_t *iv_index;
};

struct m0_bufvec {
	struct m0_vec ov_vec;
	void **ov_buf;
};

struct m0_vec_cursor {
	const struct m0_vec *vc_vec;
	uint32_t vc_seg;
	m0_bcount_t vc_offset;
};

struct m0_bufvec_cursor {
	struct m0_vec_cursor bc_vc;
};

#define M0_VEC_INIT(nr, counts) {(nr), (counts)}
#define M0_BUFVEC_INIT_BUF(address, count) {{1, (count)}, (address)}

/* The sum of all counts. */
m0_bcount_t m0_vec_count(const struct m0_vec *vec);
static inline bool m0_vec_is_empty(const struct m0_vec *vec)
{
	return m0_vec_count(vec) == 0;
}

/* `num_segs` zeroed segments of `seg_size` bytes. 0, -EINVAL, -ENOMEM (then the vector is empty). */
int m0_bufvec_alloc(struct m0_bufvec *bufvec, uint32_t num_segs, m0_bcount_t seg_size);
/* The same, each segment at a multiple of 1 << shift. */
int m0_bufvec_alloc_aligned(struct m0_bufvec *bufvec, uint32_t num_segs, m0_bcount_t seg_size, unsigned shift);
/* Only the two arrays: every buffer is NULL, every count 0. */
int m0_bufvec_empty_alloc(struct m0_bufvec *bufvec, uint32_t num_segs);
/* Frees segments and arrays. Segments may also come from m0_alloc. An empty vector is harmless. */
void m0_bufvec_free(struct m0_bufvec *bufvec);
/* Frees the arrays only; the segments stay the caller's. */
void m0_bufvec_free2(struct m0_bufvec *bufvec);
void m0_bufvec_free_aligned(struct m0_bufvec *bufvec, unsigned shift);

/* `len` extents, all zero. 0, -EINVAL, -ENOMEM. */
int m0_indexvec_alloc(struct m0_indexvec *ivec, uint32_t len);
void m0_indexvec_free(struct m0_indexvec *ivec);

/* Walks over the bytes of a vector. move: true once the end is reached. */
void m0_vec_cursor_init(struct m0_vec_cursor *cursor, const struct m0_vec *vec);
bool m0_vec_cursor_move(struct m0_vec_cursor *cursor, m0_bcount_t count);
m0_bcount_t m0_vec_cursor_step(const struct m0_vec_cursor *cursor);
void m0_bufvec_cursor_init(struct m0_bufvec_cursor *cursor, const struct m0_bufvec *bufvec);
bool m0_bufvec_cursor_move(struct m0_bufvec_cursor *cursor, m0_bcount_t count);
m0_bcount_t m0_bufvec_cursor_step(const struct m0_bufvec_cursor *cursor);
void *m0_bufvec_cursor_addr(struct m0_bufvec_cursor *cursor);
/* Copies at most `bytes` bytes, moves both cursors, returns how many it were. */
m0_bcount_t m0_bufvec_cursor_copy(struct m0_bufvec_cursor *to, struct m0_bufvec_cursor *from, m0_bcount_t bytes);
m0_bcount_t m0_bufvec_cursor_copyto(struct m0_bufvec_cursor *to, void *from, m0_bcount_t bytes);
m0_bcount_t m0_bufvec_cursor_copyfrom(struct m0_bufvec_cursor *from, void *to, m0_bcount_t bytes);

#ifdef __cplusplus
}
#endif

#endif
