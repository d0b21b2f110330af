/*
 * Indices: declared completely, not there yet. Every call refuses with -ENOSYS (ffi/MATRIX.md). The structures are what a
 * configuration may point to in cc_idx_service_conf.
 */
#ifndef CLOVIS_INCLUDE_CLOVIS_CLOVIS_IDX_H
#define CLOVIS_INCLUDE_CLOVIS_CLOVIS_IDX_H

#include "clovis/clovis.h"
#include "dix/layout.h"
#include "net/net.h"
#include "rpc/rpc_machine.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_clovis_op_idx;

enum m0_clovis_idx_service_type {
	M0_CLOVIS_IDX_MOCK,
	M0_CLOVIS_IDX_DIX,
	M0_CLOVIS_IDX_CASS,
	M0_CLOVIS_IDX_MAX_SERVICE_ID
};

enum m0_clovis_op_idx_flags {
	/* A put replaces a value that is there. */
	M0_OIF_OVERWRITE = 1 << 0,
	/* A next leaves the start key out. */
	M0_OIF_EXCLUDE_START_KEY = 1 << 1,
	/* Durable before the operation is stable. */
	M0_OIF_SYNC_WAIT = 1 << 2
};

struct m0_clovis_idx_query_ops {
	int (*iqo_namei_create)(struct m0_clovis_op_idx *oi);
	int (*iqo_namei_delete)(struct m0_clovis_op_idx *oi);
	int (*iqo_namei_lookup)(struct m0_clovis_op_idx *oi);
	int (*iqo_namei_list)(struct m0_clovis_op_idx *oi);
	int (*iqo_get)(struct m0_clovis_op_idx *oi);
	int (*iqo_put)(struct m0_clovis_op_idx *oi);
	int (*iqo_del)(struct m0_clovis_op_idx *oi);
	int (*iqo_next)(struct m0_clovis_op_idx *oi);
};

struct m0_clovis_idx_service_ops {
	int (*iso_init)(void *svc);
	int (*iso_fini)(void *svc);
};

struct m0_clovis_idx_service {
	struct m0_clovis_idx_service_ops *is_svc_ops;
	struct m0_clovis_idx_query_ops *is_query_ops;
};

struct m0_clovis_idx_service_ctx {
	struct m0_clovis_idx_service *isc_service;
	void *isc_svc_conf;
	void *isc_svc_inst;
};

struct m0_idx_cass_config {
	char *cc_cluster_ep;
	char *cc_keyspace;
	int cc_max_column_family_num;
};

struct m0_idx_dix_config {
	bool kc_create_meta;
	struct m0_dix_ldesc kc_layout_ldesc;
	struct m0_dix_ldesc kc_ldescr_ldesc;
};

#ifdef __cplusplus
}
#endif

#endif
