/* Arithmetic of counts: see lib/misc.h. */
#ifndef CLOVIS_INCLUDE_LIB_ARITH_H
#define CLOVIS_INCLUDE_LIB_ARITH_H

#include "lib/misc.h"

#endif
