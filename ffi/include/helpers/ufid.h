/*
 * Object ids that nobody else makes: from the process's fid, the time and a counter.
 * Bits from the top: 37 zero, 11 salt, 31 generation (seconds), 29 process, 20 sequence.
 */
#ifndef CLOVIS_INCLUDE_HELPERS_UFID_H
#define CLOVIS_INCLUDE_HELPERS_UFID_H

#include "lib/types.h"
#include "lib/mutex.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_clovis;

struct m0_ufid_generator {
	struct m0_clovis *ufg_m0c;
	struct m0_mutex ufg_lock;
	uint64_t ufg_salt;
	uint64_t ufg_generation;
	uint64_t ufg_process;
	uint64_t ufg_sequence;
	bool ufg_is_initialised;
};

/* 0 or -EINVAL. */
int m0_ufid_init(struct m0_clovis *instance, struct m0_ufid_generator *generator);
void m0_ufid_fini(struct m0_ufid_generator *generator);
/* The first of `count` ids in a row (the others follow in u_lo), at most 2^20 - 1. 0, -EINVAL. */
int m0_ufid_new(struct m0_ufid_generator *generator, uint32_t count, uint32_t skip, struct m0_uint128 *id);
int m0_ufid_next(struct m0_ufid_generator *generator, uint32_t count, struct m0_uint128 *id);

#ifdef __cplusplus
}
#endif

#endif
