/* Magic numbers that programs use for lists of their own. */
#ifndef CLOVIS_INCLUDE_MERO_MAGIC_H
#define CLOVIS_INCLUDE_MERO_MAGIC_H

#include "lib/types.h"

#endif
