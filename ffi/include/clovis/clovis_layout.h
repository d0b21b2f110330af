/* Layouts of objects by name, and what programs read of composite ones. Only M0_CLOVIS_LT_PDCLUST objects can be made yet. */
#ifndef CLOVIS_INCLUDE_CLOVIS_CLOVIS_LAYOUT_H
#define CLOVIS_INCLUDE_CLOVIS_CLOVIS_LAYOUT_H

#include "clovis/clovis.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The type stands in the top 16 bits of a 64-bit layout id. */
#define M0_CLOVIS_OBJ_LAYOUT_ID(lid) ((uint64_t)(lid) & 0x0000ffffffffffffULL)
#define M0_CLOVIS_OBJ_LAYOUT_TYPE(lid) ((enum m0_clovis_layout_type)((uint64_t)(lid) >> 48))
#define M0_CLOVIS_OBJ_LAYOUT_MAKE_LID(id, type) (M0_CLOVIS_OBJ_LAYOUT_ID(id) | (uint64_t)(type) << 48)

struct m0_clovis_capture_layout {
	struct m0_clovis_layout cl_layout;
	struct m0_uint128 cl_orig_id;
	struct m0_fid cl_pver;
	uint64_t cl_lid;
};

struct m0_clovis_pdclust_layout {
	struct m0_clovis_layout pl_layout;
	struct m0_fid pl_pver;
	uint64_t pl_lid;
	struct m0_fid pl_fid;
};

struct m0_clovis_composite_extent {
	struct m0_uint128 ce_id;
	m0_bindex_t ce_off;
	m0_bcount_t ce_len;
	struct m0_tlink ce_tlink;
	uint64_t ce_tlink_magic;
};

struct m0_clovis_composite_layer {
	struct m0_uint128 ccr_subobj;
	uint64_t ccr_lid;
	int ccr_priority;
	struct m0_tl ccr_rd_exts;
	struct m0_tl ccr_wr_exts;
	struct m0_mutex ccr_lock;
	struct m0_tlink ccr_tlink;
	uint64_t ccr_tlink_magic;
};

struct m0_clovis_composite_layout {
	struct m0_clovis_layout ccl_layout;
	uint64_t ccl_nr_layers;
	struct m0_tl ccl_layers;
	struct m0_mutex ccl_lock;
};

#ifdef __cplusplus
}
#endif

#endif
