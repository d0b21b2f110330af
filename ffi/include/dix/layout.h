/* How an index is spread over devices, as programs name it in their configuration. */
#ifndef CLOVIS_INCLUDE_DIX_LAYOUT_H
#define CLOVIS_INCLUDE_DIX_LAYOUT_H

#include "lib/types.h"
#include "lib/ext.h"
#include "fid/fid.h"

#ifdef __cplusplus
extern "C" {
#endif

enum m0_dix_layout_type {
	DIX_LTYPE_UNKNOWN,
	DIX_LTYPE_ID,
	DIX_LTYPE_DESCR,
	DIX_LTYPE_COMPOSITE_DESCR
};

enum m0_dix_hash_fnc_type {
	HASH_FNC_NONE,
	HASH_FNC_FNV1,
	HASH_FNC_CITY
};

struct m0_dix_imask {
	struct m0_ext *im_range;
	uint64_t im_nr;
};

struct m0_dix_ldesc {
	uint32_t ld_hash_fnc;
	struct m0_fid ld_pver;
	struct m0_dix_imask ld_imask;
};

struct m0_dix_layout {
	uint32_t dl_type;
	union {
		uint64_t dl_id;
		struct m0_dix_ldesc dl_desc;
	} u;
};

#ifdef __cplusplus
}
#endif

#endif
