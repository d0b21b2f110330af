/* As lib/trace.h. */
#ifndef CLOVIS_INCLUDE_LIB_USER_SPACE_TRACE_H
#define CLOVIS_INCLUDE_LIB_USER_SPACE_TRACE_H

#include "lib/trace.h"

#endif
