/* Fids: 128-bit names of everything in a cluster. The top byte of the container is the type, a letter. */
#ifndef CLOVIS_INCLUDE_FID_FID_H
#define CLOVIS_INCLUDE_FID_FID_H

#include "lib/types.h"
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m0_fid {
	uint64_t f_container;
	uint64_t f_key;
};

struct m0_fid_arr {
	uint32_t af_count;
	struct m0_fid *af_elems;
};

struct m0_fid_type {
	uint8_t ft_id;
	const char *ft_name;
	bool (*ft_is_valid)(const struct m0_fid *fid);
};

enum { M0_FID_STR_LEN = 64 };

/* printf and scanf. Arguments are cast so that the format fits on every machine. */
#define FID_F "<%lx:%lx>"
#define FID_SF " < %lx : %lx > "
#define FID_P(f) (unsigned long)(f)->f_container, (unsigned long)(f)->f_key
#define FID_S(f) (unsigned long *)(void *)&(f)->f_container, (unsigned long *)(void *)&(f)->f_key

#ifdef __cplusplus
#define M0_FID_INIT(container, key) (m0_fid{(uint64_t)(container), (uint64_t)(key)})
#else
#define M0_FID_INIT(container, key) ((struct m0_fid){(uint64_t)(container), (uint64_t)(key)})
#endif
#define M0_FID_TINIT(type, container, key) \
	M0_FID_INIT(((uint64_t)(unsigned char)(type) << 56) | ((uint64_t)(container) & 0x00ffffffffffffffULL), (key))
#ifdef __cplusplus
/* An object, since the address of it is taken. */
static const struct m0_fid m0_fid_none_ __attribute__((unused)) = {0, 0};
#define M0_FID0 m0_fid_none_
#else
#define M0_FID0 M0_FID_INIT(0, 0)
#endif
#define M0_FID_BUF(fid) M0_BUF_INIT(sizeof *(fid), (fid))
#define FID_TYPE_MASK_ 0xff00000000000000ULL

static inline bool m0_fid_is_set(const struct m0_fid *fid)
{
	return fid->f_container != 0 || fid->f_key != 0;
}

static inline bool m0_fid_eq(const struct m0_fid *left, const struct m0_fid *right)
{
	return left->f_container == right->f_container && left->f_key == right->f_key;
}

static inline int m0_fid_cmp(const struct m0_fid *left, const struct m0_fid *right)
{
	if (left->f_container != right->f_container)
		return left->f_container < right->f_container ? -1 : 1;
	return left->f_key < right->f_key ? -1 : left->f_key > right->f_key;
}

static inline void m0_fid_set(struct m0_fid *fid, uint64_t container, uint64_t key)
{
	fid->f_container = container;
	fid->f_key = key;
}

static inline void m0_fid_tset(struct m0_fid *fid, uint8_t type, uint64_t container, uint64_t key)
{
	m0_fid_set(fid, (uint64_t)type << 56 | (container & ~FID_TYPE_MASK_), key);
}

static inline uint8_t m0_fid_tget(const struct m0_fid *fid)
{
	return (uint8_t)(fid->f_container >> 56);
}

static inline void m0_fid_tchange(struct m0_fid *fid, uint8_t type)
{
	m0_fid_tset(fid, type, fid->f_container, fid->f_key);
}

static inline void m0_fid_tassume(struct m0_fid *fid, const struct m0_fid_type *type)
{
	m0_fid_tchange(fid, type->ft_id);
}

/* True unless the type is one that this library does not know. A fid without a type is valid. */
bool m0_fid_is_valid(const struct m0_fid *fid);
/* Reads "<c:k>", "c:k" (hexadecimal with or without 0x inside the brackets, decimal or 0x outside), or "T|c:k". 0 or -EINVAL. */
int m0_fid_sscanf(const char *text, struct m0_fid *fid);
/* Writes "<c:k>"; returns its length, as snprintf. */
int m0_fid_print(char *text, size_t bytes, const struct m0_fid *fid);

#ifdef __cplusplus
}
#endif

#endif
