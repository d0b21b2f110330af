/* An extent [e_start, e_end). */
#ifndef CLOVIS_INCLUDE_LIB_EXT_H
#define CLOVIS_INCLUDE_LIB_EXT_H

#include "lib/types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_ext {
	m0_bindex_t e_start;
	m0_bindex_t e_end;
};
#define EXT_F "[%" PRIx64 ", %" PRIx64 ")"
#define EXT_P(ext) (ext)->e_start, (ext)->e_end

static inline m0_bcount_t m0_ext_length(const struct m0_ext *ext)
{
	return ext->e_end - ext->e_start;
}

static inline bool m0_ext_is_in(const struct m0_ext *ext, m0_bindex_t index)
{
	return ext->e_start <= index && index < ext->e_end;
}

static inline bool m0_ext_is_empty(const struct m0_ext *ext)
{
	return ext->e_end <= ext->e_start;
}

#ifdef __cplusplus
}
#endif

#endif
