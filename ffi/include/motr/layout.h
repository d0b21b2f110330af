/* Layouts under their later names: see clovis/clovis_layout.h. */
#ifndef CLOVIS_INCLUDE_MOTR_LAYOUT_H
#define CLOVIS_INCLUDE_MOTR_LAYOUT_H

#include "motr/client.h"
#include "clovis/clovis_layout.h"

#define m0_capture_layout m0_clovis_capture_layout
#define m0_pdclust_obj_layout m0_clovis_pdclust_layout
#define m0_composite_extent m0_clovis_composite_extent
#define m0_composite_layer m0_clovis_composite_layer
#define m0_composite_layout m0_clovis_composite_layout
#define M0_OBJ_LAYOUT_ID(lid) M0_CLOVIS_OBJ_LAYOUT_ID(lid)
#define M0_OBJ_LAYOUT_TYPE(lid) M0_CLOVIS_OBJ_LAYOUT_TYPE(lid)
#define M0_OBJ_LAYOUT_MAKE_LID(id, type) M0_CLOVIS_OBJ_LAYOUT_MAKE_LID(id, type)

#endif
