/* As lib/types.h. */
#ifndef CLOVIS_INCLUDE_LIB_USER_SPACE_TYPES_H
#define CLOVIS_INCLUDE_LIB_USER_SPACE_TYPES_H

#include "lib/types.h"

#endif
