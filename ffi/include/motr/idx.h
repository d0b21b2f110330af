/* Indices under their later names: see clovis/clovis_idx.h. */
#ifndef CLOVIS_INCLUDE_MOTR_IDX_H
#define CLOVIS_INCLUDE_MOTR_IDX_H

#include "motr/client.h"
#include "clovis/clovis_idx.h"

#define m0_idx_service_type m0_clovis_idx_service_type
#define m0_op_idx_flags m0_clovis_op_idx_flags
#define m0_idx_query_ops m0_clovis_idx_query_ops
#define m0_idx_service_ops m0_clovis_idx_service_ops
#define m0_idx_service m0_clovis_idx_service
#define m0_idx_service_ctx m0_clovis_idx_service_ctx
#define M0_IDX_MOCK M0_CLOVIS_IDX_MOCK
#define M0_IDX_DIX M0_CLOVIS_IDX_DIX
#define M0_IDX_CASS M0_CLOVIS_IDX_CASS
#define M0_IDX_MAX_SERVICE_ID M0_CLOVIS_IDX_MAX_SERVICE_ID

enum {
	M0_OIF_SKIP_LAYOUT = 1 << 3,
	M0_OIF_CROW = 1 << 4,
	M0_OIF_NO_DTM = 1 << 5
};

#endif
