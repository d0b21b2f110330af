/* What programs touch of the library's inside: the instance to adopt threads for. */
#ifndef CLOVIS_INCLUDE_CLOVIS_CLOVIS_INTERNAL_H
#define CLOVIS_INCLUDE_CLOVIS_CLOVIS_INTERNAL_H

#include "clovis/clovis.h"
#include "clovis/clovis_layout.h"
#include "lib/thread.h"
#include "module/instance.h"
#include "reqh/reqh.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_clovis {
	/* For m0_thread_adopt; the same under the later name. */
	struct m0 *m0c_mero;
	struct m0 *m0c_motr;
	/* As given to m0_clovis_init. */
	struct m0_clovis_config *m0c_config;
	/* Empty: pools and layouts are the control daemon's. */
	struct m0_reqh m0c_reqh;
	uint64_t m0c_opaque[8];
};

#ifdef __cplusplus
}
#endif

#endif
