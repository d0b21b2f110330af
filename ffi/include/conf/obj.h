/* Types of configuration objects: the letter in the top byte of their fids. */
#ifndef CLOVIS_INCLUDE_CONF_OBJ_H
#define CLOVIS_INCLUDE_CONF_OBJ_H

#include "lib/types.h"
#include "fid/fid.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
	M0_CONF__PROFILE_FT_ID = 'p',
	M0_CONF__PROCESS_FT_ID = 'r',
	M0_CONF__SERVICE_FT_ID = 's',
	M0_CONF__NODE_FT_ID = 'n',
	M0_CONF__POOL_FT_ID = 'o',
	M0_CONF__PVER_FT_ID = 'v',
	M0_CONF__ROOT_FT_ID = 't'
};

static inline bool m0_conf_fid_is_valid(const struct m0_fid *fid)
{
	return m0_fid_is_set(fid) && m0_fid_is_valid(fid);
}

#ifdef __cplusplus
}
#endif

#endif
